"""Transports and back-off: which way to try next, and when.

A client tries WebSocket, at the address that the server names and then on the HTTP port. After two
failures to open it takes server-sent events, after two more it polls. WebSocket is tried again
after 5 minutes. If polling finds no server either, the network is down, and the next try is a
WebSocket again.

The pauses between tries are random, between 0 and a bound that doubles from 0.5 s to 30 s. A
connection that stayed for 5 s resets the bound. Called by `links` and `changes`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import Enum
from typing import Final

WEBSOCKET_AGAIN_S: Final = 300.0
STABLE_S: Final = 5.0
_FAILURES: Final = 2
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0


class Transport(Enum):
    """How changes reach the client."""

    WEBSOCKET = "websocket"
    EVENTS = "events"
    POLL = "poll"


class Ladder:
    """The state of one connection that is meant to last."""

    def __init__(
        self, now_s: Callable[[], float] = time.monotonic,
        random_between: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._now_s = now_s
        self._random_between = random_between
        self.transport = Transport.WEBSOCKET
        self.failures = 0
        self._websocket_at_s: float | None = None
        self._pauses = 0
        self._opened_at_s: float | None = None

    @property
    def is_websocket_due(self) -> bool:
        """Return whether a lesser transport should give way to another try of WebSocket."""
        return self._websocket_at_s is not None and self._now_s() >= self._websocket_at_s

    def next_transport(self) -> Transport:
        """Return the transport of the next try."""
        if self.is_websocket_due:
            self._websocket_at_s = None
            self.transport, self.failures = Transport.WEBSOCKET, _FAILURES - 1
        return self.transport

    def note_opened(self) -> None:
        """The transport works."""
        self.failures = 0
        self._opened_at_s = self._now_s()

    def note_ended(self) -> None:
        """A connection that had opened has ended."""
        opened_at_s, self._opened_at_s = self._opened_at_s, None
        if opened_at_s is not None and self._now_s() - opened_at_s >= STABLE_S:
            self._pauses = 0

    def note_failed(self) -> None:
        """The transport did not open."""
        self.failures += 1
        if self.transport is Transport.POLL:
            self.transport, self.failures = Transport.WEBSOCKET, 0
            self._websocket_at_s = None
        elif self.failures >= _FAILURES:
            self.failures = 0
            if self.transport is Transport.WEBSOCKET:
                self.transport = Transport.EVENTS
                self._websocket_at_s = self._now_s() + WEBSOCKET_AGAIN_S
            else:
                self.transport = Transport.POLL

    def pause_s(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        most_s = min(_FIRST_PAUSE_S * 2**self._pauses, _LONGEST_PAUSE_S)
        self._pauses = min(self._pauses + 1, 16)
        return self._random_between(0.0, most_s)
