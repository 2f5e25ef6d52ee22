"""Pending handshakes: connections whose request has not arrived completely.

The poller watches each connection. When more of the request comes, `serve` of the acceptor tries
again. Connections stand in the order of their deadlines, because all have the same time.

Bounds: limits.SOCKET_HEADER_S for a request to arrive; limits.SOCKETS_PENDING connections. Above
that the oldest is closed, so that silent connections cannot keep others out. Metric:
pylon_handshakes_total. Invariant: nothing here blocks. Used by `workers.hub.acceptor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pylon import limits, metrics
from pylon.clock import Clock
from pylon.runtime.raw_socket import RawSocket
from workers.net.poller import READ, poller

_RECEIVE_BYTES: Final = 65_536
_RESULTS: Final = {
    result: metrics.HANDSHAKES.labels(result) for result in ("slow", "crowded", "left")
}


class PendingHandshake:
    """A connection without a complete request (`workers.net.poller.Watched`)."""

    __slots__ = ("_group", "data", "deadline_s", "on_main_port", "peer", "raw")

    def __init__(
        self, group: PendingHandshakes, raw: RawSocket, data: bytes, peer: str, *,
        deadline_s: float, on_main_port: bool,
    ) -> None:
        self._group = group
        self.raw = raw
        self.data = data
        self.peer = peer
        self.deadline_s = deadline_s
        self.on_main_port = on_main_port

    def on_ready(self, events: int) -> None:
        try:
            data = self.raw.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.data += data
            self._group.advance(self)
        else:
            self.abort()

    def abort(self) -> None:
        self._group.end(self, "left")


class PendingHandshakes:
    """The pending handshakes of one worker."""

    __slots__ = ("_clock", "_pending", "_serve")

    def __init__(self, serve: Callable[[PendingHandshake], bool], clock: Clock) -> None:
        """`serve` takes the socket if its request is complete, and returns whether it did."""
        self._serve = serve
        self._clock = clock
        self._pending: dict[PendingHandshake, None] = {}  # in the order of their deadlines

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, raw: RawSocket, data: bytes, peer: str, *, on_main_port: bool) -> None:
        """Wait for the rest of a request. The arguments are those of `Acceptor.serve`."""
        while len(self._pending) >= limits.SOCKETS_PENDING:
            self.end(next(iter(self._pending)), "crowded")
        handshake = PendingHandshake(
            self, raw, data, peer, on_main_port=on_main_port,
            deadline_s=self._clock.monotonic_s() + limits.SOCKET_HEADER_S,
        )
        self._pending[handshake] = None
        poller().add(raw.fileno(), handshake, READ)

    def advance(self, handshake: PendingHandshake) -> None:
        """Serve a connection if its request is complete now."""
        fd = handshake.raw.fileno()
        poller().remove(fd)  # the handler that takes the socket watches it
        if self._serve(handshake):
            del self._pending[handshake]
        else:
            poller().add(fd, handshake, READ)

    def end(self, handshake: PendingHandshake, result: str) -> None:
        """Close a connection whose request did not arrive.

        Args:
            result: the label of the metric: slow, crowded or left.
        """
        if handshake in self._pending:
            del self._pending[handshake]
            _RESULTS[result].inc()
            poller().remove(handshake.raw.fileno())
            handshake.raw.close()

    def sweep(self) -> None:
        """Close connections that are overdue. Call it again and again."""
        now_s = self._clock.monotonic_s()
        while self._pending and (first := next(iter(self._pending))).deadline_s <= now_s:
            self.end(first, "slow")
