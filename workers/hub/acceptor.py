"""The acceptor: from a listening socket to a request, without a greenlet for any client.

Connections are accepted in libev's callback, a few for each turn of the loop, so that siblings
on the same listening socket get their share and who is connected already is not held up. A
request that has come with its connection is read at once; a slower one is waited for by a
watcher. Complete ones go to the `UpgradeHandler`, which takes the socket or refuses; a refusal is
sent in one piece, and the connection ends when the client has had time to read it.

Bounds: `limits.HTTP_HEAD_BYTES` for a head, `limits.SOCKET_HEADER_S` for its arrival,
`limits.SOCKETS_PENDING` connections without a complete one: above that the oldest is cut, so
that silent connections cannot keep others out; `limits.DESCRIPTORS_RESERVED`, which stay free.
Metric: pylon_handshakes_total.

Invariant: a socket is the acceptor's until `UpgradeHandler.open` returns None, and the door's from
then on. Everything runs in the hub and never blocks. Called by `workers.hub.service`.
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
from pylon.runtime.fd_budget import OUT_OF_RESOURCES, FdBudget
from pylon.runtime.raw_socket import RawSocket
from workers.hub.request import Request, parse
from workers.net.poller import READ, Watched, poller
from workers.net.response import without_body

_ACCEPTS_A_TURN: Final = 16
_PAUSE_S: Final = 0.1  # when the process has no descriptors left but the reserve
_SWEEP_S: Final = 0.5
_RECEIVE_BYTES: Final = 65_536
_LINGER_BYTES: Final = 1024 * 1024
_INET: Final = (socket.AF_INET, socket.AF_INET6)

_log = log.get_logger("sockets")
_RESULTS: Final = {
    result: metrics.HANDSHAKES.labels(result)
    for result in ("accepted", "refused", "slow", "crowded", "left")
}


class UpgradeHandler(Protocol):
    """Where requests go."""

    def open(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> bytes | None:
        """Take the socket, whose request has been read and not answered.

        Args:
            early: what has arrived behind the request.
            on_main_port: it was accepted by an HTTP worker and passed on.

        Returns:
            None when it is taken; else the answer to send before it is closed.

        Raises:
            PylonError: answered as `refusal` has it.
        """

    def refusal(self, error: PylonError) -> bytes:
        """The whole answer for an error."""


class _PendingHandshake:
    """A connection without a complete request (`workers.net.poller.Watched`)."""

    __slots__ = ("_acceptor", "data", "deadline_s", "on_main_port", "peer", "raw")

    def __init__(
        self, acceptor: Acceptor, raw: RawSocket, data: bytes, peer: str, deadline_s: float,
        on_main_port: bool,
    ) -> None:
        self._acceptor = acceptor
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
        self.data += data
        self._acceptor.has_more(self, is_end=not data)

    def abort(self) -> None:
        self._acceptor.cut(self, "left")


class _LingeringClose:
    """A connection that was refused, until its client ends it (`poller.Watched`)."""

    __slots__ = ("_acceptor", "_discarded_bytes", "deadline_s", "raw")

    def __init__(self, acceptor: Acceptor, raw: RawSocket, deadline_s: float) -> None:
        self._acceptor = acceptor
        self._discarded_bytes = 0
        self.raw = raw
        self.deadline_s = deadline_s

    def on_ready(self, events: int) -> None:
        try:
            size_bytes = len(self.raw.recv(_RECEIVE_BYTES))
        except BlockingIOError:
            return
        except OSError:
            size_bytes = 0
        self._discarded_bytes += size_bytes
        if not size_bytes or self._discarded_bytes > _LINGER_BYTES:
            self.abort()

    def abort(self) -> None:
        self._acceptor.finish_linger(self)


class Acceptor:
    """Accepts for one worker."""

    def __init__(self, listener: socket.socket, door: UpgradeHandler, clock: Clock) -> None:
        """Takes over `listener`, which sibling processes may share. Nothing is accepted before
        `start`."""
        self.port: int = listener.getsockname()[1]
        # Not gevent's, which would wait where there is nobody to accept.
        self._listener: Any = RawSocket(
            listener.family, listener.type, listener.proto, listener.detach()
        )
        self._listener.setblocking(False)
        self._door = door
        self._clock = clock
        self._arriving: dict[_PendingHandshake, None] = {}  # in the order of their deadlines
        self._leaving: dict[_LingeringClose, None] = {}  # likewise
        self.closed = False
        self._room = FdBudget(self._listener.fileno())
        loop = get_hub().loop
        self._watcher = loop.io(self._listener.fileno(), READ)
        self._timer = loop.timer(_SWEEP_S, _SWEEP_S)

    def start(self) -> None:
        """Begin to accept."""
        if self._listener.family in _INET:  # Linux hands it on to what is accepted
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watcher.start(self._on_readable)
        self._timer.start(self._sweep)

    def close(self) -> None:
        """Accept no more. Requests that are arriving are still answered."""
        if not self.closed:
            self.closed = True
            self._watcher.stop()
            self._watcher.close()
            self._listener.close()

    def add_passed_socket(
        self, raw: RawSocket, data: bytes, *, on_main_port: bool = True
    ) -> None:
        """Go on with a connection that an HTTP worker (or, where `on_main_port` is false, a
        sibling of this one) has accepted, and read `data` of."""
        raw.setblocking(False)
        try:
            peer = raw.getpeername()
        except OSError:
            _RESULTS["left"].inc()
            raw.close()
            return
        if self._room.reserves(raw.fileno()):
            error = "a connection was passed on to a process without descriptors"
            self._room.log_exhausted(self._clock.monotonic_s(), error)
            _RESULTS["refused"].inc()
            full = Unavailable("This worker has no room for another connection")
            with suppress(OSError):  # the client may have left
                raw.send(self._door.refusal(full))
            raw.close()  # now: one that is refused may not take from the reserve either
            return
        self._begin(raw, data, _host_of(peer), on_main_port=on_main_port)

    # --- Accepting -----------------------------------------------------------------------

    def _on_readable(self) -> None:
        listener = self._listener
        for _ in range(_ACCEPTS_A_TURN):
            try:
                fd, peer = listener._accept()
            except OSError as ex:
                if ex.errno in OUT_OF_RESOURCES:
                    self._pause(str(ex))
                return  # or a sibling was quicker, or the client has left again
            raw = RawSocket(listener.family, listener.type, listener.proto, fd)
            raw.setblocking(False)
            try:
                data = raw.recv(_RECEIVE_BYTES)  # most often it is there already
            except BlockingIOError:
                self._wait(raw, b"", _host_of(peer), on_main_port=False)
            except OSError:
                self._leave(raw)
            else:
                if data:
                    self._begin(raw, data, _host_of(peer), on_main_port=False)
                else:
                    self._leave(raw)
            if self._room.reserves(fd):
                self._pause("all descriptors but the reserve are in use")
                return

    def _leave(self, raw: RawSocket) -> None:
        _RESULTS["left"].inc()
        raw.close()

    def _pause(self, error: str) -> None:
        self._room.log_exhausted(self._clock.monotonic_s(), error)
        self._watcher.stop()
        gevent.spawn_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self.closed:
            return
        if self._room.has_room():
            self._watcher.start(self._on_readable)
        else:
            gevent.spawn_later(_PAUSE_S, self._go_on)

    def _begin(self, raw: RawSocket, data: bytes, peer: str, *, on_main_port: bool) -> None:
        if not self._serve(raw, data, peer, on_main_port=on_main_port):
            self._wait(raw, data, peer, on_main_port=on_main_port)

    def _serve(self, raw: RawSocket, data: bytes, peer: str, *, on_main_port: bool) -> bool:
        """Deal with the request in `data`; False if it is not complete."""
        request = None
        try:
            request = parse(data, peer)
            if request is None:
                return False
            answer = self._door.open(
                request, raw, data[len(request.head):], on_main_port=on_main_port
            )
        except PylonError as ex:
            answer = self._door.refusal(ex)
        except Exception as ex:  # noqa: BLE001  one client's request must not end the worker
            _log.exception("handshake.failed", error=ex)
            answer = self._door.refusal(InternalError("The request failed"))
        if answer is None:
            _RESULTS["accepted"].inc()
        else:
            _RESULTS["refused"].inc()
            if request is not None and request.method == "HEAD":
                answer = without_body(answer)
            self._refuse(raw, answer)
        return True

    # --- Slow requests -------------------------------------------------------------------

    def _wait(self, raw: RawSocket, data: bytes, peer: str, *, on_main_port: bool) -> None:
        while len(self._arriving) >= limits.SOCKETS_PENDING:
            self.cut(next(iter(self._arriving)), "crowded")
        deadline_s = self._clock.monotonic_s() + limits.SOCKET_HEADER_S
        arriving = _PendingHandshake(self, raw, data, peer, deadline_s, on_main_port)
        self._arriving[arriving] = None
        poller().change(raw.fileno(), arriving, 0, READ)

    def has_more(self, arriving: _PendingHandshake, *, is_end: bool) -> None:
        """More of a request has come."""
        if is_end:
            self.cut(arriving, "left")
            return
        raw = arriving.raw
        # Whoever takes the socket watches it himself.
        poller().change(raw.fileno(), arriving, READ, 0)
        if self._serve(raw, arriving.data, arriving.peer, on_main_port=arriving.on_main_port):
            del self._arriving[arriving]
        else:
            poller().change(raw.fileno(), arriving, 0, READ)

    def cut(self, arriving: _PendingHandshake, result: str) -> None:
        """End a connection whose request has not come."""
        if arriving in self._arriving:
            del self._arriving[arriving]
            _RESULTS[result].inc()
            _end(arriving.raw, arriving)

    # --- Refused requests ----------------------------------------------------------------

    def _refuse(self, raw: RawSocket, answer: bytes) -> None:
        """Answer and end our side. Closing over unread bytes would reset the connection, and
        the client might lose the answer by it, so what it still sends is thrown away."""
        try:
            raw.send(answer)  # fits into the buffer of a fresh socket
            raw.shutdown(socket.SHUT_WR)
        except OSError:
            raw.close()
            return
        while len(self._leaving) >= limits.SOCKETS_PENDING:
            self.finish_linger(next(iter(self._leaving)))
        leaving = _LingeringClose(self, raw, self._clock.monotonic_s() + limits.SOCKET_CLOSE_S)
        self._leaving[leaving] = None
        poller().change(raw.fileno(), leaving, 0, READ)

    def finish_linger(self, leaving: _LingeringClose) -> None:
        """End a refused connection."""
        if leaving in self._leaving:
            del self._leaving[leaving]
            _end(leaving.raw, leaving)

    def _sweep(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._arriving and (first := next(iter(self._arriving))).deadline_s <= now_s:
            self.cut(first, "slow")
        while self._leaving and (last := next(iter(self._leaving))).deadline_s <= now_s:
            self.finish_linger(last)


def _end(raw: RawSocket, watched: Watched) -> None:
    poller().change(raw.fileno(), watched, READ, 0)
    raw.close()


def _host_of(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) else ""  # a Unix socket has no address
