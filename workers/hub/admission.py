"""Admission: turns a client's request into a connection of the hub (ws, sse and shards).

`SubscriberAdmission` counts the address, looks the caller up, and starts the stream. A cache of
callers serves clients that reconnect together. Everything happens at once in gevent's hub, or, on a
store without local reads, in the greenlet of the acceptor. A client that has missed more than one
page of the log, or more than memory holds, gets a greenlet until it has caught up.

An API key needs the scope of the role (`_NEEDS`), unless its socket wants no changes; the entities
that it may not read are no part of its stream.

Invariants: no greenlet switch lies between the answer to the lookup of the session and the entry in
the hub, so the signal of a revocation finds the connection there; one that came during the lookup
has the lookup repeated (`SessionCache`). An address counts from `enter` until the socket is closed.
Bounds: PYLON_SOCKETS_PER_IP, PYLON_RATE_LIMIT_MAX. Log event: admission.failed. Called by the
handlers of ws, sse and shards.
"""

from __future__ import annotations

from typing import Final, Protocol

import gevent
import msgspec

from pylon import log
from pylon.auth.jwts import takes_jwts
from pylon.auth.session_cache import SessionCache
from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.auth.tokens import UnprivilegedToken
from pylon.auth_context import AuthContext, Caller
from pylon.bus.identity import IdentityClient
from pylon.changelog.scope import Scope, scope_of_key
from pylon.errors import Draining, PylonError, StoreUnavailable
from pylon.key_scopes import SHARDS, SYNC, is_limited, require_scope
from pylon.rates import address_subject, of_addresses
from pylon.runtime.raw_socket import RawSocket
from workers.boot import WorkerContext
from workers.hub.addresses import shared_cap
from workers.hub.connection import ClientSocket, Connection, Transport
from workers.hub.hub import Hub
from workers.hub.node_state import NodeState
from workers.hub.replay import Replay
from workers.hub.sessions import SessionWatch
from workers.net.response import Headers

_log = log.get_logger("admission")

# The scope that an API key needs by role, and whether a read-only caller is refused.
_NEEDS: Final = {"ws": (SYNC, False), "sse": (SYNC, False), "shards": (SHARDS, True)}


class StreamTransport(Transport, Protocol):
    """A transport that streams changes."""

    def stream_head(self, headers: Headers) -> bytes:
        """Return the first bytes of an admitted stream, if it has any.

        Args:
            headers: the headers that depend on the request.
        """

    def refuse(
        self, connection: Connection, error: PylonError, headers: Headers = (), *, has_begun: bool
    ) -> None:
        """Tell the client why its stream does not begin, or ends, and close.

        Args:
            headers: those of the response, if the stream has not begun.
            has_begun: whether the head of the stream was sent.
        """


class ConnectRequest(msgspec.Struct, frozen=True):
    """A client that wants to connect."""

    address: str
    token: str | None
    cursor: int | None  # that the client named
    early: bytes = b""  # the bytes that arrived behind the request
    answer: bytes = b""  # sent before anything else: the 101 of a WebSocket
    deflate_window: int = 0  # see `Connection.deflate_window`
    wants_changes: bool = True  # else only what it subscribes to
    scope: Scope | None = None  # the part of the data that it asks for
    headers: Headers = ()  # of an HTTP response to it


