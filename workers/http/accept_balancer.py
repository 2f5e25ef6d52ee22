"""Accept balancing: shares the number of connections of each HTTP worker with its siblings.

All workers accept from one listening socket, and the kernel wakes the quickest. So a few keep-alive
connections would all end up in one process while other cores idle. Each worker writes its number
of connections into shared memory. A worker with more connections than the least loaded one leaves
the next connection to its siblings for `BACKOFF_S`. If none of them accepts it in that time, the
worker does.

Invariant: the arbiter makes the memory (`share_counts`) before it forks a worker. Used by `arbiter`
and `accepting`.
"""

from __future__ import annotations

import mmap
from typing import Final

BACKOFF_S: Final = 0.004
_PLACES: Final = 1_024

_counts = memoryview(bytearray(4 * _PLACES)).cast("I")  # of this process alone


def share_counts() -> None:
    """Count in memory that this process shares with its later children."""
    global _counts
    _counts = memoryview(mmap.mmap(-1, 4 * _PLACES)).cast("I")


class AcceptBalancer:
    """The balancing of one worker."""

    __slots__ = ("_number", "_workers")

    def __init__(self, number: int, workers: int) -> None:
        """
        Args:
            number: this worker's place, from 1; a successor gets the same.
            workers: how many places are in use.
        """
        self._number = min(number, _PLACES - 1)
        self._workers = min(workers, _PLACES - 1)
        self.report(0)

    def report(self, connections: int) -> None:
        """Publish how many connections are open in this worker."""
        _counts[self._number] = connections

    def is_most_loaded(self) -> bool:
        """Return whether another worker has fewer connections than this one."""
        if self._workers < 2:
            return False
        return _counts[self._number] > min(_counts[1:self._workers + 1])
