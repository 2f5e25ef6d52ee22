"""The lock of a data directory: one process at a time may write to the data in it.

`<db_path>.pid` is locked (flock) for as long as its holder lives; the lock, not the file, says that
somebody runs. A supervisor writes who it is into the file, as JSON. At the end the file is emptied
and stays: unlinking it would let two processes hold locks on two files of the same name.

Called by the supervisor, and by commands of `pylonctl` that need a data directory for themselves or
look whether a supervisor has it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pylon.data_dir import give_to_owner, open_private
from pylon.disk_errors import start_error
from pylon.errors import StartRefused

_PATIENCE_S: Final = 1.0  # `pylonctl status` and `stop` hold the lock for a moment
_POLL_S: Final = 0.02


class DataDirLocked(Exception):
    """Another process holds the data directory."""


class DataDirLock:
    """The lock of a supervisor: taken by `acquire`; `write` says who it is; `release` lets go."""

    __slots__ = ("_fd", "left_behind", "path")

    def __init__(self, path: Path, fd: int, left_behind: dict[str, Any]) -> None:
        """Args: `left_behind` is what a killed run had written into the file."""
        self.path = path
        self.left_behind = left_behind
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path) -> DataDirLock:
        """Take the lock of the pidfile `path`.

        Raises:
            StartRefused: another supervisor holds it (named by its pid), or it cannot be made,
                or it is a symlink.
        """
        try:
            fd = open_private(path, os.O_RDWR | os.O_CREAT)
        except OSError as ex:
            raise start_error(ex, path, "The pidfile cannot be made") from ex
        tries = int(_PATIENCE_S / _POLL_S)
        for attempt in range(tries + 1):
            if _lock(fd, fcntl.LOCK_EX):
                break
            if attempt == tries:
                holder = _holder(path)
                os.close(fd)
                raise StartRefused(
                    f"Pylon already runs on this data directory ({holder}, {path}): "
                    "stop it first (pylonctl stop), or set another PYLON_DB_PATH"
                )
            time.sleep(_POLL_S)
        left_behind = _facts(path)
        try:
            os.ftruncate(fd, 0)
        except OSError as ex:
            os.close(fd)
            raise start_error(ex, path) from ex
        return cls(path, fd, left_behind)

    def write(self, **facts: Any) -> None:
        """Write the holder of the lock into the file, as one JSON object.

        Raises:
            StartRefused: the disk refuses it.
        """
        text = json.dumps(facts).encode() + b"\n"
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
        except OSError as ex:
            raise start_error(ex, self.path) from ex

    def release(self) -> None:
        """Empty the file and let go of the lock. Idempotent.

        Raises:
            OSError: the file could not be emptied; the lock is gone in any case.
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.ftruncate(fd, 0)
            except OSError as ex:
                raise OSError(ex.errno, ex.strerror, str(self.path)) from ex
            finally:
                os.close(fd)


def pidfile_of(db_path: Path) -> Path:
    """Where the supervisor of this database keeps its pid and its lock."""
    return db_path.with_name(db_path.name + ".pid")


def is_locked(db_path: Path) -> bool:
    """Whether a live process holds the data directory of `db_path`.

    Raises:
        StartRefused: the pidfile is a symlink, or no plain file.
    """
    try:
        fd = open_private(pidfile_of(db_path), os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        # Shared: two that look at once do not take each other for a supervisor.
        return not _lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


@contextmanager
def lock_data_dir(db_path: Path) -> Iterator[None]:
    """Hold the data directory of `db_path` until the block ends, so that no supervisor starts.

    Raises:
        DataDirLocked: somebody else holds it.
        StartRefused: the pidfile is a symlink, or no plain file.
    """
    path = pidfile_of(db_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _lock(fd, fcntl.LOCK_EX):
            raise DataDirLocked(str(path))
        os.ftruncate(fd, 0)  # what a killed supervisor left is no longer true
        give_to_owner(fd, db_path)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, kind: int) -> bool:
    """Take a lock without waiting; whether that worked."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    pid = _facts(path).get("pid")
    return "a process that is starting" if pid is None else f"pid {pid}"


def _facts(path: Path) -> dict[str, Any]:
    """The content of the file; nothing where it is empty or unreadable."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
