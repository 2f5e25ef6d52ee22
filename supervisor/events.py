"""Events of the supervisor's main loop, and the progress of a drain.

Signal handlers and threads only put an event into the queue; the main loop handles it.
`Progress` gives the steps of a drain or a reload to control connections.

Bound: the queue needs none of its own. The kernel merges signals, the number of control connections
is limited, one change at a time is asked for, and a `RolesChanged` comes only when a readiness
changes. Called by `loop`, `drain` and
the threads of the supervisor.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from supervisor.generations import Change


class SignalArrived(msgspec.Struct, frozen=True):
    number: int


class StopAsked(msgspec.Struct, frozen=True):
    """A control connection requests a stop."""


class ChangeAsked(msgspec.Struct, frozen=True):
    """A reload or a scaling was checked, and is to be carried out."""

    change: Change


class RolesChanged(msgspec.Struct, frozen=True):
    """A worker became ready, or ceased to be."""


class Broken(msgspec.Struct, frozen=True):
    """A thread that the supervisor cannot do without has failed."""

    error: BaseException


Event = SignalArrived | StopAsked | ChangeAsked | RolesChanged | Broken
Events = SimpleQueue[Event]
Line = dict[str, Any]


class Progress:
    """Gives every step to all listeners; a late one gets the earlier steps first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published: list[Line] = []
        self._listeners: list[SimpleQueue[Line]] = []

    def publish(self, **line: Any) -> None:
        """Give a line to all listeners. The last line has ``done=True``."""
        with self._lock:
            self._published.append(line)
            for listener in self._listeners:
                listener.put(line)

    def listen(self) -> SimpleQueue[Line]:
        """Return a queue that gets each line, from the first on."""
        listener: SimpleQueue[Line] = SimpleQueue()
        with self._lock:
            for line in self._published:
                listener.put(line)
            self._listeners.append(listener)
        return listener
