"""Balance: how many connections each worker of the HTTP role has, known to all of them.

All workers accept from one listening socket, and the kernel wakes whichever is quickest; a few
keep-alive connections would all end up at one process while the other cores idle. So each
worker writes its number of connections into memory that all share, and one that has more than
the least leaves the next connection to the others for `BACKOFF_S`. If none of them takes it by
then (it is busy, or gone), it takes it all the same.

Invariant: the arbiter makes the memory (`share_counts`) before it forks a worker. Used by
`arbiter` and `accepting`.
"""

from __future__ import annotations

import mmap
from typing import Final

BACKOFF_S: Final = 0.004
_PLACES: Final = 1_024

_counts = memoryview(bytearray(4 * _PLACES)).cast("I")  # of this process alone


def share_counts() -> None:
    """Count in memory that this process shares with those that it forks from now on."""
    global _counts
    _counts = memoryview(mmap.mmap(-1, 4 * _PLACES)).cast("I")


class AcceptBalancer:
    """One worker's view."""

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
        """Tell the others how many connections are open here."""
        _counts[self._number] = connections

    def is_most_loaded(self) -> bool:
        """Whether some other worker has fewer connections than this one."""
        if self._workers < 2:
            return False
        return _counts[self._number] > min(_counts[1:self._workers + 1])
