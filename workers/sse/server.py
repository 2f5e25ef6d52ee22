"""The sse worker: changes as server-sent events (spec/realtime.md §3)."""

from __future__ import annotations

import _socket
from dataclasses import dataclass
from typing import NoReturn

from pylon.auth.cookies import session_cookie
from workers.boot import Booted
from workers.hub import handover
from workers.hub.addresses import AddressCap
from workers.hub.hub import Hub
from workers.hub.reception import Reception, Visitor
from workers.hub.replay import Replay
from workers.hub.service import ChangeStream, Service
from workers.sse.protocol import handler_for
from workers.sse.stream import EventStreamTransport, cors_of


@dataclass(frozen=True, slots=True)
class _Door:
    reception: Reception
    replay: Replay
    transport: EventStreamTransport

    def check(self, address: str) -> None:
        """See `Reception.check`."""
        self.reception.check(address)

    def accept(self, raw: _socket.socket, early: bytes, visitor: Visitor) -> None:
        """Stream changes to it."""
        self.reception.stream(raw, early, visitor, self.replay, self.transport)


def serve(booted: Booted) -> NoReturn:
    """Serve until SIGTERM."""
    app = booted.app
    cors = cors_of(app.config)
    transport = EventStreamTransport(cors)
    hub = Hub({name: app.rules.of(name) for name in app.manifest.by_name}, transport, app.clock)
    changes = ChangeStream(booted, hub)
    reception = Reception(
        app, booted.reader_pool, hub, AddressCap(app.config.sockets_per_ip), transport
    )
    handler = handler_for(
        _Door(reception, changes.replay, transport),
        session_cookie(app.config, app.manifest).name,
        cors,
        app.config.trust_proxy_hops,
    )
    server = handover.make_server(booted.listen_socket, handler)
    Service(booted, hub, server, reception).run(changes)
