"""Noted commits: the time and the seq of each commit of the writer, until the capture takes them.

SQLite calls `note` inside of COMMIT, with the last frame of the transaction. The engine calls
`settle` after it and before any answer, with the head of the change log. `settle` also puts the
commit into a mapped file in the spool: after kill -9 the next start reads it (`resume`). A commit
without a seq is one whose batch has not returned.

Invariant: bounded by `limits.SHIPPED_COMMITS`; the oldest go first, and a full file takes no more.
The file begins anew with the WAL (`begin`). A commit that is not noted, because another program
made it or the machine lost its power, gets the time of its capture. `note` and `settle` are called
by whoever holds the writer's turn, `take` by the capture.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from pathlib import Path
from typing import Final

from pylon import limits
from pylon.clock import Clock
from pylon.storage.shipping.segment import Commit

_RECORD: Final = struct.Struct(">QQQ")  # frame, seq, Unix time in ms
_END: Final = struct.Struct(">Q")  # no frame
_NO_FRAME: Final = _END.pack(0)
_FILE_BYTES: Final = limits.SHIPPED_COMMITS * _RECORD.size + _END.size


class _Noted:
    """One commit; `seq` is -1 until it is settled."""

    __slots__ = ("at_ms", "frame", "seq")

    def __init__(self, frame: int, at_ms: int, seq: int = -1) -> None:
        self.frame = frame
        self.at_ms = at_ms
        self.seq = seq


class NotedCommits:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._noted: deque[_Noted] = deque(maxlen=limits.SHIPPED_COMMITS)
        self._file: mmap.mmap | None = None
        self._end = 0  # of its records

    def open(self, path: Path) -> None:
        """Open the file of the spool.

        Raises:
            OSError
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _FILE_BYTES)
            self._file = mmap.mmap(fd, _FILE_BYTES)
        finally:
            os.close(fd)

    def resume(self) -> None:
        """Read what the last run has noted and not captured."""
        if self._file is None:
            return
        noted = []
        for frame, seq, at_ms in _RECORD.iter_unpack(self._file[: -_END.size]):
            if not frame:
                break
            noted.append(_Noted(frame, at_ms, seq))
        self._noted.extendleft(reversed(noted))
        self._end = len(noted) * _RECORD.size

    def begin(self) -> None:
        """Begin the file anew. Everything noted so far is captured, or will never be."""
        self._end = 0
        if self._file is not None:
            self._file[: _END.size] = _NO_FRAME

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def note(self, frame: int) -> None:
        """Note a commit with this last frame."""
        self._noted.append(_Noted(frame, self._clock.wall_ns() // 1_000_000))

    def settle(self, head: int) -> None:
        """Give the newest commits their seq."""
        settled = b""
        for commit in reversed(self._noted):
            if commit.seq >= 0:
                break
            commit.seq = head
            settled = _RECORD.pack(commit.frame, head, commit.at_ms) + settled
        end = self._end + len(settled)
        if settled and self._file is not None and end + _END.size <= _FILE_BYTES:
            # PERF: memory of the kernel, not a write: a write to a file that grows waits for the
            # journal of the file system, which the syncs of segments keep busy.
            self._file[self._end : end + _END.size] = settled + _NO_FRAME
            self._end = end

    def settled_frame(self, frame: int, captured: int) -> int:
        """Return the last frame up to `frame` before which every commit is settled.

        Args:
            captured: the last captured frame, 0 in a new life of the WAL.
        """
        before = captured
        for commit in list(self._noted):
            if commit.seq < 0:
                return min(frame, before)
            if commit.frame <= frame:
                before = commit.frame
        return frame

    def take(self, frames: list[int], seq: int, head: int, at_ms: int) -> list[Commit]:
        """Return the commits with these last frames, and forget them.

        Args:
            seq: the least that a commit has.
            head: the seq of commits that are not noted: of the newest commit of all.
            at_ms: the time of commits that are not noted.
        """
        taken: list[Commit] = []
        for frame in frames:
            while self._noted and self._noted[0].frame < frame:
                self._noted.popleft()
            if self._noted and self._noted[0].frame == frame:
                noted = self._noted.popleft()
                taken.append(Commit(frame, max(seq, noted.seq), noted.at_ms))
            else:
                taken.append(Commit(frame, max(seq, head), at_ms))
            seq = taken[-1].seq
        return taken

    def clear(self) -> None:
        """Forget all commits."""
        self._noted.clear()
