"""Log size: computes the size of the change log, and the seq to prune to for a given size.

`count` reads the sizes of the events added since the last call, in pages. A database finds a size
in the row's header, so it reads no image. The object stores one
mark for each page: its last seq, and the bytes of all events up to it. It derives the pruned bytes
from the oldest seq, so pruning steps need not report them.

Invariant: `count` returns at most one page too many bytes. Bound: a mark for each
`_PAGE_EVENTS` events or `_PAGE_BYTES`. Called by the flusher's thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

_PAGE_EVENTS: Final = 1_000
_PAGE_BYTES: Final = 32 * 1024
_PAGES: Final = 200  # largest number of pages read in one call; a start has more to read
EVENT_BYTES: Final = 128  # approximate size of an event without its images


class LogSize:
    """Measures the change log of one database."""

    __slots__ = ("_counted_to", "_events", "_seqs", "_sum_bytes", "_sums")

    def __init__(self) -> None:
        self._seqs: list[int] = []  # the last of each page
        self._sums: list[int] = []  # bytes of all events up to it, pruned ones included
        self._events = 0  # number of events of the last page
        self._sum_bytes = 0
        self._counted_to = 0

    def count(
        self, oldest_seq: int, read: Callable[[int, int], list[tuple[int, int]]]
    ) -> int:
        """Read the new events. Return the bytes of all events from `oldest_seq` on.

        Args:
            read: returns the seqs and the sizes of both images of the first events after a seq,
                as many as the second argument says.
        """
        for _ in range(_PAGES):
            rows = read(self._counted_to, _PAGE_EVENTS)
            for seq, size_bytes in rows:
                self._add(seq, size_bytes + EVENT_BYTES)
            if len(rows) < _PAGE_EVENTS:
                break
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

    def _add(self, seq: int, size_bytes: int) -> None:
        self._counted_to = seq
        self._sum_bytes += size_bytes
        begun_bytes = self._sums[-2] if len(self._sums) > 1 else 0
        is_full = self._events >= _PAGE_EVENTS or self._sum_bytes - begun_bytes > _PAGE_BYTES
        if not self._seqs or is_full:
            self._seqs.append(seq)
            self._sums.append(self._sum_bytes)
            self._events = 1
            return
        self._seqs[-1], self._sums[-1] = seq, self._sum_bytes
        self._events += 1
