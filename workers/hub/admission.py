"""SubscriberAdmission: lets a client in, once its request is read (ws and sse alike).

Who a token stands for is remembered for a moment, for clients that come back together.
All is done at once in the hub's own greenlet; only a client that has missed more than one page
of the log, or more than memory holds, gets a greenlet until it has caught up.

Invariants: between the look at the session and the entry in the hub there is no switch of
greenlets, so a session that is revoked meanwhile is found in the hub by its signal. An address
counts from `check` until the socket is closed, or until it is let go.
"""

from __future__ import annotations

from typing import Protocol

import gevent
import msgspec

from pylon import log
from pylon.auth.session_cache import SessionCache
from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.auth_context import Caller
from pylon.errors import Draining, PylonError
from pylon.runtime.raw_socket import RawSocket
from workers.boot import WorkerContext
from workers.hub.addresses import shared_cap
from workers.hub.connection import Connection, Transport
from workers.hub.hub import Hub
from workers.hub.replay import Replay
from workers.hub.sessions import SessionWatch

_log = log.get_logger("reception")


class StreamTransport(Transport, Protocol):
    """A transport that streams changes."""

    preamble: bytes  # the first bytes of a stream that is let in

    def refuse(self, connection: Connection, error: PylonError, *, greeted: bool) -> None:
        """Tell the client why there is no stream (or no more of it), and close."""


class ConnectRequest(msgspec.Struct, frozen=True):
    """Who knocks."""

    address: str
    token: str | None
    cursor: int | None  # that the client named
    early: bytes = b""  # what has arrived behind the request
    answer: bytes = b""  # sent before anything else: the 101 of a WebSocket
    deflate_window: int = 0  # see `Connection.packing`
    wants_changes: bool = True  # else only what it subscribes to


class SubscriberAdmission:
    """The door of one worker."""

    def __init__(self, booted: WorkerContext, hub: Hub) -> None:
        app = booted.app
        self._hub = hub
        self._cap = shared_cap(
            app.config.sockets_per_ip, booted.runtime.dir, booted.role, booted.worker,
            app.config.workers_of(booted.role),
        )
        self.callers: SessionCache[str] = SessionCache(  # by token
            app.config, booted.reader_pool, app.clock,
            lambda session_id, at_s: self.sessions.expires(session_id, at_s),  # noqa: PLW0108  (made below)
            booted.used_guests,
        )
        self.sessions = SessionWatch(booted.reader_pool, app.clock, self.callers.forget)
        self.sessions.watch(hub)
        self.draining = False
        hub.on_gone(self._gone)

    def check(self) -> None:
        """Pass if anybody may come in.

        Raises:
            Draining.
        """
        if self.draining:
            raise Draining("This server is shutting down", hint="Connect again")

    def serve(self, hub: Hub) -> None:
        """Let clients into this hub as well (`enter`)."""
        self.sessions.watch(hub)
        hub.on_gone(self._gone)

    def enter(
        self, raw: RawSocket, visitor: ConnectRequest, hub: Hub | None = None
    ) -> tuple[Connection, PylonError | None]:
        """Make a connection of a socket, and count it. It reads already, but gets no events.

        Args:
            hub: instead of the one that most clients are let into.

        Returns:
            The connection, and the error if the caller could not be looked up.

        Raises:
            Draining, SocketLimit: nothing was done with the socket.
        """
        self.check()
        caller, error = self.caller_of(visitor.token)
        self._cap.open(visitor.address)
        hub = self._hub if hub is None else hub
        connection = Connection(raw, hub.transport, hub, caller, visitor.address)
        connection.deflate_window = visitor.deflate_window
        hub.add(connection)
        try:
            if visitor.answer:
                connection.send(visitor.answer)
            if connection.is_open:
                connection.start(visitor.early)
        except Exception:
            connection.abort()  # the socket is no longer the acceptor's
            raise
        return connection, error

    def stream(
        self, raw: RawSocket, visitor: ConnectRequest, replay: Replay, greeter: StreamTransport
    ) -> None:
        """Let a client in, send what it missed, and have it receive what comes; if it wants that.

        Raises:
            Draining, SocketLimit: nothing was done with the socket.
        """
        connection, error = self.enter(raw, visitor)
        greeted = False
        try:
            if error is not None:
                raise error
            cursor = None
            if visitor.wants_changes:
                cursor = replay.start_cursor(
                    visitor.cursor, connection.caller.session_id, visitor.address
                )
            if greeter.preamble:
                connection.send(greeter.preamble)
            greeted = True
            if cursor is None:
                return
            rest = replay.run_at_once(connection, cursor)
            if rest is not None:
                gevent.spawn(self._catch_up, connection, rest, replay, greeter)
        except PylonError as ex:
            greeter.refuse(connection, ex, greeted=greeted)
        except Exception as ex:  # noqa: BLE001  a defect must not leave a socket that hears nothing
            _log.exception("reception.failed", error=ex)
            connection.abort()

    def caller_of(self, token: str | None) -> tuple[Caller, PylonError | None]:
        """Whom `token` stands for; ANONYMOUS_CALLER and the error where that cannot be found
        out."""
        if not token:
            return ANONYMOUS_CALLER, None
        try:
            return self.callers.find(token) or self.callers.look_up(token, token), None
        except PylonError as ex:
            return ANONYMOUS_CALLER, ex

    def _gone(self, connection: Connection) -> None:
        self._cap.closed(connection.address)

    def _catch_up(
        self, connection: Connection, cursor: int, replay: Replay, greeter: StreamTransport
    ) -> None:
        try:
            replay.run(connection, cursor)
        except PylonError as ex:
            greeter.refuse(connection, ex, greeted=True)
        except BaseException as ex:  # see `stream`
            connection.abort()
            if not isinstance(ex, Exception):
                raise
            _log.exception("reception.failed", error=ex)
