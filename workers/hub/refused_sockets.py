"""Refused sockets: connections that end with an HTTP response.

The response goes out in one piece, because it fits into the buffer of a fresh socket. Then each
connection lingers (`workers.net.linger`) until its client closes it.

Bounds: limits.SOCKET_CLOSE_S and `_LINGER_BYTES` of input for a connection; limits.SOCKETS_PENDING
connections, above which the oldest is closed. Invariant: nothing here blocks. Used by
`workers.hub.acceptor`.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.clock import Clock
from pylon.runtime.raw_socket import RawSocket
from workers.net.linger import LingeringClose
from workers.net.poller import READ, poller

_LINGER_BYTES: Final = 1024 * 1024


class RefusedSocket:
    """A connection that lingers (`workers.net.poller.Watched`)."""

    __slots__ = ("_group", "linger", "raw")

    def __init__(self, group: RefusedSockets, raw: RawSocket, linger: LingeringClose) -> None:
        self._group = group
        self.linger = linger
        self.raw = raw

    def on_ready(self, events: int) -> None:
        try:
            self.linger.discard()
        except OSError:
            self.abort()

    def abort(self) -> None:
        self._group.end(self)


class RefusedSockets:
    """The refused connections of one worker."""

    __slots__ = ("_clock", "_refused")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._refused: dict[RefusedSocket, None] = {}  # in the order of their deadlines

    def __len__(self) -> int:
        return len(self._refused)

    def add(self, raw: RawSocket, response: bytes) -> None:
        """Send a response, then close the connection when its client has read it."""
        deadline_s = self._clock.monotonic_s() + limits.SOCKET_CLOSE_S
        try:
            raw.send(response)
            linger = LingeringClose(raw, _LINGER_BYTES, deadline_s)
        except OSError:
            raw.close()
            return
        while len(self._refused) >= limits.SOCKETS_PENDING:
            self.end(next(iter(self._refused)))
        refused = RefusedSocket(self, raw, linger)
        self._refused[refused] = None
        poller().add(raw.fileno(), refused, READ)

    def end(self, refused: RefusedSocket) -> None:
        """Close a connection."""
        if refused in self._refused:
            del self._refused[refused]
            poller().remove(refused.raw.fileno())
            refused.raw.close()

    def sweep(self) -> None:
        """Close connections that are overdue. Call it again and again."""
        now_s = self._clock.monotonic_s()
        while self._refused and (first := next(iter(self._refused))).linger.deadline_s <= now_s:
            self.end(first)
