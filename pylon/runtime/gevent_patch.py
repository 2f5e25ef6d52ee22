"""gevent's patches: replace blocking functions of the standard library by cooperative ones.

`patch` is the first call of the template process. gevent's versions of `os.fork`, `os.waitpid`,
`signal.signal` and the queues make an event loop (gevent's hub) when a process calls them. A
process that forks workers must not have an event loop. The template does not call these functions.
gunicorn's arbiter does, so it restores the original functions with `restore_forking`; its workers
patch them again with `patch_worker`.

Invariant: no function of this module makes an event loop. Called by `workers.template`,
`workers.__main__`, `workers.http.arbiter` and `workers.http.server`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Final

from gevent import events, monkey

_HUB_MAKERS: Final = {
    "os": ("fork", "waitpid"), "signal": ("signal", "getsignal"),
    "queue": ("SimpleQueue", "Queue", "LifoQueue", "PriorityQueue"),
}


def patch() -> None:
    """Patch everything but the queues. Call it before any other import.

    A forked template has the supervisor's imports already. `test_imports.py` has a list of what
    they keep of the unpatched functions.
    """
    # PERF: gevent looks for plug-ins in the metadata of each installed distribution, a dozen times:
    # 0.09 s of CPU in place of 0.02, at each start.
    events.notify_and_call_entry_points = events.notify
    with warnings.catch_warnings():
        # A template that was forked has imported `ssl`. No module holds a class of it.
        warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)
        monkey.patch_all(queue=False)


def patch_queues() -> None:
    """Patch the queues. Call it after the import of falcon, which makes one."""
    monkey.patch_queue()


def restore_forking() -> None:
    """Restore the original functions that a forking process calls."""
    for module, names in _HUB_MAKERS.items():
        for name in names:
            setattr(importlib.import_module(module), name, monkey.get_original(module, name))


def patch_worker() -> None:
    """Undo `restore_forking`, in a process that forks no more."""
    with warnings.catch_warnings():
        # gevent warns of a patch that comes after the import of `ssl`, which it has patched itself.
        warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)
        monkey.patch_os()
        monkey.patch_signal()
        monkey.patch_queue()
