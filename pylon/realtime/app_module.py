"""App module: loads the app's Python file (`PYLON_APP`), which registers its shards.

`try_app_module` imports the file in a process that then ends, so a broken app refuses the start.
`load_app_module` imports it for good and puts its folder first on `sys.path`, so that the app may
import its neighbours.

Invariant: other processes never import the app, so its imports cost them nothing. Bound: a trial
takes at most `limits.APP_IMPORT_S`. `try_app_module` is called at a start, by `pylonctl
check-config` and by `pylonctl dev`; `load_app_module` by the shards workers and `pylonctl replay`.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Final, NoReturn

from pylon import limits
from pylon.config import Config
from pylon.errors import StartRefused

_NAME: Final = "pylon_app"
_IMPORTED: Final = b"\0"  # the report of a trial in a fork whose import has succeeded
_MS_PER_S: Final = 1_000
_ROOT: Final = Path(__file__).resolve().parent.parent.parent  # the folder of the package `pylon`
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


def try_app_module(config: Config, *, in_fork: bool = False) -> None:
    """Import the app's file in a process of its own.

    Do nothing if `PYLON_APP` is not set, or if no shards worker will load the file.

    Args:
        in_fork: fork this process, which must have one thread, instead of starting a new Python.
            The fork need not import Pylon again.

    Raises:
        StartRefused: as `load_app_module`, or the import takes longer than `limits.APP_IMPORT_S`.
    """
    if config.app is None or not config.shard_workers:
        return
    if in_fork:
        _try_in_fork(Path(config.app))
        return
    command = [sys.executable, "-P", "-c", _TRIAL, str(_ROOT), config.app]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", timeout=limits.APP_IMPORT_S, check=False,
        )
    except subprocess.TimeoutExpired as ex:
        raise StartRefused(
            f"PYLON_APP is {config.app}: its import takes longer than {limits.APP_IMPORT_S:g} s"
        ) from ex
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its import ended with {done.returncode}"]
        why = lines[-1]
        raise StartRefused(why if why.startswith("PYLON_APP") else f"PYLON_APP: {why}")


def _try_in_fork(path: Path) -> None:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _report_trial(path, write_fd)
    os.close(write_fd)
    poll = select.poll()
    poll.register(read_fd, select.POLLIN)
    is_over = bool(poll.poll(limits.APP_IMPORT_S * _MS_PER_S))
    if not is_over:
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read_fd, "rb") as pipe:
        text = pipe.read() if is_over else b""
    os.waitpid(pid, 0)
    if not is_over:
        raise StartRefused(
            f"PYLON_APP is {path}: its import takes longer than {limits.APP_IMPORT_S:g} s"
        )
    if text != _IMPORTED:
        raise StartRefused(text.decode(errors="replace") or "PYLON_APP: its import ended early")


def _report_trial(path: Path, write_fd: int) -> NoReturn:
    """Import the file, write the reason of a failure, and end this process."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    text = _IMPORTED
    try:
        load_app_module(path)
    except StartRefused as ex:
        text = ex.message.encode()
    except BaseException as ex:  # noqa: BLE001  (an app may raise SystemExit while it is imported)
        text = f"PYLON_APP: {_error_text(ex)}".encode()
    os.write(write_fd, text)
    os._exit(0)


def load_app_module(path: Path) -> None:
    """Import the file, once.

    Raises:
        StartRefused: the file does not exist, or its import fails; the message names the line.
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
    # Python compares stored bytecode by the file's size and whole seconds. It would miss a second
    # save within one second.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except StartRefused:
        del sys.modules[_NAME]
        raise
    except Exception as ex:
        del sys.modules[_NAME]
        problem = _line_prefix(ex, path) + _error_text(ex)
        raise StartRefused(f"PYLON_APP is {path}: {problem}") from ex
    finally:
        sys.dont_write_bytecode = writes_bytecode


def _line_prefix(error: Exception, path: Path) -> str:
    """Return "line N: " for the last line of the app's file in the traceback, or ""."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: "
    return f"line {frames[-1].lineno}: " if frames else ""


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
