"""Log size: the bytes of the change log, and the seq to prune to so that it has fewer.

`count` reads the sizes of the events that are new since the last call, in pages, on the flusher's
own connection; SQLite finds a size in the row's header, so no image is read. Of each page one mark
is kept: its last seq, and the bytes of all events up to it. The oldest seq tells what was pruned,
so a pruning step need not report the bytes that it freed.

Invariant: `total_bytes` is too large by at most one page. Bound: a mark for each
`_PAGE_EVENTS` events or `_PAGE_BYTES`. Called by the flusher's thread.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

import apsw

_PAGE_EVENTS: Final = 1_000
_PAGE_BYTES: Final = 32 * 1024
_PAGES: Final = 200  # that are read in one call; a start has more to read
_SIZES: Final = (
    "SELECT seq, ifnull(octet_length(data), 0) + ifnull(octet_length(prev_data), 0) "
    "FROM _pylon_change_log WHERE seq > ? ORDER BY seq LIMIT ?"
)
EVENT_BYTES: Final = 128  # of an event beside its images, about


class LogSize:
    """The size of the change log of one database."""

    __slots__ = ("_conn", "_counted_to", "_events", "_seqs", "_sum_bytes", "_sums")

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn
        self._seqs: list[int] = []  # the last of each page
        self._sums: list[int] = []  # bytes of all events up to it, those that are gone included
        self._events = 0  # of the last page
        self._sum_bytes = 0
        self._counted_to = 0

    def count(self, oldest_seq: int) -> int:
        """Read what is new; the bytes of all events from `oldest_seq` on."""
        for _ in range(_PAGES):
            found = self._conn.execute(_SIZES, (self._counted_to, _PAGE_EVENTS))
            rows: list[Any] = found.fetchall()
            for seq, size_bytes in rows:
                self._add(seq, size_bytes + EVENT_BYTES)
            if len(rows) < _PAGE_EVENTS:
                break
        gone = bisect_left(self._seqs, oldest_seq)
        freed_bytes = self._sums[gone - 1] if gone else 0
        if gone > _PAGE_EVENTS:
            del self._seqs[: gone - 1], self._sums[: gone - 1]
        return self._sum_bytes - freed_bytes

    def seq_above(self, most_bytes: int) -> int:
        """The seq up to which events must go so that about `most_bytes` stay; 0: none must."""
        if self._sum_bytes <= most_bytes:
            return 0
        return self._seqs[bisect_left(self._sums, self._sum_bytes - most_bytes)]

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
