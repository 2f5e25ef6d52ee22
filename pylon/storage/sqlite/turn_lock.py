"""Turn lock: batches and steps of maintenance take turns on the writer's connection.

Python's locks are not fair: a thread that releases a lock and acquires it at once wins over a
waiting thread. So `behind` first waits until no batch waits.

Invariant: a batch waits for at most one step of maintenance. Bound: a step waits at most `_LOOK_S`
longer than the batches before it take. Called by `engine`, `maintenance` and `checkpoints`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pylon.errors import WriterUnavailable

_LOOK_S: Final = 0.000_5


class TurnLock:
    """Batches call `acquire` and `release`; steps of maintenance call `behind`."""

    __slots__ = ("_is_wanted", "_lock", "_steps", "release")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps = threading.Lock()  # lets one thread with a step at a time wait for a turn
        self._is_wanted = False
        self.release = self._lock.release

    def acquire(self) -> None:
        """Take the lock for a batch. One thread only."""
        self._is_wanted = True
        self._lock.acquire()
        self._is_wanted = False

    @contextmanager
    def behind(self, timeout_s: float) -> Iterator[None]:
        """Hold the lock for a step of maintenance, after a waiting batch.

        Raises:
            WriterUnavailable: the lock was not free within `timeout_s`.
        """
        until_s = time.monotonic() + timeout_s
        if not self._steps.acquire(timeout=timeout_s):
            raise _too_late(timeout_s)
        try:
            while self._is_wanted and time.monotonic() < until_s:
                time.sleep(_LOOK_S)
            if not self._lock.acquire(timeout=max(0.0, until_s - time.monotonic())):
                raise _too_late(timeout_s)
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._steps.release()


def _too_late(timeout_s: float) -> WriterUnavailable:
    return WriterUnavailable(
        f"the writer did not come to this within {timeout_s:g} s", hint="nothing was changed"
    )
