"""Noted commits: the time and the seq of each commit of the writer, until the capture takes them.

SQLite calls `note` inside of COMMIT, with the last frame of the transaction. The engine calls
`settle` after it, with the head of the change log. So a commit without a seq is one whose batch has
not returned.

Invariant: bounded by `limits.SHIPPED_COMMITS`; the oldest go first. A commit that is not noted,
because another program made it or the server was killed, gets the time of its capture. `note` and
`settle` are called by whoever holds the writer's turn, `take` by the capture.
"""

from __future__ import annotations

from collections import deque

from pylon import limits
from pylon.clock import Clock
from pylon.storage.shipping.segment import Commit


class _Noted:
    """One commit; `seq` is -1 until it is settled."""

    __slots__ = ("at_ms", "frame", "seq")

    def __init__(self, frame: int, at_ms: int) -> None:
        self.frame = frame
        self.at_ms = at_ms
        self.seq = -1


class NotedCommits:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._noted: deque[_Noted] = deque(maxlen=limits.SHIPPED_COMMITS)

    def note(self, frame: int) -> None:
        """Note a commit with this last frame."""
        self._noted.append(_Noted(frame, self._clock.wall_ns() // 1_000_000))

    def settle(self, head: int) -> None:
        """Give the newest commits their seq."""
        for commit in reversed(self._noted):
            if commit.seq >= 0:
                break
            commit.seq = head

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

    def take(
        self, frames: list[int], seq: int, at_ms: int
    ) -> list[Commit]:
        """Return the commits with these last frames, and forget them.

        Args:
            seq: for commits before the first noted one.
            at_ms: for commits that are not noted.
        """
        taken: list[Commit] = []
        for frame in frames:
            while self._noted and self._noted[0].frame < frame:
                self._noted.popleft()
            if self._noted and self._noted[0].frame == frame:
                noted = self._noted.popleft()
                seq = max(seq, noted.seq)
                taken.append(Commit(frame, seq, noted.at_ms))
            else:
                taken.append(Commit(frame, seq, at_ms))
        return taken

    def clear(self) -> None:
        """Forget all commits."""
        self._noted.clear()
