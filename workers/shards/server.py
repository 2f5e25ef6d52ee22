"""The shards worker: accepts and authenticates, and knows no shard yet (spec/realtime.md §4.1).

A client names a shard with ``?shard=`` and itself with ``&sid=`` (default `anon`). Where the
published server drops the connection without a word, this one closes it with a code of the
private range that says why: 4400 for a request without `shard`, 4404 for an unknown shard.
"""

from __future__ import annotations

import _socket
from dataclasses import dataclass
from typing import Final, NoReturn

from pylon.auth.cookies import session_cookie
from pylon.auth.origin import origins
from pylon.errors import PylonError
from workers.boot import Booted
from workers.hub.acceptor import Acceptor
from workers.hub.hub import Hub
from workers.hub.reception import Reception, Visitor
from workers.hub.request import Request
from workers.hub.service import Service
from workers.ws import protocol
from workers.ws.transport import WebSocketTransport

NO_SHARD_NAMED: Final = 4400
NO_SUCH_SHARD: Final = 4404
TRY_AGAIN: Final = 1013


@dataclass(frozen=True, slots=True)
class _Door:
    handshakes: protocol.Handshakes
    reception: Reception

    def open(
        self, request: Request, raw: _socket.socket, early: bytes, *, on_main_port: bool
    ) -> None:
        """Say why there is nothing to subscribe to."""
        handshake = self.handshakes.read(request, on_main_port=on_main_port)
        visitor = Visitor(handshake.address, handshake.token, None, early, handshake.answer)
        connection, error = self.reception.enter(raw, visitor)
        shard_id = handshake.parameters.get("shard")
        if error is not None:
            connection.close(TRY_AGAIN, error.code)
        elif not shard_id:
            connection.close(NO_SHARD_NAMED, "the parameter shard is missing")
        else:
            connection.close(NO_SUCH_SHARD, f'no such shard "{shard_id}"')

    def refusal(self, error: PylonError) -> bytes:
        """See `protocol.refusal`."""
        return protocol.refusal(error)


def serve(booted: Booted) -> NoReturn:
    """Serve until SIGTERM."""
    app = booted.app
    transport = WebSocketTransport("shards", app.config.ws_max_message_bytes)
    hub = Hub({}, transport, app.clock)
    reception = Reception(booted, hub, transport)
    handshakes = protocol.Handshakes(
        app.config.trust_proxy_hops, origins(app.config, app.manifest),
        session_cookie(app.config, app.manifest).name, deflates=False,
    )
    acceptor = Acceptor(booted.listen_socket, _Door(handshakes, reception), app.clock)
    Service(booted, hub, acceptor, reception).run()
