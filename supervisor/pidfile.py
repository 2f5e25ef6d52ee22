"""The pidfile and its lock: one supervisor for each data directory.

`<db_path>.pid` is locked (flock) for as long as the supervisor lives; the lock, not the file,
says that somebody runs. At the end the file is emptied and stays: unlinking it would let two
processes hold locks on two files of the same name.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Final

from pylon.data_dir import open_private
from pylon.disk_errors import start_error
from pylon.errors import StartRefused

_PATIENCE_S: Final = 1.0  # `pylonctl status` and `stop` hold the lock for a moment
_POLL_S: Final = 0.02


class Pidfile:
    """Locked by `acquire`; `write` says who we are; `release` lets go."""

    __slots__ = ("_fd", "left_behind", "path")

    def __init__(self, path: Path, fd: int, left_behind: dict[str, Any]) -> None:
        """Args: `left_behind` is the content that a killed run had written."""
        self.path = path
        self.left_behind = left_behind
        self._fd = fd

    @classmethod
    def acquire(cls, path: Path) -> Pidfile:
        """Take the lock.

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
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt == tries:
                    holder = _holder(path)
                    os.close(fd)
                    raise StartRefused(
                        f"Pylon already runs on this data directory ({holder}, {path}): "
                        "stop it first (pylonctl stop), or set another PYLON_DB_PATH"
                    ) from None
                time.sleep(_POLL_S)
            else:
                break
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
