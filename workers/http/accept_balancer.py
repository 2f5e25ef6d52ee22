"""Accept balancing: spreads new connections evenly over the HTTP workers.

All workers accept from one listening socket, and the first worker that runs gets a new connection.
So a few keep-alive connections would all end up in one process while other cores idle. Therefore
each worker writes its number of connections into shared memory. A worker with more connections than
the least loaded one leaves a new connection to its siblings for `BACKOFF_S`. If none of them
accepts it in that time, the worker does.

Invariant: the arbiter makes the shared memory (`share_counts`) before it forks a worker. Bound:
`_WORKERS_MAX` workers; those above share a count. Called by `arbiter` and `accepting`.
"""

from __future__ import annotations

import mmap
from typing import Final

BACKOFF_S: Final = 0.004
_WORKERS_MAX: Final = 1_024
_COUNT_BYTES: Final = 4

# By number of the worker. In private memory until `share_counts`.
_counts = memoryview(bytearray(_COUNT_BYTES * _WORKERS_MAX)).cast("I")


def share_counts() -> None:
    """Count in memory that this process shares with its later children."""
    global _counts
    _counts = memoryview(mmap.mmap(-1, _COUNT_BYTES * _WORKERS_MAX)).cast("I")


class AcceptBalancer:
    """The balancing of one worker."""

    __slots__ = ("_number", "_workers")

    def __init__(self, number: int, workers: int) -> None:
        """
        Args:
            number: the number of this worker, from 1; a successor gets the same number.
            workers: the number of workers.
        """
        self._number = min(number, _WORKERS_MAX - 1)
        self._workers = min(workers, _WORKERS_MAX - 1)
        self.report(0)

    def report(self, connections: int) -> None:
        """Publish how many connections are open in this worker."""
        _counts[self._number] = connections

    def has_less_loaded_sibling(self) -> bool:
        """Return whether another worker has fewer connections than this one."""
        if self._workers < 2:
            return False
        return _counts[self._number] > min(_counts[1:self._workers + 1])
