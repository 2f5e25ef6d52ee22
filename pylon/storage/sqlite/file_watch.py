"""File watch: checks that the open database is still the file at its path, and is writable.

A process continues to write to an open file after an operator has deleted, moved or replaced it.
The acknowledged writes are then lost with the last descriptor. So the engine checks after each
commit, before it acknowledges. The flusher checks once a second, for readiness.

This module opens no file: closing a descriptor would drop the POSIX locks that SQLite holds in
this process. It checks the WAL and its index (-shm) as well. A process that opens the database
without the index makes a new one. It then does not see the other processes, reads old rows, and
removes the WAL when it closes.

Invariant: a failed check names the file and the remedy. Bound: one `stat` for each check
(PERF: 1.2 us), and two more at most every `_BESIDE_PERIOD_S`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from pylon.clock import Clock

_BESIDE_PERIOD_S: Final = 0.01
_BESIDE: Final = ("wal", "shm")
_Identity = tuple[int, int]  # device and inode


class FileProblem(NamedTuple):
    """The reason not to acknowledge writes: a label for metrics, and a message."""

    reason: str  # file_gone, file_replaced, the same of wal and shm, read_only
    message: str


class FileWatch:
    """Compares the files at the paths with those at the creation of this object."""

    __slots__ = ("_beside", "_checked_s", "_clock", "_identity", "_path")

    def __init__(self, path: str | Path, clock: Clock) -> None:
        """Make it after the first write of the connection, when all files exist."""
        self._path = os.fspath(path)
        self._clock = clock
        self._identity = _identity_of(self._path)
        self._beside = {kind: _identity_of(f"{self._path}-{kind}") for kind in _BESIDE}
        self._checked_s = float("-inf")

    def find_problem(self) -> FileProblem | None:
        """Return the present problem, or None."""
        try:
            stat = os.stat(self._path)  # noqa: PTH116  PERF: a `Path` costs half as much again
        except OSError:
            return self._problem("file", self._path, None)
        if (stat.st_dev, stat.st_ino) != self._identity:
            return self._problem("file", self._path, (stat.st_dev, stat.st_ino))
        now_s = self._clock.monotonic_s()
        if now_s - self._checked_s >= _BESIDE_PERIOD_S:
            for kind, known in self._beside.items():
                path = f"{self._path}-{kind}"
                found = _identity_of(path)
                if known is None:
                    self._beside[kind] = found
                elif found != known:
                    return self._problem(kind, path, found)
            self._checked_s = now_s
        return None

    def find_unwritable(self) -> FileProblem | None:
        """Return a problem if this process may not write to the files, or None."""
        folder = str(Path(self._path).parent)
        try:
            is_read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        except OSError:
            is_read_only = False
        if is_read_only:
            return FileProblem("read_only", f"The file system of {folder} is mounted read-only: "
                               "mount it read-write")
        for path in (self._path, f"{self._path}-wal", folder):
            if Path(path).exists() and not os.access(path, os.W_OK):
                return FileProblem("read_only", f"{path} may not be written to by this user: give "
                                   "it back its owner and mode, or the next start is refused")
        return None

    def _problem(self, kind: str, path: str, found: _Identity | None) -> FileProblem:
        state = "is gone" if found is None else "is another file than the one that was opened"
        return FileProblem(
            f"{kind}_{'gone' if found is None else 'replaced'}",
            f"{path} {state}, so that nothing is acknowledged: put the file back. What the server "
            f"has open is in /proc/{os.getpid()}/fd until it ends; a restart goes on with what is "
            "under the path then",
        )


def _identity_of(path: str) -> _Identity | None:
    try:
        stat = os.stat(path)  # noqa: PTH116  PERF: as above
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
