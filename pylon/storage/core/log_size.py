"""Log size: computes the size of the change log, and the seq to prune to for a given size.

The writer notes each commit (`note`). `count` adds the noted commits, and reads the sizes of the
events that nobody has noted: those of earlier runs, of other programs and of other nodes. A
database finds a size in the row's header, so it reads no image. The object stores one mark for each
page: its last seq, and the bytes of all events up to it. It derives the pruned bytes from the
oldest seq, so pruning steps need not report them.

Invariant: `count` returns at most one page too many bytes. Bounds: a mark for each
`_PAGE_EVENTS` events, `_PAGE_BYTES` or noted commit; `_NOTES` commits that `count` has not seen,
the oldest of which are dropped. `note` is for the writer's thread, the rest for the flusher's.

PERF: to read all events back cost the flusher 1.2 us for each insert, and the writer waited for the
interpreter meanwhile; a note costs 0.1 us.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pylon.storage.events import ChangeEvent

_PAGE_EVENTS: Final = 1_000
_PAGE_BYTES: Final = 32 * 1024
_PAGES: Final = 200  # largest number of pages read in one call; a start has more to read
_NOTES: Final = 16_384
EVENT_BYTES: Final = 128  # approximate size of an event without its images


class LogSize:
    """Measures the change log of one database."""

    __slots__ = ("_counted_to", "_events", "_noted", "_seqs", "_sum_bytes", "_sums")

    def __init__(self) -> None:
        self._seqs: list[int] = []  # the last of each page
        self._sums: list[int] = []  # bytes of all events up to it, pruned ones included
        self._events = 0  # number of events of the last page
        self._sum_bytes = 0
        self._counted_to = 0
        # Of each commit: the head before it, its last seq, the number and bytes of its events.
        self._noted: deque[tuple[int, int, int, int]] = deque(maxlen=_NOTES)

    def note(self, previous: int, events: Sequence[ChangeEvent]) -> None:
        """Note the events of a commit. Args: `previous` is the head before it."""
        size_bytes = EVENT_BYTES * len(events)
        for event in events:
            size_bytes += len(event.data or b"") + len(event.prev_data or b"")
        self._noted.append((previous, events[-1].seq, len(events), size_bytes))

    def count(
        self, oldest_seq: int, head_seq: int, read: Callable[[int, int], list[tuple[int, int]]]
    ) -> int:
        """Count the new events. Return the bytes of all events from `oldest_seq` on.

        Args:
            head_seq: the head of the log, read before this call.
            read: returns the seqs and the sizes of both images of the first events after a seq,
                as many as the second argument says.
        """
        while self._noted:
            previous, last_seq, events, size_bytes = self._noted.popleft()
            if previous == self._counted_to:  # else there are events before it to read
                self._add(last_seq, size_bytes, events)
        if self._counted_to < head_seq:
            self._read_new(read)
        gone = bisect_left(self._seqs, oldest_seq)
        freed_bytes = self._sums[gone - 1] if gone else 0
        if gone > _PAGE_EVENTS:
            del self._seqs[: gone - 1], self._sums[: gone - 1]
        return self._sum_bytes - freed_bytes

    def seq_above(self, max_bytes: int) -> int:
        """Return the seq to prune to, so that about `max_bytes` stay; 0: nothing to prune."""
        if self._sum_bytes <= max_bytes:
            return 0
        return self._seqs[bisect_left(self._sums, self._sum_bytes - max_bytes)]

    def _read_new(self, read: Callable[[int, int], list[tuple[int, int]]]) -> None:
        for _ in range(_PAGES):
            rows = read(self._counted_to, _PAGE_EVENTS)
            for seq, size_bytes in rows:
                self._add(seq, size_bytes + EVENT_BYTES, 1)
            if len(rows) < _PAGE_EVENTS:
                return

    def _add(self, last_seq: int, size_bytes: int, events: int) -> None:
        self._counted_to = last_seq
        self._sum_bytes += size_bytes
        begun_bytes = self._sums[-2] if len(self._sums) > 1 else 0
        is_full = (
            self._events + events > _PAGE_EVENTS or self._sum_bytes - begun_bytes > _PAGE_BYTES
        )
        if not self._seqs or is_full:
            self._seqs.append(last_seq)
            self._sums.append(self._sum_bytes)
            self._events = events
            return
        self._seqs[-1], self._sums[-1] = last_seq, self._sum_bytes
        self._events += events
