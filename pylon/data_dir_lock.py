"""Data directory lock: lets one process at a time write to the data.

The holder locks `<db_path>.pid` (flock) while it lives. The lock, not the file, shows that a
process runs. A supervisor writes its pid, ports and runtime folder into the file, as JSON. At its
end it empties the file and keeps it: with an unlinked file, two processes could hold locks on two
files of one name.

Called by the supervisor, and by verbs of `pylonctl` that need exclusive access or must know
whether a supervisor runs.
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
    """The lock of a supervisor. `left_behind`: the content of the file of a killed run."""

    __slots__ = ("_fd", "left_behind", "path")

    def __init__(self, path: Path, fd: int, left_behind: dict[str, Any]) -> None:
        """Use `acquire`."""
        self.path = path
        self.left_behind = left_behind
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path) -> DataDirLock:
        """Lock the pidfile `path`, after at most `_PATIENCE_S`.

        Raises:
            StartRefused: another process holds the lock (the text names its pid), or the file
                cannot be made, or is a symlink.
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
        """Write facts about the holder into the file, as one JSON object.

        Raises:
            StartRefused: the disk failed.
        """
        text = json.dumps(facts).encode() + b"\n"
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text, 0)
        except OSError as ex:
            raise start_error(ex, self.path) from ex

    def release(self) -> None:
        """Empty the file and release the lock. Idempotent.

        Raises:
            OSError: the file could not be emptied; the lock is released in any case.
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
    """Return the path of the pidfile of this database, which is also its lock."""
    return db_path.with_name(db_path.name + ".pid")


def log_file_of(db_path: Path) -> Path:
    """Return the absolute path of the log of `pylonctl start --detach`."""
    return pidfile_of(db_path).absolute().with_suffix(".log")


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
        # A shared lock: two processes that check at once do not see each other as a holder.
        return not _lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


@contextmanager
def lock_data_dir(db_path: Path) -> Iterator[None]:
    """Hold the lock of `db_path` until the block ends, so that no supervisor starts.

    Raises:
        DataDirLocked: another process holds it.
        StartRefused: the pidfile is a symlink, or no plain file.
    """
    path = pidfile_of(db_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _lock(fd, fcntl.LOCK_EX):
            raise DataDirLocked(str(path))
        os.ftruncate(fd, 0)  # a killed supervisor may have left outdated facts
        give_to_owner(fd, db_path)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, kind: int) -> bool:
    """Try to take a lock without waiting. Return whether it succeeded."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    pid = _facts(path).get("pid")
    return "a process that is starting" if pid is None else f"pid {pid}"


def _facts(path: Path) -> dict[str, Any]:
    """Return the content of the file; an empty dict if it is empty or unreadable."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
