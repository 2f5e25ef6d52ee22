"""Reception: lets a client in, once its handshake is done (ws and sse alike).

Invariants: between the look at the session and the entry in the hub there is no switch of
greenlets, so a session that is revoked meanwhile is found in the hub by its signal. An address
counts from the entry until the socket is closed.
"""

from __future__ import annotations

import _socket
from dataclasses import dataclass
from typing import Protocol

from pylon import log
from pylon.app import App
from pylon.auth.context import Caller
from pylon.auth.sessions import NOBODY, resolve
from pylon.errors import Draining, PylonError
from pylon.storage.contract import Store
from workers.hub.addresses import AddressCap
from workers.hub.connection import Connection, Transport
from workers.hub.hub import Hub
from workers.hub.replay import Replay


class Greeter(Transport, Protocol):
    """A transport that streams changes."""

    greeting: bytes  # the first bytes of a stream that is let in

    def refuse(self, connection: Connection, error: PylonError, *, greeted: bool) -> None:
        """Tell the client why there is no stream (or no more of it), and close."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who knocks: where from, with which token, and with which cursor if any."""

    address: str
    token: str | None
    cursor: int | None


class Reception:
    """The door of one worker."""

    def __init__(
        self, app: App, store: Store, hub: Hub, cap: AddressCap, transport: Transport
    ) -> None:
        self._app = app
        self._store = store
        self._hub = hub
        self._cap = cap
        self._transport = transport
        self.draining = False
        hub.on_gone(lambda connection: cap.closed(connection.address))

    def check(self, address: str) -> None:
        """Pass if a client of `address` may come in.

        Raises:
            SocketLimit, Draining.
        """
        if self.draining:
            raise Draining("This server is shutting down", hint="Connect again")
        self._cap.check(address)

    def enter(
        self, raw: _socket.socket, early: bytes, visitor: Visitor
    ) -> tuple[Connection, PylonError | None]:
        """Make a connection of a socket, and count it. It reads already, but gets no events.

        Returns:
            The connection, and the error if the caller could not be looked up.
        """
        caller, error = self._resolve(visitor.token)
        connection = Connection(raw, self._transport, self._hub, caller, visitor.address)
        self._cap.opened(visitor.address)
        self._hub.add(connection)
        connection.start(early)
        return connection, error

    def stream(
        self, raw: _socket.socket, early: bytes, visitor: Visitor, replay: Replay, greeter: Greeter
    ) -> None:
        """Let a client in, send what it missed, and have it receive what comes."""
        connection, error = self.enter(raw, early, visitor)
        greeted = False
        try:
            if error is not None:
                raise error
            cursor = replay.start_cursor(
                visitor.cursor, connection.caller.session_id, visitor.address
            )
            if greeter.greeting:
                connection.send(greeter.greeting)
            greeted = True
            replay.run(connection, cursor)
        except PylonError as ex:
            greeter.refuse(connection, ex, greeted=greeted)
        except BaseException as ex:  # a defect here must not leave a socket that hears nothing
            connection.abort()
            if isinstance(ex, Exception):
                log.get_logger("reception").exception("reception.failed", error=ex)
                return
            raise

    def _resolve(self, token: str | None) -> tuple[Caller, PylonError | None]:
        try:
            return resolve(
                token,
                self._app.config,
                lambda session_id: self._store.point(lambda reader: reader.session(session_id)),
                self._app.clock,
            ), None
        except PylonError as ex:
            return NOBODY, ex
