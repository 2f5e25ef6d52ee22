"""Admission: a fixed number of slots that callers share, so that none of them can take them all.

A caller (a subject of `pylon.rates`) holds at most `per_caller` slots. Without a free slot a
request waits in its caller's queue. A free slot goes to the waiting caller that holds the fewest
slots; equal callers take turns. So a caller with a hundred requests delays another caller's only
request by its requests in slots, and not by those in its queue.

Invariants: each `enter` that returned True has one `leave`. No slot stays free while a request
waits that may have it. Bounds: `limits.ADMISSION_WAITING_PER_CALLER` for a caller and
`limits.ADMISSION_WAITING` in all; beyond them `enter` raises 503 with Retry-After. Metrics:
pylon_admission_queue_length, pylon_admission_refused_total.

Used from one thread: its greenlets, and callbacks of its hub. Called by the reader pool, the
decoding of large bodies and `workers.merge_sandbox`.
"""

from __future__ import annotations

from collections import deque

from gevent.event import Event

from pylon import limits
from pylon.errors import Unavailable
from pylon.metrics.families import ADMISSION_REFUSED, ADMISSION_WAITING


class _Waiter:
    __slots__ = ("event", "is_admitted")

    def __init__(self) -> None:
        self.event = Event()
        self.is_admitted = False


class Admission:
    """The slots of one shared resource."""

    __slots__ = ("_free", "_held_by_caller", "_per_caller", "_queue_by_caller", "_refused",
                 "_waiting", "_waiting_gauge")

    def __init__(self, name: str, slots: int, per_caller: int) -> None:
        """
        Args:
            name: the label of its metrics.
        """
        self._free = slots
        self._per_caller = per_caller
        self._held_by_caller: dict[str, int] = {}
        self._queue_by_caller: dict[str, deque[_Waiter]] = {}  # in turn; none is empty
        self._waiting = 0
        self._waiting_gauge = ADMISSION_WAITING.labels(name)
        self._refused = ADMISSION_REFUSED.labels(name)

    def enter(self, caller: str, timeout_s: float) -> bool:
        """Wait for a slot; return False if the caller got none in time. `leave` returns the slot.

        Raises:
            Unavailable: too many requests wait already.
        """
        held = self._held_by_caller.get(caller, 0)
        if self._free and held < self._per_caller:
            self._free -= 1
            self._held_by_caller[caller] = held + 1
            return True
        queue = self._queue_by_caller.get(caller)
        if (
            self._waiting >= limits.ADMISSION_WAITING
            or (queue is not None and len(queue) >= limits.ADMISSION_WAITING_PER_CALLER)
        ):
            self._refused.inc()
            raise Unavailable(
                "Too many requests of this client wait for the same resource",
                hint="Try again in a moment, and send fewer of them at once",
            )
        waiter = _Waiter()
        if queue is None:
            queue = self._queue_by_caller[caller] = deque()
        queue.append(waiter)
        self._count(1)
        try:
            waiter.event.wait(timeout_s)
        except BaseException:
            if waiter.is_admitted:
                self.leave(caller)
            else:
                self._remove(caller, waiter)
            raise
        if not waiter.is_admitted:
            self._remove(caller, waiter)
        return waiter.is_admitted

    def leave(self, caller: str) -> None:
        """Return a slot. Does not switch greenlets."""
        held = self._held_by_caller[caller] - 1
        if held:
            self._held_by_caller[caller] = held
        else:
            del self._held_by_caller[caller]
        self._free += 1
        while self._free and (waiting := self._next_caller()) is not None:
            self._admit(waiting)

    def _next_caller(self) -> str | None:
        """Return the waiting caller that gets the next slot; None if none may."""
        held_slots = self._held_by_caller.get
        found: str | None = None
        fewest = self._per_caller
        for caller in self._queue_by_caller:
            held = held_slots(caller, 0)
            if held < fewest:
                found, fewest = caller, held
                if not held:
                    break
        return found

    def _admit(self, caller: str) -> None:
        queue = self._queue_by_caller.pop(caller)
        waiter = queue.popleft()
        if queue:
            self._queue_by_caller[caller] = queue  # after the other callers
        self._count(-1)
        self._free -= 1
        self._held_by_caller[caller] = self._held_by_caller.get(caller, 0) + 1
        waiter.is_admitted = True
        waiter.event.set()

    def _remove(self, caller: str, waiter: _Waiter) -> None:
        queue = self._queue_by_caller[caller]
        queue.remove(waiter)
        if not queue:
            del self._queue_by_caller[caller]
        self._count(-1)

    def _count(self, change: int) -> None:
        self._waiting += change
        self._waiting_gauge.inc(change)
