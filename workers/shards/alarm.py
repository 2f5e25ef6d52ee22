"""The alarm: no call of an app's code takes longer than its budget.

SIGALRM raises `TickOverrun` into the call: between two steps of Python code, so that one long
call into C (a huge sum, a sort) is cut only when it returns. What is not cut at all is ended by
the supervisor, to which a process that hangs is silent.

Invariants: the alarm is armed only while a guard is entered, and rings in the greenlet that
entered it: if the app's code waits there (it must not), the error is thrown into it, and into
nobody else. Called by `workers.shards.scheduler`.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Final

import gevent
import greenlet

from pylon.realtime.shard import TickOverrun

_AGAIN_S: Final = 0.1  # for code that catches everything


class Alarm:
    """The process's one timer. `install` it before a guard is entered."""

    __slots__ = ("_budget_s", "_depth", "_owner")

    def __init__(self) -> None:
        self._owner: Any = None  # a greenlet
        self._depth = 0
        self._budget_s = 0.0

    def install(self) -> None:
        """Take SIGALRM. Python runs the handler in whatever the main thread is doing."""
        signal.signal(signal.SIGALRM, self._ring)

    def arm(self, budget_s: float) -> None:
        """A call begins. One within another shares its time, and so does one of a greenlet
        that runs while another's call waits."""
        current = greenlet.getcurrent()
        if self._owner is None:
            self._owner, self._depth, self._budget_s = current, 1, budget_s
            signal.setitimer(signal.ITIMER_REAL, budget_s, _AGAIN_S)
        elif self._owner is current:
            self._depth += 1

    def disarm(self) -> None:
        """It has ended."""
        if self._owner is not greenlet.getcurrent():
            return
        self._depth -= 1
        if not self._depth:
            self._owner = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        owner = self._owner
        if owner is None:
            return
        error = TickOverrun(f"the app's code took longer than its budget of {self._budget_s:g} s")
        if owner is greenlet.getcurrent():
            raise error
        gevent.get_hub().loop.run_callback(self._throw, owner, error)

    def _throw(self, owner: Any, error: TickOverrun) -> None:
        if self._owner is owner:  # it has not ended meanwhile
            owner.throw(error)


class Guard:
    """A kind's budget, as the context manager that a shard enters around the app's code."""

    __slots__ = ("_alarm", "_budget_s")

    def __init__(self, alarm: Alarm, budget_s: float) -> None:
        """Args: a `budget_s` of 0 is any time."""
        self._alarm = alarm
        self._budget_s = budget_s

    def __enter__(self) -> None:
        if self._budget_s:
            self._alarm.arm(self._budget_s)

    def __exit__(self, *raised: object) -> None:
        if self._budget_s:
            self._alarm.disarm()
