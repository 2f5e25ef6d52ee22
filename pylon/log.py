"""Structured log lines on stderr: one JSON object a line, or one human-readable line.

Each line has `level`, `ts` (Unix seconds), `event` (a dotted name), `role`, `worker`, and the keys
of the caller, with units in their names. The logger replaces values under keys that name a secret.
Under systemd (`JOURNAL_STREAM`) lines carry the syslog priority. Where stderr is a file that
somebody has renamed and made anew (`supervisor.log_rotation`, logrotate), a process goes on in the
new file: it looks before each line.

Invariants: one `write` writes a whole line where the kernel allows it, so lines of threads and
processes do not mix. Logging never raises and never stops its caller. `supervisor.main` and
`workers.boot` call `configure` once in each process.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from pylon.clock import Clock, SystemClock

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_COLOUR: Final = {"debug": "\x1b[2m", "info": "", "warning": "\x1b[33m", "error": "\x1b[31m"}
_SECRET: Final = re.compile(
    r"token|secret|passw|authorization|cookie|api_?key|private_?key|credential", re.IGNORECASE
)
_HIDDEN: Final = "[redacted]"
_VALUE_CHARS: Final = 8_192  # longer texts are cut, so that a line stays readable


class _Sink:
    """The target of this process's lines, and the keys that all of them have."""

    __slots__ = (
        "clock", "colours", "fd", "journal", "path", "pretty", "role", "threshold", "worker",
    )

    def __init__(self) -> None:
        self.fd = 2
        self.pretty = False
        self.threshold = _LEVELS["info"]
        self.role = ""
        self.worker = ""
        self.journal = False
        self.colours = False
        self.path: str | None = None  # of stderr, where that is a file
        self.clock: Clock = SystemClock()


_sink: Final = _Sink()


def configure(
    log_format: str, level: str, role: str, worker: str, *, fd: int = 2, clock: Clock | None = None
) -> None:
    """Configure the log of this process, and replace the root logger's handlers.

    Args:
        log_format: ``json`` or ``pretty`` (PYLON_LOG_FORMAT).
        level: the least severe level to write (PYLON_LOG_LEVEL).
        role, worker: the process; lines omit empty strings.
        fd: the descriptor to write to; 2 is stderr.
    """
    _sink.fd = fd
    _sink.pretty = log_format == "pretty"
    _sink.threshold = _LEVELS[level]
    _sink.role = role
    _sink.worker = worker
    _sink.journal = _is_journal(fd, os.environ.get("JOURNAL_STREAM", ""))
    _sink.colours = _sink.pretty and os.isatty(fd)
    _sink.path = file_of(fd)
    _sink.clock = clock or SystemClock()
    sys.excepthook = _log_uncaught
    root = logging.getLogger()
    root.handlers[:] = [_StandardHandler()]
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def name_process(role: str, worker: str) -> None:
    """Name a forked process in its lines. Its template has configured the log with its settings."""
    _sink.role = role
    _sink.worker = worker


class Logger:
    """Writes lines for one part of the program. `get_logger` creates it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, event: str, **keys: Any) -> None:
        """Log a detail for developers."""
        _write("debug", self._name, event, keys)

    def info(self, event: str, **keys: Any) -> None:
        """Log an expected event."""
        _write("info", self._name, event, keys)

    def warning(self, event: str, **keys: Any) -> None:
        """Log an event that needs an operator's attention."""
        _write("warning", self._name, event, keys)

    def error(self, event: str, **keys: Any) -> None:
        """Log a failure."""
        _write("error", self._name, event, keys)

    def exception(self, event: str, *, error: BaseException, **keys: Any) -> None:
        """Log an unexpected error, with its traceback under the key `trace`."""
        trace = "".join(traceback.format_exception(error))
        _write("error", self._name, event, {**keys, "error": str(error), "trace": trace})

    def failure(self, event: str, *, error: BaseException, **keys: Any) -> None:
        """Log the error that ends a process.

        An error of Pylon or of the system names its cause and is one line. Any other error is a
        defect and gets its traceback.
        """
        if isinstance(error, OSError) or hasattr(error, "code"):
            self.error(event, error=f"{type(error).__name__}: {error}", **keys)
        else:
            self.exception(event, error=error, error_type=type(error).__name__, **keys)

    def enabled(self, level: str) -> bool:
        """Whether the log writes this level. Check it before computing expensive keys."""
        return _LEVELS[level] >= _sink.threshold


def get_logger(name: str) -> Logger:
    """Return the logger of a part of the program, for example ``writer`` (key `part`)."""
    return Logger(name)


