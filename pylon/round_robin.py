"""Round robin: long responses are made piece by piece, one piece in each turn of the event loop.

A response of many pages (a snapshot, an export) waits here before each piece. Between two pieces
the loop polls its sockets. So other requests wait for at most one piece, however many such
responses are in progress. Callers (subjects of `pylon.rates`) take turns.

Invariants: at most one piece begins in each turn of the loop. A response waits for at most one
piece of each other caller, and of each earlier response to its own caller. Bound: each response in
progress waits once, so the queue is not longer than the number of connections. Metric:
pylon_streamed_responses_waiting.

Used from one thread. Called by the API.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.event import Event

from pylon.metrics.families import STREAMED_WAITING


class RoundRobin:
    """The queue of responses that wait for their turn. One for each worker process."""

    __slots__ = ("_is_taken", "_queue_by_caller", "_timer")

    def __init__(self) -> None:
        self._queue_by_caller: dict[str, deque[Event]] = {}  # in turn; none is empty
        self._is_taken = False  # a piece has begun in this turn of the loop
        self._timer: Any = None  # made in the thread that uses it

    def wait(self, caller: str) -> None:
        """Wait until the next piece may begin."""
        if not self._is_taken:
            self._take()
            return
        turn = Event()
        self._queue_by_caller.setdefault(caller, deque()).append(turn)
        STREAMED_WAITING.inc()
        try:
            turn.wait()
        except BaseException:  # killed: a turn that it had got is unused
            queue = self._queue_by_caller.get(caller)
            if queue is not None and turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._queue_by_caller[caller]
            raise
        finally:
            STREAMED_WAITING.dec()

    def paced(self, pieces: Iterator[bytes], caller: str) -> Iterator[bytes]:
        """Yield the same pieces; wait for a turn before each is made."""
        while True:
            self.wait(caller)
            piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _take(self) -> None:
        self._is_taken = True
        if self._timer is None:
            self._timer = gevent.get_hub().loop.timer(0.0)
        # A timer fires after the loop has polled its sockets; a callback may fire before.
        self._timer.start(self._next_turn)

    def _next_turn(self) -> None:
        """Give the next caller its turn. Runs in the hub."""
        self._is_taken = False
        caller = next(iter(self._queue_by_caller), None)
        if caller is None:
            return
        queue = self._queue_by_caller.pop(caller)
        turn = queue.popleft()
        if queue:
            self._queue_by_caller[caller] = queue  # after the other callers
        self._take()
        turn.set()
