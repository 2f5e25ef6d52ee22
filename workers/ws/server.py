"""The ws worker: changes over WebSocket (spec/realtime.md §2)."""

from __future__ import annotations

import _socket
from dataclasses import dataclass
from typing import NoReturn

from workers.boot import Booted
from workers.hub import handover
from workers.hub.addresses import AddressCap
from workers.hub.hub import Hub
from workers.hub.reception import Reception, Visitor
from workers.hub.replay import Replay
from workers.hub.service import ChangeStream, Service
from workers.ws.conversation import Conversation
from workers.ws.protocol import Handshake, handler_for
from workers.ws.transport import WebSocketTransport


@dataclass(frozen=True, slots=True)
class _Door:
    reception: Reception
    replay: Replay
    transport: WebSocketTransport

    def check(self, address: str) -> None:
        """See `Reception.check`."""
        self.reception.check(address)

    def accept(self, raw: _socket.socket, early: bytes, handshake: Handshake) -> None:
        """Stream changes to it."""
        cursor = handover.cursor_of(handshake.parameters.get("since"))
        visitor = Visitor(handshake.address, handshake.token, cursor)
        self.reception.stream(raw, early, visitor, self.replay, self.transport)


def serve(booted: Booted) -> NoReturn:
    """Serve until SIGTERM."""
    app = booted.app
    transport = WebSocketTransport("ws", app.config.ws_max_message_bytes)
    hub = Hub({name: app.rules.of(name) for name in app.manifest.by_name}, transport, app.clock)
    transport.on_text = Conversation(hub, features=()).hear
    changes = ChangeStream(booted, hub)
    reception = Reception(
        app, booted.reader_pool, hub, AddressCap(app.config.sockets_per_ip), transport
    )
    door = _Door(reception, changes.replay, transport)
    server = handover.make_server(
        booted.listen_socket, handler_for(door, app.config.trust_proxy_hops)
    )
    Service(booted, hub, server, reception).run(changes)
