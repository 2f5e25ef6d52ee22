"""The tail of the change log: its newest changes in memory, ready to send (design.md §4).

Invariants: the tail has the changes with the highest seqs up to `last_seq`, without a gap, in
ascending order. After `relate`, `newer` of each change leads to the newest one of its row. Bounds:
`limits.TAIL_EVENTS` and about `limits.TAIL_BYTES`. A full tail drops its oldest tenth at once, so
that the cost of a change does not depend on how full it is. The store then serves cursors below
`first_covered`. Called by `pylon.changelog.feed` and the hub.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from pylon import limits
from pylon.changelog.change import Change, relate, sizes_bytes
from pylon.errors import InternalError
from pylon.storage.events import ChangeBatch


class Tail:
    """The newest changes up to the head `last_seq`.

    `first_covered` is the smallest cursor whose following changes are all in the tail.
    """

    __slots__ = ("_changes", "_ends", "_freed_bytes", "_max_bytes", "_max_events", "_newest",
                 "_related", "_seqs", "first_covered", "last_seq")

    def __init__(
        self,
        last_seq: int = 0,
        max_events: int = limits.TAIL_EVENTS,
        max_bytes: int = limits.TAIL_BYTES,
    ) -> None:
        """Make an empty tail at the head `last_seq`."""
        self._changes: list[Change] = []
        self._seqs: list[int] = []
        # The bytes of all changes up to and with each one, also of those that were dropped.
        self._ends: list[int] = []
        self._freed_bytes = 0
        self._newest: dict[tuple[str, str], Change] = {}  # by entity and row id
        self._related = 0  # the number of changes that `relate` has handled
        self._max_events = max_events
        self._max_bytes = max_bytes
        self.first_covered = last_seq
        self.last_seq = last_seq

    def __len__(self) -> int:
        return len(self._changes)

    def append(self, batch: ChangeBatch) -> list[Change]:
        """Add a batch, without the events that the tail has already; return the new changes.

        Raises:
            InternalError: events before the batch are missing; read them from the store first.
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

    def changes_after(
        self, seq: int, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Change] | None:
        """Return the changes above `seq`; None if `seq` is below `first_covered`.

        Args:
            limit: the largest number of changes.
            max_bytes: about the largest size of all; the first change is returned in any case.
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
        """Set `newer` of each change that a later one of its row follows.

        `append` does not do it, because only callers that check rows need it.
        """
        if self._related < len(self._changes):
            relate(self._changes[self._related :], self._newest)
            self._related = len(self._changes)

    def advance(self, head: int) -> None:
        """Move the head without an event (a new epoch)."""
        self.last_seq = max(self.last_seq, head)

    def _evict(self) -> None:
        held = len(self._changes)
        surplus = max(0, held - self._max_events)
        count = min(held, surplus + self._max_events // 10)
        excess = self._ends[-1] - self._max_bytes
        if excess > self._freed_bytes:  # drop enough changes that the rest fits
            count = max(count, bisect_left(self._ends, excess) + 1)
        self.first_covered = self._seqs[count - 1]
        self._freed_bytes = self._ends[count - 1]
        self._forget(count)
        del self._changes[:count]
        del self._seqs[:count]
        del self._ends[:count]

    def _forget(self, count: int) -> None:
        """Remove the first `count` changes from `_newest`."""
        for change in self._changes[: min(count, self._related)]:
            key = (change.event.entity, change.event.row_id)
            if self._newest.get(key) is change:
                del self._newest[key]
        self._related = max(0, self._related - count)
