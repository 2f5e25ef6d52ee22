"""The app's own Python: one file, named by `PYLON_APP`, that registers its shards.

Only the shards workers and `pylonctl replay` load it, so what it imports costs the others
nothing. Before a start it is imported on trial, in a process that ends with that. Its folder
comes first on `sys.path`, so that it may import its neighbours.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Final

from pylon import limits
from pylon.config import Config
from pylon.errors import StartRefused

_NAME: Final = "pylon_app"
_ROOT: Final = Path(__file__).resolve().parent.parent.parent  # where this package is
_TRIAL: Final = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from pylon.errors import StartRefused
from pylon.realtime.app_module import load_app_module
try:
    load_app_module(Path(sys.argv[2]))
except StartRefused as ex:
    sys.exit(ex.message)
"""


def try_app_module(config: Config) -> None:
    """Import the app's file in a process of its own, if it is set and a shards worker will.

    Raises:
        StartRefused: as `load_app_module`, or it takes longer than `limits.APP_TRIAL_S`.
    """
    if config.app is None or not config.shard_workers:
        return
    command = [sys.executable, "-P", "-c", _TRIAL, str(_ROOT), config.app]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", timeout=limits.APP_TRIAL_S, check=False,
        )
    except subprocess.TimeoutExpired as ex:
        raise StartRefused(
            f"PYLON_APP is {config.app}: its import takes longer than {limits.APP_TRIAL_S:g} s"
        ) from ex
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its import ended with {done.returncode}"]
        why = lines[-1]
        raise StartRefused(why if why.startswith("PYLON_APP") else f"PYLON_APP: {why}")


def load_app_module(path: Path) -> None:
    """Import the file, once.

    Raises:
        StartRefused: it is not there, or its import fails; the message has the line.
    """
    if _NAME in sys.modules:
        return
    if not path.is_file():
        raise StartRefused(
            f"PYLON_APP is {path}, which is no file", hint="Name the app's Python file"
        )
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise StartRefused(f"PYLON_APP is {path}: the name of a Python file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except StartRefused:
        del sys.modules[_NAME]
        raise
    except Exception as ex:
        del sys.modules[_NAME]
        raise StartRefused(f"PYLON_APP is {path}: {_where(ex, path)}{_said(ex)}") from ex


def _where(error: Exception, path: Path) -> str:
    """The last line of the app's file that took part."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: "
    return f"line {frames[-1].lineno}: " if frames else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
