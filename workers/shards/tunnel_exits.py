"""Tunnel exits: connections of clients that other nodes have accepted (`pylon.cluster`).

A `TunnelSocket` stands in for the client's socket: the connection reads from it and writes to it as
it does with a socket of its own, and everything above the connection is the same. The client's
request comes with the tunnel, and so do the address that it came from and the port. They are judged
here, with the settings of this node.

Invariants: a connection that came through a tunnel is served here or refused, and never passed on.
Bounds: limits.SOCKETS_PENDING requests that wait for the store; the window of the tunnel for bytes
that the connection has not read. If the tunnel is full, the socket takes no bytes, and the outbox
of the connection grows to its bound. Called by `pylon.cluster.port`; made by
`workers.shards.server`.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Protocol

import gevent
from gevent.hub import get_hub

from pylon import limits, log
from pylon.cluster.envelopes import OpenTunnel
from pylon.cluster.tunnels import Tunnel
from pylon.errors import InternalError, InvalidRequest, PylonError, Unavailable
from workers.hub.connection import SocketOwner
from workers.hub.request import Request, parse
from workers.net.poller import READ, WRITE
from workers.net.response import without_body

_log = log.get_logger("cluster")


class TunnelSocket:
    """The exit of a tunnel, as `workers.hub.connection.ClientSocket`."""

    __slots__ = ("_events", "_inbox", "_is_ended", "_is_scheduled", "_owner", "_tunnel")

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._inbox: deque[bytes] = deque()
        self._is_ended = False  # nothing more comes
        self._owner: SocketOwner | None = None
        self._events = 0  # that the owner waits for
        self._is_scheduled = False

    # --- The socket ------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1

    def send(self, data: bytes | memoryview) -> int:
        """Send all bytes.

        Raises:
            BlockingIOError: the tunnel is full.
            BrokenPipeError: it has ended.
        """
        if self._is_ended:
            raise BrokenPipeError
        if isinstance(data, memoryview):
            # The object itself, where the view is of all of it: many tunnels share one frame.
            whole = data.obj
            data = whole if isinstance(whole, bytes) and len(whole) == len(data) else bytes(data)
        if not self._tunnel.send(data):
            raise BlockingIOError
        return len(data)

    def recv(self, size_bytes: int) -> bytes:
        """Return bytes of the client; b"" after their end.

        Raises:
            BlockingIOError: none have come.
        """
        if not self._inbox:
            if self._is_ended:
                return b""
            raise BlockingIOError
        data = self._inbox.popleft()
        if len(data) > size_bytes:
            self._inbox.appendleft(data[size_bytes:])
            data = data[:size_bytes]
        self._tunnel.take(len(data))
        return data

    def shutdown(self, how: int) -> None:
        """End the tunnel behind all that was sent. The client's node closes its socket then, so
        nothing more comes."""
        self._tunnel.close()
        self._end()

    def close(self) -> None:
        """End the tunnel."""
        self._tunnel.close()
        self._is_ended = True
        self._owner = None
        self._inbox.clear()

    def watch(self, owner: SocketOwner, events: int) -> None:
        """Call `owner.on_ready` when one of the events is there, as the poller does."""
        self._owner = owner
        self._events = events
        if (events & READ and (self._inbox or self._is_ended)) or events & WRITE:
            self._schedule()

    # --- The tunnel (`pylon.cluster.tunnels.TunnelUser`) ------------------------------------

    def received(self, data: bytes) -> None:
        """See `TunnelUser`."""
        self._inbox.append(data)
        self._look()

    def writable(self) -> None:
        """See `TunnelUser`."""
        self._look()

    def ended(self, error: PylonError | None, *, is_lost: bool) -> None:
        """See `TunnelUser`."""
        self._end()

    # --- Internals -------------------------------------------------------------------------

    def _end(self) -> None:
        self._is_ended = True
        if self._events & READ:
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            get_hub().loop.run_callback(self._look)

    def _look(self) -> None:
        """Give the owner what it waits for: one event, and then the next in a later turn."""
        self._is_scheduled = False
        owner = self._owner
        if owner is None:
            return
        ready = 0
        if self._events & WRITE and (self._is_ended or not self._tunnel.is_full):
            ready |= WRITE
        if self._events & READ and (self._inbox or self._is_ended):
            ready |= READ
        if not ready:
            return
        try:
            owner.on_ready(ready)
        except Exception as ex:  # noqa: BLE001  one client must not end the others
            _log.exception("socket.failed", error=ex)
            owner.abort()
        if self._owner is not None and self._events & READ and (self._inbox or self._is_ended):
            self._schedule()


class TunnelHandler(Protocol):
    """The part of the shards worker that serves requests."""

    def open(
        self, request: Request, raw: TunnelSocket, early: bytes, *, on_main_port: bool
    ) -> bytes | None:
        """Serve a request, as `workers.hub.acceptor.UpgradeHandler.open` does."""

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        """Return the whole response for an error; `request` is None if it could not be read."""


class ShardExits:
    """`pylon.cluster.port.TunnelExits` of a shards worker."""

    def __init__(self, handler: TunnelHandler) -> None:
        self._handler = handler
        self._opening = 0  # requests that wait for the store

    def open(self, tunnel: Tunnel, opening: OpenTunnel) -> None:
        """See `pylon.cluster.port.TunnelExits`."""
        if self._opening >= limits.SOCKETS_PENDING:
            raise Unavailable("Too many connections wait for the database", hint="Connect again")
        raw = TunnelSocket(tunnel)
        tunnel.user = raw
        self._opening += 1
        gevent.spawn(self._serve, raw, opening)

    def _serve(self, raw: TunnelSocket, opening: OpenTunnel) -> None:
        request = None
        try:
            request = parse(opening.data, opening.peer)
            if request is None:
                raise InvalidRequest("The request of a tunnel is not complete")
            response = self._handler.open(
                request, raw, opening.data[len(request.head):], on_main_port=opening.on_main_port
            )
        except PylonError as ex:
            response = self._handler.refusal(ex, request)
        except Exception as ex:  # noqa: BLE001  one client's request must not end the worker
            _log.exception("handshake.failed", error=ex)
            response = self._handler.refusal(InternalError("The request failed"), request)
        finally:
            self._opening -= 1
        if response is None:
            return
        if request is not None and request.method == "HEAD":
            response = without_body(response)
        with suppress(BlockingIOError, BrokenPipeError):  # the client hears of a closed connection
            raw.send(response)
        raw.close()
