"""The acceptor of a socket worker: from a listening socket to a request, without a greenlet.

libev's callback accepts a few connections in each turn of the loop, so that sibling processes get
their share and open connections are not delayed. The acceptor reads a request that came with its
connection at once; `pending_handshakes` waits for a slower one. The `UpgradeHandler` takes the
socket of a complete request, or refuses it; `refused_sockets` then sends the response.

The handler reads the store: the session, and how far the change log reaches. Without local reads
(`Store.local_reads`) these reads wait, so each handler runs in a greenlet of its own. So does the
handler of a request with a JWT, which the identity process checks.

Bounds: limits.HTTP_HEAD_BYTES for a head, `_ACCEPTS_A_TURN` connections in a turn,
limits.SOCKETS_PENDING handlers that wait for the store, limits.DESCRIPTORS_RESERVED
(`workers.net.listener`). The timer of the deadlines runs only while a connection has one: in an
idle worker its two wake-ups a second cost 0.2 ms of CPU. Metric: pylon_handshakes_total.

Invariant: the acceptor owns a socket until `UpgradeHandler.open` returns None; from then on the
handler does. Everything else runs in the hub and never blocks. Called by `workers.hub.service`.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final, Protocol

import gevent
from gevent.hub import get_hub

from pylon import limits, log, metrics
from pylon.clock import Clock
from pylon.errors import InternalError, PylonError, Unavailable
from pylon.runtime.raw_socket import RawSocket, host_of
from workers.hub.pending_handshakes import PendingHandshake, PendingHandshakes
from workers.hub.refused_sockets import RefusedSockets
from workers.hub.request import Request, parse
from workers.net.listener import Listeners
from workers.net.response import without_body

_ACCEPTS_A_TURN: Final = 16
_SWEEP_S: Final = 0.5
_RECEIVE_BYTES: Final = 65_536

_log = log.get_logger("sockets")
_RESULTS: Final = {
    result: metrics.HANDSHAKES.labels(result) for result in ("accepted", "refused", "left")
}


class UpgradeHandler(Protocol):
    """Takes accepted connections whose request has been read."""

    def open(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> bytes | None:
        """Take the socket of a request that has no response yet. Switches greenlets only if the
        acceptor's `opens_wait`, or if the request has a JWT.

        Args:
            early: the bytes that arrived behind the request.
            on_main_port: whether an HTTP worker accepted the connection and passed it on.

        Returns:
            None if the handler owns the socket now; else the response, after which the acceptor
            closes it.

        Raises:
            PylonError: the acceptor sends what `refusal` returns for it.
        """

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        """Return the whole response for an error.

        Args:
            request: None if its head could not be read.
        """


class Acceptor:
    """Accepts for one worker."""

    def __init__(
        self, listener: socket.socket, handler: UpgradeHandler, clock: Clock, *,
        opens_wait: bool = False,
    ) -> None:
        """Take over `listener`, which sibling processes may share. `start` begins to accept.

        Args:
            opens_wait: the handler waits for the store, so it gets a greenlet for each socket.
        """
        self.port: int = listener.getsockname()[1]
        self._handler = handler
        self._opens_wait = opens_wait
        self._opening = 0  # handlers in greenlets
        self._clock = clock
        self._listeners = Listeners([listener], self._on_readable, clock.monotonic_s)
        self.pending = PendingHandshakes(self._serve_pending, clock)
        self.refused = RefusedSockets(clock)
        self._timer = get_hub().loop.timer(_SWEEP_S, _SWEEP_S)

    def start(self) -> None:
        """Begin to accept."""
        self._listeners.resume()

    def close(self) -> None:
        """Accept no more. Requests that are arriving are still served."""
        self._listeners.close()

    def add_passed_socket(
        self, raw: RawSocket, data: bytes, *, on_main_port: bool = True
    ) -> None:
        """Serve a connection that another process has accepted.

        Args:
            data: the bytes that the other process has read.
            on_main_port: whether the other process is an HTTP worker, not a sibling.
        """
        raw.setblocking(False)
        try:
            peer = raw.getpeername()
        except OSError:
            self._count_left(raw)
            return
        budget = self._listeners.budget
        if budget.reserves(raw.fileno()):
            error = "a connection was passed on to a process without descriptors"
            budget.log_exhausted(self._clock.monotonic_s(), error)
            _RESULTS["refused"].inc()
            full = Unavailable("This worker has no room for another connection")
            with suppress(OSError):  # the client may have left
                raw.send(self._handler.refusal(full, None))
            raw.close()  # without lingering, which would hold a descriptor of the reserve
            return
        self._begin(raw, data, host_of(peer), on_main_port=on_main_port)

    def _on_readable(self, listener: RawSocket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            accepted = self._listeners.accept(listener)
            if accepted is None:
                return
            raw, peer = accepted
            fd = raw.fileno()
            self._receive(raw, peer)
            if self._listeners.pause_at_reserve(fd):
                return

    def _receive(self, raw: RawSocket, peer: Any) -> None:
        """Read the request of a new connection, which mostly has come with it."""
        try:
            data = raw.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            self._wait_for_request(raw, b"", host_of(peer), on_main_port=False)
            return
        except OSError:
            data = b""
        if data:
            self._begin(raw, data, host_of(peer), on_main_port=False)
        else:
            self._count_left(raw)

    def _count_left(self, raw: RawSocket) -> None:
        _RESULTS["left"].inc()
        raw.close()

    def _begin(self, raw: RawSocket, data: bytes, peer: str, *, on_main_port: bool) -> None:
        if not self._serve(raw, data, peer, on_main_port=on_main_port):
            self._wait_for_request(raw, data, peer, on_main_port=on_main_port)

    def _wait_for_request(
        self, raw: RawSocket, data: bytes, peer: str, *, on_main_port: bool
    ) -> None:
        self.pending.add(raw, data, peer, on_main_port=on_main_port)
        self._watch_deadlines()

    def _serve_pending(self, handshake: PendingHandshake) -> bool:
        return self._serve(
            handshake.raw, handshake.data, handshake.peer, on_main_port=handshake.on_main_port
        )

    def _serve(self, raw: RawSocket, data: bytes, peer: str, *, on_main_port: bool) -> bool:
        """Serve the request in `data`. Return False if it is not complete."""
        try:
            request = parse(data, peer)
        except PylonError as ex:
            self._settle(raw, None, self._handler.refusal(ex, None))
            return True
        except Exception as ex:  # noqa: BLE001  see `_open`
            self._settle(raw, None, self._refusal_of_defect(ex, None))
            return True
        if request is None:
            return False
        early = data[len(request.head):]
        if not self._opens_wait and not request.has_jwt:
            self._open(request, raw, early, on_main_port=on_main_port)
        elif self._opening >= limits.SOCKETS_PENDING:
            full = Unavailable("Too many connections wait to be admitted", hint="Connect again")
            self._settle(raw, request, self._handler.refusal(full, request))
        else:
            self._opening += 1
            gevent.spawn(self._open_waiting, request, raw, early, on_main_port=on_main_port)
        return True

    def _open_waiting(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> None:
        try:
            self._open(request, raw, early, on_main_port=on_main_port)
        finally:
            self._opening -= 1

    def _open(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> None:
        try:
            response = self._handler.open(request, raw, early, on_main_port=on_main_port)
        except PylonError as ex:
            response = self._handler.refusal(ex, request)
        except Exception as ex:  # noqa: BLE001  one client's request must not end the worker
            response = self._refusal_of_defect(ex, request)
        self._settle(raw, request, response)

    def _refusal_of_defect(self, error: Exception, request: Request | None) -> bytes:
        _log.exception("handshake.failed", error=error)
        return self._handler.refusal(InternalError("The request failed"), request)

    def _settle(self, raw: RawSocket, request: Request | None, response: bytes | None) -> None:
        """Count a request, and send its response if the handler has not taken the socket."""
        if response is None:
            _RESULTS["accepted"].inc()
            return
        _RESULTS["refused"].inc()
        if request is not None and request.method == "HEAD":
            response = without_body(response)
        self.refused.add(raw, response)
        self._watch_deadlines()

    def _watch_deadlines(self) -> None:
        if not self._timer.active:
            self._timer.again(self._sweep)

    def _sweep(self) -> None:
        self.pending.sweep()
        self.refused.sweep()
        if not (self.pending or self.refused):
            self._timer.stop()
