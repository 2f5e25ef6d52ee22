"""The app's own Python: one file, named by `PYLON_APP`, that registers its shards.

Only the shards workers and `pylonctl replay` load it, so what it imports costs the others
nothing. Before a start it is imported on trial, in a process that ends with that. Its folder
comes first on `sys.path`, so that it may import its neighbours.
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
_FINE: Final = b"\0"  # what a trial in a fork says of a module that can be imported
_MS_PER_S: Final = 1_000
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


def try_app_module(config: Config, *, in_fork: bool = False) -> None:
    """Import the app's file in a process of its own, if it is set and a shards worker will.

    Args:
        in_fork: the process is a fork of this one, which must have one thread. It need not import
            Pylon anew.

    Raises:
        StartRefused: as `load_app_module`, or it takes longer than `limits.APP_TRIAL_S`.
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


def _try_in_fork(path: Path) -> None:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        _report_trial(path, write_fd)
    os.close(write_fd)
    poll = select.poll()
    poll.register(read_fd, select.POLLIN)
    is_over = bool(poll.poll(limits.APP_TRIAL_S * _MS_PER_S))
    if not is_over:
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(read_fd, "rb") as pipe:
        text = pipe.read() if is_over else b""
    os.waitpid(pid, 0)
    if not is_over:
        raise StartRefused(
            f"PYLON_APP is {path}: its import takes longer than {limits.APP_TRIAL_S:g} s"
        )
    if text != _FINE:
        raise StartRefused(text.decode(errors="replace") or "PYLON_APP: its import ended early")


def _report_trial(path: Path, write_fd: int) -> NoReturn:
    """Import the file, write why it fails, and end this process."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    text = _FINE
    try:
        load_app_module(path)
    except StartRefused as ex:
        text = ex.message.encode()
    except BaseException as ex:  # noqa: BLE001  (an app may raise SystemExit while it is imported)
        text = f"PYLON_APP: {_said(ex)}".encode()
    os.write(write_fd, text)
    os._exit(0)


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
    # A stored bytecode is recognised by size and whole seconds: a second save would be missed.
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except StartRefused:
        del sys.modules[_NAME]
        raise
    except Exception as ex:
        del sys.modules[_NAME]
        raise StartRefused(f"PYLON_APP is {path}: {_where(ex, path)}{_said(ex)}") from ex
    finally:
        sys.dont_write_bytecode = writes_bytecode


def _where(error: Exception, path: Path) -> str:
    """The last line of the app's file that took part."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: "
    return f"line {frames[-1].lineno}: " if frames else ""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
