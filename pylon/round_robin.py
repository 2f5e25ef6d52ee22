"""Round robin: long answers are made piece by piece, one piece in each turn of the event loop.

An answer of many pages (a snapshot, an export) waits here before each piece. Between two pieces
the loop looks at its sockets. So other requests wait for at most one piece, however many such
answers are under way. Callers (subjects of `pylon.rates`) have their turns one after the other.

Invariants: one piece is begun in each turn of the loop. An answer gets its turn after at most one
piece of each other caller, and of each earlier answer to its own caller. Bound: an answer under way
waits once, so as many wait as there are connections. Metric: pylon_streamed_responses_waiting.

One thread. Called by the API.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.event import Event

from pylon.metrics.families import STREAMED_WAITING


class RoundRobin:
    """One for each worker process."""

    __slots__ = ("_is_taken", "_queue_by_caller", "_timer")

    def __init__(self) -> None:
        self._queue_by_caller: dict[str, deque[Event]] = {}  # in turn; none is empty
        self._is_taken = False  # this turn of the loop has had its piece
        self._timer: Any = None  # of the thread that uses it

    def wait(self, caller: str) -> None:
        """Wait until the next piece may be made."""
        if not self._is_taken:
            self._take()
            return
        turn = Event()
        self._queue_by_caller.setdefault(caller, deque()).append(turn)
        STREAMED_WAITING.inc()
        try:
            turn.wait()
        except BaseException:  # killed: the turn, if it had come, passes
            queue = self._queue_by_caller.get(caller)
            if queue is not None and turn in queue:
                queue.remove(turn)
                if not queue:
                    del self._queue_by_caller[caller]
            raise
        finally:
            STREAMED_WAITING.dec()

    def paced(self, pieces: Iterator[bytes], caller: str) -> Iterator[bytes]:
        """The same pieces, each of which waits for its turn before it is made."""
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
        # A timer fires after the loop has looked at its sockets; a callback may fire before.
        self._timer.start(self._next_turn)

    def _next_turn(self) -> None:
        """Runs in the hub."""
        self._is_taken = False
        caller = next(iter(self._queue_by_caller), None)
        if caller is None:
            return
        queue = self._queue_by_caller.pop(caller)
        turn = queue.popleft()
        if queue:
            self._queue_by_caller[caller] = queue  # behind the others
        self._take()
        turn.set()
