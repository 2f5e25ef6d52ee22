"""The newest changes, in memory, ready to send (design.md §4, "hot tail").

Invariants: the changes are those with the highest seqs up to `last_seq`, without a hole, in
ascending order; at most `limits.TAIL_EVENTS` of them and about `limits.TAIL_BYTES`. When full,
the oldest go, a tenth at a time, so that a change costs the same whether the tail is full or
not; a cursor below `first_covered` is then answered from the store. After `relate`, each change
leads to the newest one of its row. Used by `Feed` and the hub.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from pylon import limits
from pylon.changelog.change import Change, relate, sizes_bytes
from pylon.errors import InternalError
from pylon.storage.events import ChangeBatch


class Tail:
    """`last_seq`: the head that it is current to. `first_covered`: the smallest cursor whose
    followers are all here."""

    __slots__ = ("_changes", "_ends", "_freed_bytes", "_max_bytes", "_max_events", "_newest",
                 "_related", "_seqs", "first_covered", "last_seq")

    def __init__(
        self,
        last_seq: int = 0,
        max_events: int = limits.TAIL_EVENTS,
        max_bytes: int = limits.TAIL_BYTES,
    ) -> None:
        """An empty tail, current to `last_seq`."""
        self._changes: list[Change] = []
        self._seqs: list[int] = []
        # How many bytes there have been up to and with each change, those that are gone too.
        self._ends: list[int] = []
        self._freed_bytes = 0
        self._newest: dict[tuple[str, str], Change] = {}  # of each row, by entity and id
        self._related = 0  # so many of the changes are in `_newest`, or lead to one that is
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
        events = batch.events
        if events and events[0].seq <= self.last_seq:
            events = [e for e in events if e.seq > self.last_seq]
        if not events:
            return []
        added = list(map(Change, events))
        sizes = sizes_bytes(events)
        sizes[0] += self._ends[-1] if self._ends else self._freed_bytes
        self._changes += added
        self._seqs += [e.seq for e in events]
        self._ends += accumulate(sizes)
        self.last_seq = self._seqs[-1]
        if (
            len(self._changes) > self._max_events
            or self._ends[-1] - self._freed_bytes > self._max_bytes
        ):
            self._evict()
        return added

    def after(
        self, seq: int, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Change] | None:
        """The changes above `seq`; None if `seq` is not covered.

        Args:
            limit: no more than this many.
            max_bytes: no more than fit into about as much, and one at least.
        """
        if seq < self.first_covered:
            return None
        start = bisect_right(self._seqs, seq)
        end = len(self._seqs) if limit is None else min(start + limit, len(self._seqs))
        if max_bytes is not None and start < end:
            begun = self._ends[start - 1] if start else self._freed_bytes
            if self._ends[end - 1] - begun > max_bytes:
                end = max(start + 1, bisect_right(self._ends, begun + max_bytes, start, end))
        return self._changes[start:end]

    def relate(self) -> None:
        """Let each change lead to the newer ones of its row (`Change.newest`).

        Only callers that judge rows need it, so appending does not pay for it.
        """
        if self._related < len(self._changes):
            relate(self._changes[self._related :], self._newest)
            self._related = len(self._changes)

    def advance(self, head: int) -> None:
        """The head has moved without an event (an epoch)."""
        self.last_seq = max(self.last_seq, head)

    def _evict(self) -> None:
        held = len(self._changes)
        surplus = max(0, held - self._max_events)
        count = min(held, surplus + self._max_events // 10)
        excess = self._ends[-1] - self._max_bytes
        if excess > self._freed_bytes:  # at least so many that the rest fits
            count = max(count, bisect_left(self._ends, excess) + 1)
        self.first_covered = self._seqs[count - 1]
        self._freed_bytes = self._ends[count - 1]
        self._forget(count)
        del self._changes[:count]
        del self._seqs[:count]
        del self._ends[:count]

    def _forget(self, count: int) -> None:
        """The first `count` changes are about to go."""
        for change in self._changes[: min(count, self._related)]:
            key = (change.event.entity, change.event.row_id)
            if self._newest.get(key) is change:
                del self._newest[key]
        self._related = max(0, self._related - count)