class SubscriberAdmission:
    """The admission of one worker."""

    def __init__(self, booted: WorkerContext, hub: Hub) -> None:
        app = booted.app
        self._app = app
        self._role = booted.role
        self._hub = hub
        self._limiter = booted.limiter
        self._rate = of_addresses(app.config)
        self._cap = shared_cap(
            app.config.sockets_per_ip, booted.runtime.dir, booted.role, booted.worker,
            app.config.workers_of(booted.role),
        )
        self._identity = IdentityClient(
            booted.runtime, app.clock, app.random, is_on=app.config.workers_of("identity") > 0
        )
        self.callers: SessionCache[str] = SessionCache(  # by token
            app, booted.reader_pool, app.clock,
            lambda family, at_s: self.sessions.expires(family, at_s),  # noqa: PLW0108  (made below)
            booted.used_sessions, self._identity.verify_jwt if takes_jwts(app.config) else None,
        )
        self.sessions = SessionWatch(
            booted.reader_pool, app.manifest, app.clock, self.callers.forget
        )
        self.sessions.watch(hub)
        self.draining = False
        self.node = NodeState(app.config)
        hub.on_closed(self._note_closed)

    def check(self) -> None:
        """Raise if the worker admits nobody.

        Raises:
            Draining: the server is shutting down.
            StoreUnavailable: the database has not answered for long.
        """
        if self.draining:
            raise Draining("This server is shutting down", hint="Connect again")
        if self.node.is_cut_off:
            raise StoreUnavailable("The database does not answer", hint="Connect again later")

    def serve(self, hub: Hub) -> None:
        """Admit clients to this hub as well (`enter`)."""
        self.sessions.watch(hub)
        hub.on_closed(self._note_closed)

    def enter(
        self, raw: RawSocket | ClientSocket, connect_request: ConnectRequest,
        hub: Hub | None = None,
    ) -> tuple[Connection, PylonError | None]:
        """Make a connection of a socket, and count it. It reads, but gets no events.

        Switches greenlets before the connection is made, if at all.

        Args:
            hub: the hub to enter; None: the hub of the constructor.

        Returns:
            The connection, and the error if the caller could not be looked up.

        Raises:
            Draining, RateLimited, SocketLimit, InvalidApiKey, InvalidJwt, ScopeDenied: the acceptor
                still owns the socket.
        """
        self.check()
        caller, error = self.caller_of(connect_request.token)
        if error is not None and error.status == 401:
            raise error
        self.check()  # a drain may have begun while the lookup waited
        scope = self._scope_of(caller.auth, connect_request)
        if not caller.auth.is_admin:
            self._limiter.require(self._rate, address_subject(connect_request.address))
        self._cap.add_socket(connect_request.address)
        hub = self._hub if hub is None else hub
        connection = Connection(raw, hub.transport, hub, caller, connect_request.address)
        connection.deflate_window = connect_request.deflate_window
        connection.scope = scope
        connection.asked_scope = connect_request.scope
        connection.wants_changes = connect_request.wants_changes
        hub.add(connection)
        try:
            if connect_request.answer:
                connection.send(connect_request.answer)
            if connection.is_open:
                connection.start(connect_request.early)
        except Exception:
            connection.abort()  # the socket is no longer the acceptor's
            raise
        return connection, error

    def enter_tunnel(self, raw: RawSocket, address: str, hub: Hub) -> Connection:
        """Make a connection whose shard another node serves, and count it. The caller starts it.

        That node looks up the client's session. Here only the address counts.

        Raises: as `enter`.
        """
        self.check()
        self._cap.add_socket(address)
        connection = Connection(raw, hub.transport, hub, ANONYMOUS_CALLER, address)
        hub.add(connection)
        return connection

    def stream(
        self, raw: RawSocket, connect_request: ConnectRequest, replay: Replay,
        transport: StreamTransport,
    ) -> None:
        """Admit a client, and stream the changes that it missed and those to come, if it wants any.

        Raises: as `enter`.
        """
        connection, error = self.enter(raw, connect_request)
        has_begun = False
        try:
            if error is not None:
                raise error
            cursor = None
            if connect_request.wants_changes:
                cursor = replay.start_cursor(
                    connect_request.cursor, connection.caller.family, connect_request.address
                )
            head = transport.stream_head(connect_request.headers)
            if head:
                connection.send(head)
            has_begun = True
            if cursor is None:
                return
            rest = replay.run_at_once(connection, cursor)
            if rest is not None:
                gevent.spawn(self._catch_up, connection, rest, replay, transport)
        except PylonError as ex:
            transport.refuse(connection, ex, connect_request.headers, has_begun=has_begun)
        except Exception as ex:  # noqa: BLE001  a defect must not leave a socket without events
            _log.exception("admission.failed", error=ex)
            connection.abort()

    def resume(self, connection: Connection, cursor: int, replay: Replay) -> None:
        """Bring a connection that has left the fan-out up to date, in a greenlet of its own.

        Args:
            cursor: it has all changes up to this seq.
        """
        gevent.spawn(self._catch_up, connection, cursor, replay, self._hub.transport)

    def caller_of(self, token: str | None) -> tuple[Caller, PylonError | None]:
        """Return the caller of a token; ANONYMOUS_CALLER and the error if the lookup fails."""
        if not token:
            return ANONYMOUS_CALLER, None
        # A token that counts in a header only must not find the entry of a header.
        carried = f"?{token}" if isinstance(token, UnprivilegedToken) else token
        try:
            return self.callers.find(carried) or self.callers.look_up(carried, token), None
        except PylonError as ex:
            return ANONYMOUS_CALLER, ex

    def change_caller(self, connection: Connection, caller: Caller) -> None:
        """Set the caller of an open connection, and what it gets of the changes from the next on.

        Raises:
            ScopeDenied: the new caller may not have this stream; nothing has changed.
            LimitExceeded: as `Hub.change_scope`; nothing has changed.
        """
        scope = self._limit_scope(caller.auth, connection.asked_scope)
        if scope != connection.scope:
            self._hub.change_scope(connection, scope)
        self._hub.change_caller(connection, caller)

    def change_scope(self, connection: Connection, scope: Scope | None) -> None:
        """Set what a connection asks for of the changes, from the next change on.

        Raises:
            ScopeDenied: its caller may not read an entity that the scope names.
            LimitExceeded: as `Hub.change_scope`.
        """
        self._hub.change_scope(connection, self._limit_scope(connection.caller.auth, scope))
        connection.asked_scope = scope

    def _scope_of(self, auth: AuthContext, connect_request: ConnectRequest) -> Scope | None:
        """Return what a new connection gets of the changes.

        Raises:
            ScopeDenied: its API key lacks the scope of the role, or may read none of the entities.
        """
        if not is_limited(auth) or not connect_request.wants_changes:
            return connect_request.scope
        need, changes = _NEEDS[self._role]
        require_scope(auth, need, changes=changes)
        return self._limit_scope(auth, connect_request.scope)

    def _limit_scope(self, auth: AuthContext, scope: Scope | None) -> Scope | None:
        if self._role == "shards":
            return None
        return scope_of_key(self._app.rules, self._app.manifest, auth, scope)

    def _note_closed(self, connection: Connection) -> None:
        self._cap.remove_socket(connection.address)

    def _catch_up(
        self, connection: Connection, cursor: int, replay: Replay, transport: StreamTransport
    ) -> None:
        try:
            replay.run(connection, cursor)
        except PylonError as ex:
            transport.refuse(connection, ex, has_begun=True)
        except BaseException as ex:  # see `stream`
            connection.abort()
            if not isinstance(ex, Exception):
                raise
            _log.exception("admission.failed", error=ex)
