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
from pylon.errors import StartRefused

_PATIENCE_S: Final = 1.0  # `pylonctl status` and `stop` hold the lock for a moment
_POLL_S: Final = 0.02


class Pidfile:
    """Locked by `acquire`; `write` says who we are; `release` lets go."""

    __slots__ = ("_fd", "left_behind", "path")

    def __init__(self, path: Path, fd: int, left_behind: dict[str, Any]) -> None:
        """Args: `left_behind` is what a run that was killed had written."""
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
            raise StartRefused(f"The pidfile {path} cannot be made: {ex.strerror}") from ex
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
        os.ftruncate(fd, 0)
        return cls(path, fd, left_behind)

    def write(self, **facts: Any) -> None:
        """Say who holds the lock, as one JSON object."""
        text = json.dumps(facts).encode() + b"\n"
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def release(self) -> None:
        """Empty the file and let go of the lock. Idempotent."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _holder(path: Path) -> str:
    pid = _facts(path).get("pid")
    return "a process that is starting" if pid is None else f"pid {pid}"


def _facts(path: Path) -> dict[str, Any]:
    """What the file says; nothing where it is empty or unreadable."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
