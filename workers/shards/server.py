"""The shards worker: accepts and authenticates, and knows no shard yet (spec/realtime.md §4.1).

A client names a shard with ``?shard=`` and itself with ``&sid=`` (default `anon`). Where the
published server drops the connection without a word, this one closes it with a code of the
private range that says why: 4400 for a request without `shard`, 4404 for an unknown shard.
"""

from __future__ import annotations

import _socket
from dataclasses import dataclass
from typing import Final, NoReturn

from workers.boot import Booted
from workers.hub import handover
from workers.hub.addresses import AddressCap
from workers.hub.hub import Hub
from workers.hub.reception import Reception, Visitor
from workers.hub.service import Service
from workers.ws.protocol import Handshake, handler_for
from workers.ws.transport import WebSocketTransport

NO_SHARD_NAMED: Final = 4400
NO_SUCH_SHARD: Final = 4404
TRY_AGAIN: Final = 1013


@dataclass(frozen=True, slots=True)
class _Door:
    reception: Reception

    def check(self, address: str) -> None:
        """See `Reception.check`."""
        self.reception.check(address)

    def accept(self, raw: _socket.socket, early: bytes, handshake: Handshake) -> None:
        """Say why there is nothing to subscribe to."""
        visitor = Visitor(handshake.address, handshake.token, None)
        connection, error = self.reception.enter(raw, early, visitor)
        shard_id = handshake.parameters.get("shard")
        if error is not None:
            connection.close(TRY_AGAIN, error.code)
        elif not shard_id:
            connection.close(NO_SHARD_NAMED, "the parameter shard is missing")
        else:
            connection.close(NO_SUCH_SHARD, f'no such shard "{shard_id}"')


def serve(booted: Booted) -> NoReturn:
    """Serve until SIGTERM."""
    app = booted.app
    transport = WebSocketTransport("shards", app.config.ws_max_message_bytes)
    hub = Hub({}, transport, app.clock)
    reception = Reception(
        app, booted.reader_pool, hub, AddressCap(app.config.sockets_per_ip), transport
    )
    server = handover.make_server(
        booted.listen_socket, handler_for(_Door(reception), app.config.trust_proxy_hops)
    )
    Service(booted, hub, server, reception).run()
