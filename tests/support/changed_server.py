"""A server with one change in its code: for tests of what a sound server never does.

`change` returns a command for `PylonServer.command`. The server patches a module when it is
imported, in the supervisor, its template or a worker, whichever imports it.
"""

from __future__ import annotations

import sys

_MAIN = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            exec(CHANGE, {"module": module})
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
exec(BEFORE)
from pylon.cli.main import main
main()
"""


def change(module: str, statements: str, before: str = "") -> list[str]:
    """Return the command of a server that runs `statements` with the global `module` after the
    import of that module.

    Args:
        before: statements that run first, in the process of `pylonctl`.
    """
    values = f"MODULE, CHANGE, BEFORE = {module!r}, {statements!r}, {before!r}\n"
    return [sys.executable, "-c", values + _MAIN, "start"]
