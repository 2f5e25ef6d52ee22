"""The newest changes, in memory, ready to send (design.md §4, "hot tail").

Invariants: the changes are those with the highest seqs up to `last_seq`, without a hole, in
ascending order; at most `limits.TAIL_EVENTS` of them and about `limits.TAIL_BYTES`. When full,
the oldest go, a tenth at a time, so that a change costs the same whether the tail is full or
not; a cursor below `first_covered` is then answered from the store. Used by `Feed` and the hub.
"""

from __future__ import annotations

from bisect import bisect_right

from pylon import limits
from pylon.changelog.change import Change
from pylon.changelog.event import ChangeBatch
from pylon.errors import InternalError


class Tail:
    """`last_seq`: the head that it is current to. `first_covered`: the smallest cursor whose
    followers are all here."""

    __slots__ = ("_changes", "_max_bytes", "_max_events", "_seqs", "_size_bytes",
                 "first_covered", "last_seq")

    def __init__(
        self,
        last_seq: int = 0,
        max_events: int = limits.TAIL_EVENTS,
        max_bytes: int = limits.TAIL_BYTES,
    ) -> None:
        """An empty tail, current to `last_seq`."""
        self._changes: list[Change] = []
        self._seqs: list[int] = []
        self._size_bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.first_covered = last_seq
        self.last_seq = last_seq

    def __len__(self) -> int:
        return len(self._changes)

    def append(self, batch: ChangeBatch) -> list[Change]:
        """Add a batch; events that are here already are passed over. Returns the new changes.

        Raises:
            InternalError: there is a gap before the batch; fill it from the store first.
        """
        if batch.prev_seq > self.last_seq:
            raise InternalError(
                f"the tail ends at {self.last_seq}, the batch begins after {batch.prev_seq}"
            )
        added = [Change(e) for e in batch.events if e.seq > self.last_seq]
        if added:
            self._changes += added
            self._seqs += [c.seq for c in added]
            self._size_bytes += sum(c.size_bytes for c in added)
            self.last_seq = added[-1].seq
            if len(self._changes) > self._max_events or self._size_bytes > self._max_bytes:
                self._evict()
        return added

    def after(self, seq: int, limit: int | None = None) -> list[Change] | None:
        """The changes above `seq`, the first `limit` of them; None if `seq` is not covered."""
        if seq < self.first_covered:
            return None
        start = bisect_right(self._seqs, seq)
        return self._changes[start : None if limit is None else start + limit]

    def advance(self, head: int) -> None:
        """The head has moved without an event (an epoch)."""
        self.last_seq = max(self.last_seq, head)

    def _evict(self) -> None:
        surplus = max(0, len(self._changes) - self._max_events)
        count = min(len(self._changes), surplus + self._max_events // 10)
        freed = sum(c.size_bytes for c in self._changes[:count])
        while self._size_bytes - freed > self._max_bytes and count < len(self._changes):
            freed += self._changes[count].size_bytes
            count += 1
        if count == 0:
            return
        self.first_covered = self._seqs[count - 1]
        del self._changes[:count]
        del self._seqs[:count]
        self._size_bytes -= freed