def redact(keys: dict[str, Any]) -> dict[str, Any]:
    """Return `keys` without the values under keys that name a secret, at any depth."""
    return {k: _HIDDEN if _SECRET.search(k) and v else _plain(v) for k, v in keys.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return redact({str(k): v for k, v in value.items()})
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = str(value)
    return text if len(text) <= _VALUE_CHARS else text[:_VALUE_CHARS] + "..."


def _write(level: str, part: str, event: str, keys: dict[str, Any]) -> None:
    if _LEVELS[level] < _sink.threshold:
        return
    record: dict[str, Any] = {"level": level, "ts": _sink.clock.wall_ns() / 1e9, "event": event}
    if _sink.role:
        record["role"] = _sink.role
    if _sink.worker:
        record["worker"] = _sink.worker
    if part:
        record["part"] = part
    for key, value in redact(keys).items():
        record[key + "_" if key in record else key] = value
    line = _pretty(record) if _sink.pretty else _json(record)
    if _sink.journal:
        line = b"<%d>" % _PRIORITY[level] + line
    _emit(line + b"\n")


def _json(record: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError:  # a lone surrogate, from os.fsdecode of invalid UTF-8
        return msgspec.json.encode(
            {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else repr(v)
             for k, v in record.items()}
        )


def _pretty(record: dict[str, Any]) -> bytes:
    seconds = record.pop("ts")
    level, event = record.pop("level"), record.pop("event")
    trace = record.pop("trace", None)
    process = "/".join(str(record.pop(k)) for k in ("role", "worker") if k in record)
    record.pop("part", None)
    clock = f"{int(seconds) // 3600 % 24:02d}:{int(seconds) // 60 % 60:02d}:{seconds % 60:06.3f}"
    keys = " ".join(f"{k}={_value_text(v)}" for k, v in record.items())
    colour, end = (_COLOUR[level], "\x1b[0m") if _sink.colours else ("", "")
    text = f"{clock} {colour}{level:<7}{end} {process:<10} {colour}{event}{end} {keys}".rstrip()
    if trace is not None:
        text += "\n" + str(trace).rstrip()
    return text.encode("utf-8", "replace")


def _value_text(value: Any) -> str:
    if isinstance(value, str):
        needs_quotes = not value or not value.isprintable() or any(c in value for c in ' "=')
        return _json_text(value) if needs_quotes else value
    return _json_text(value)


def _json_text(value: Any) -> str:
    return _json({"v": value})[5:-1].decode()


def _emit(line: bytes) -> None:
    view = memoryview(line)
    if _sink.path is not None:
        _follow(_sink.path)
    try:
        while view:
            view = view[os.write(_sink.fd, view):]
    except OSError:
        # A closed or full stderr must not stop the server, and there is no other log.
        return


def file_of(fd: int) -> str | None:
    """Return the path of the plain file that `fd` writes to; None: it is no file, or has no path
    any more."""
    try:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        named, opened = path.stat(), os.fstat(fd)
    except OSError:
        return None
    is_same = stat.S_ISREG(opened.st_mode) and os.path.samestat(named, opened)
    return str(path) if is_same else None


def _follow(path: str) -> None:
    """Write to the file at `path` from now on, if it is another one than the opened one."""
    try:
        opened, named = os.fstat(_sink.fd), os.lstat(path)
        if os.path.samestat(opened, named) or not stat.S_ISREG(named.st_mode):
            return
        others = [fd for fd in (1, 2) if os.path.samestat(os.fstat(fd), opened)]
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # it is being renamed, or is not ours: the opened file takes the line
    for other in {_sink.fd, *others}:
        os.dup2(fd, other)
    os.close(fd)


def _is_journal(fd: int, journal_stream: str) -> bool:
    """Whether `fd` is the stream that systemd has connected to the journal."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return journal_stream == f"{found.st_dev}:{found.st_ino}"


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Log the uncaught error that ends the process (a `sys.excepthook`)."""
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        get_logger("process").failure("process.failed", error=error)


class _StandardHandler(logging.Handler):
    """Writes the lines of libraries (gunicorn, falcon) in Pylon's format."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= 40 else "warning" if record.levelno >= 30 else (
            "info" if record.levelno >= 20 else "debug")
        keys: dict[str, Any] = {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            keys["trace"] = "".join(traceback.format_exception(record.exc_info[1]))
        _write(level, record.name, f"library.{record.name.split('.')[0]}", keys)


def thread_hook(report: Callable[[BaseException], None]) -> Callable[[Any], None]:
    """Return a `threading.excepthook` that logs a thread's error and then reports it.

    Args:
        report: gets the error; it may end the process.
    """
    log = get_logger("thread")

    def hook(args: Any) -> None:
        error = args.exc_value or args.exc_type()
        name = args.thread.name if args.thread is not None else "?"
        log.exception("thread.died", error=error, thread=name)
        report(error)

    return hook


