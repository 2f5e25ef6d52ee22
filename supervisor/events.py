"""What wakes the main loop, and who is told how a drain goes.

Signal handlers and threads only put an event on the queue; the main loop does the work.
The queue needs no bound of its own: signals merge in the kernel, control connections are
limited, and a role reports a change only when it changes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any


@dataclass(frozen=True, slots=True)
class SignalArrived:
    number: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Through the control socket."""


@dataclass(frozen=True, slots=True)
class RolesChanged:
    """A worker became ready, or ceased to be."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A thread that the supervisor cannot do without has failed."""

    error: BaseException


Event = SignalArrived | StopAsked | RolesChanged | Broken
Events = SimpleQueue[Event]
Line = dict[str, Any]


class DrainProgress:
    """Hands every step of a drain to all who listen, those before them included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: list[Line] = []
        self._listeners: list[SimpleQueue[Line]] = []

    def say(self, **line: Any) -> None:
        """Tell everyone. The last line has ``done=True``."""
        with self._lock:
            self._said.append(line)
            for listener in self._listeners:
                listener.put(line)

    def listen(self) -> SimpleQueue[Line]:
        """A queue that gets each line, from the first on."""
        listener: SimpleQueue[Line] = SimpleQueue()
        with self._lock:
            for line in self._said:
                listener.put(line)
            self._listeners.append(listener)
        return listener
