"""The ws worker: changes over WebSocket, on its own port and on the main one (spec/realtime.md §2).

HTTP workers accept upgrades of ``/api/sync/ws`` on the main port, and pass them to the ws workers
(`pylon.bus.passing`). Started by `workers.template` (`pylon.roles`).
"""

from __future__ import annotations

from typing import NoReturn

import msgspec

from pylon.app_rates import AppRates
from pylon.auth.cookies import session_cookie
from pylon.auth.origin import origins
from pylon.auth.response_headers import SocketHeaders, socket_headers
from pylon.bus.passing import SocketReceiver
from pylon.bus.room_updates import RoomUpdatesSubscriber
from pylon.bus.rooms_client import RoomsClient
from pylon.bus.shards import ShardsClient
from pylon.bus.writer_client import WriterClient
from pylon.changelog.scope import parse_entities
from pylon.cluster.links import open_links
from pylon.errors import PylonError
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.realtime.placement import Placement
from pylon.runtime.raw_socket import RawSocket
from pylon.storage.related import StoredRelated
from workers.boot import WorkerContext, boot
from workers.hub.acceptor import Acceptor
from workers.hub.admission import ConnectRequest, SubscriberAdmission
from workers.hub.hub import Hub
from workers.hub.refusals import refusal_headers
from workers.hub.replay import Replay
from workers.hub.request import Request, cursor_of
from workers.hub.service import ChangeStream, Service
from workers.ws import protocol
from workers.ws.conversation import Conversation, Feature
from workers.ws.documents import Documents
from workers.ws.identity import Identity
from workers.ws.live_queries import LiveQueries
from workers.ws.matches import Matches
from workers.ws.rooms import Rooms
from workers.ws.stream_scope import StreamScope
from workers.ws.transport import WebSocketTransport


class WebSocketHandler(msgspec.Struct, frozen=True):
    """`workers.hub.acceptor.UpgradeHandler` of the ws worker."""

    handshakes: protocol.Handshakes
    admission: SubscriberAdmission
    replay: Replay
    transport: WebSocketTransport
    rules: RuleSet
    manifest: Manifest
    headers: SocketHeaders

    def open(
        self, request: Request, raw: RawSocket, early: bytes, *, on_main_port: bool
    ) -> None:
        """Stream changes to a client.

        Raises:
            BadUpgrade, InvalidApiKey, InvalidJwt, InvalidQuery, Draining, SocketLimit: the
                acceptor still owns the socket.
        """
        handshake = self.handshakes.read(request, on_main_port=on_main_port)
        cursor = cursor_of(handshake.parameters.get("since"))
        connect_request = ConnectRequest(
            handshake.address, handshake.token, cursor, early, handshake.answer,
            handshake.deflate_window,
            wants_changes=handshake.parameters.get("changes") != "0",
            scope=parse_entities(
                self.rules, self.manifest, handshake.parameters.get("entities")
            ),
        )
        self.admission.stream(raw, connect_request, self.replay, self.transport)

    def refusal(self, error: PylonError, request: Request | None) -> bytes:
        """Return the response for an error (`protocol.refusal`)."""
        return protocol.refusal(error, refusal_headers(self.headers, request))


def run() -> NoReturn:
    """Be a worker of this role, from its fork to its end."""
    serve(boot())


def serve(booted: WorkerContext) -> NoReturn:
    """Serve until SIGTERM."""
    app = booted.app
    transport = WebSocketTransport(
        "ws", app.config.ws_max_message_bytes, clock=app.clock,
        counts_addresses=app.config.sockets_per_ip > 0,
    )
    rules = {name: app.rules.for_entity(name) for name in app.manifest.by_name}
    hub = Hub(rules, transport, app.clock, StoredRelated(booted.reader_pool.point_inline))
    admission = SubscriberAdmission(booted, hub)
    changes = ChangeStream(booted, hub, admission)
    live = LiveQueries(app, booted.reader_pool, changes.feed, hub, app.clock)
    rooms = Rooms(
        hub, RoomsClient(booted.runtime, app.random, lambda: admission.node.has_others),
        RoomUpdatesSubscriber(booted.runtime), booted.limiter, app.rules.rooms,
        StoredRelated(booted.reader_pool.point), unscoped=app.config.ws_unscoped_presence,
    )
    writer = WriterClient(booted.runtime, app.clock)
    documents = Documents(
        app, booted.reader_pool, writer, booted.runtime, hub, booted.limiter
    )
    placement = Placement(
        booted.reader_pool, app.config.workers_of("shards"), is_shared=admission.node.is_shared
    )
    admission.node.on_report(lambda report: placement.update(report.node, report.nodes))
    links = open_links(booted.runtime.cluster_key, app.clock, app.random)
    matches = Matches(ShardsClient(booted.runtime, placement, app.random, links), booted.limiter)
    features: tuple[Feature, ...] = (rooms, live, documents, matches)
    identity = Identity(hub, admission, features)
    stream = StreamScope(hub, admission.change_scope, app.rules, app.manifest)
    conversation = Conversation(
        hub, (identity, stream, *features), AppRates(app.manifest.rate_limits, booted.limiter)
    )
    transport.on_text = conversation.on_text
    live.on_restart(conversation.enqueue)
    trusted = origins(app.config, app.manifest)
    handshakes = protocol.Handshakes(
        app.config.trust_proxy_hops, trusted,
        session_cookie(app.config, app.manifest).name, app.config.ws_deflate,
    )
    handler = WebSocketHandler(
        handshakes, admission, changes.replay, transport, app.rules, app.manifest,
        socket_headers(app.config, trusted),
    )
    acceptor = Acceptor(
        booted.listen_socket, handler, app.clock,
        opens_wait=not booted.reader_pool.local_reads,
    )
    passed = SocketReceiver(booted.runtime, booted.role, booted.worker, acceptor.add_passed_socket)
    service = Service(booted, (hub,), acceptor, admission, passed=(passed,))
    rooms.start(service.spawn)
    documents.start(service.spawn)
    matches.start(service.spawn)
    service.run(changes)
