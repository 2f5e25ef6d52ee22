"""The shards worker: simulations, and the sockets that watch and steer them.

It loads the app's module (`PYLON_APP`), answers commands of other processes, and takes
connections from its own port, from HTTP workers, and from siblings that accepted one for a
shard which lives here.

At the drain matchmaking stops, every shard has a last tick, is saved, and says good-bye to its
subscribers. A kind that ticks when empty goes on at start from where it was saved; any other
when somebody comes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NoReturn

import gevent

from pylon import limits, log
from pylon.auth.cookies import session_cookie
from pylon.auth.origin import origins
from pylon.auth.response_headers import socket_headers
from pylon.bus.calls import CallPort
from pylon.bus.passing import SocketReceiver, SocketSender
from pylon.bus.shards import CHANNEL, ShardsClient
from pylon.bus.writer_client import WriterClient
from pylon.cluster.links import open_links
from pylon.errors import PylonError, StartRefused
from pylon.realtime.app_module import load_app_module
from pylon.realtime.kinds import kind_of, kinds
from pylon.realtime.placement import Placement
from workers.boot import EXIT_CONFIG, WorkerContext, boot
from workers.hub.acceptor import Acceptor
from workers.hub.admission import SubscriberAdmission
from workers.hub.close_codes import GOING_AWAY, SERVICE_RESTART
from workers.hub.hub import Hub
from workers.hub.service import Service
from workers.shards.cluster import make_entries, open_port
from workers.shards.handler import MAIN_PORT, ShardConnectionHandler, Streams
from workers.shards.leases import ShardLeases
from workers.shards.matchmaking import Matchmaking
from workers.shards.reconnect_tokens import ReconnectTokens
from workers.shards.registry import ShardRegistry
from workers.shards.rpc_handlers import ShardRpcHandlers
from workers.sse.stream import EventStreamTransport
from workers.ws import protocol
from workers.ws.transport import WebSocketTransport

SIBLINGS: Final = "siblings"
_LEASE_CHECK_S: Final = 0.25
_RESUME_EVERY_S: Final = 5.0
_log = log.get_logger("shards")


def run() -> NoReturn:
    """Be a worker of this role, from its fork to its end."""
    serve(boot())


def serve(booted: WorkerContext) -> NoReturn:
    """Serve until SIGTERM.

    Raises:
        SystemExit: 78 when the app's module cannot be loaded (the reason is logged).
    """
    app, config = booted.app, booted.app.config
    _load(config.app)
    store = booted.reader_pool
    workers = config.workers_of("shards")
    writer = WriterClient(booted.runtime, app.clock)
    is_shared = config.database_url is not None
    placement = Placement(store, workers, is_shared=is_shared)
    leases = ShardLeases(writer, app.clock, booted.worker) if is_shared else None
    registry = ShardRegistry(
        store, writer, app.clock, app.random, config.data_dir / "recordings", booted.limiter,
        placement, worker=booted.worker, leases=leases,
    )
    links = open_links(booted.runtime.cluster_key, app.clock, app.random)
    client = ShardsClient(booted.runtime, placement, app.random, links)
    matchmaking = None
    if is_shared or placement.matchmaker().worker == booted.worker:
        matchmaking = Matchmaking(client, app.clock, lambda: admission.draining, leases)
    answers = ShardRpcHandlers(
        booted.worker, registry, matchmaking, config.shard_url if is_shared else None
    )
    port = CallPort(booted.runtime.shards(booted.worker), CHANNEL, answers.answer)

    cookie_name = session_cookie(config, app.manifest).name
    trusted = origins(config, app.manifest)
    headers = socket_headers(config, trusted)
    transport = WebSocketTransport(
        "shards", config.ws_max_message_bytes, clock=app.clock,
        counts_addresses=config.sockets_per_ip > 0,
    )
    stream_transport = EventStreamTransport()
    hub = Hub({}, transport, app.clock)
    streams = Hub({}, stream_transport, app.clock)
    admission = SubscriberAdmission(booted, hub)
    admission.serve(streams)
    entries, entry_hubs = make_entries(booted, links, admission, lambda: handler)
    handler = ShardConnectionHandler(
        worker=booted.worker, hops=config.trust_proxy_hops, placement=placement,
        registry=registry, reconnect_tokens=ReconnectTokens(app.random),
        siblings=SocketSender(booted.runtime, SIBLINGS),
        handshakes=protocol.Handshakes(
            config.trust_proxy_hops, trusted, cookie_name, deflates=False,
        ),
        admission=admission,
        streams=Streams(streams, stream_transport, cookie_name, headers), random=app.random,
        entries=entries,
    )
    transport.on_text = transport.on_binary = handler.on_message
    hub.on_closed(handler.drop_connection)
    streams.on_closed(handler.drop_connection)
    acceptor = Acceptor(
        booted.listen_socket, handler, app.clock,
        opens_wait=not booted.reader_pool.local_reads,
    )
    from_http = SocketReceiver(
        booted.runtime, booted.role, booted.worker, acceptor.add_passed_socket
    )
    from_siblings = SocketReceiver(
        booted.runtime, SIBLINGS, booted.worker,
        lambda raw, data: acceptor.add_passed_socket(
            raw, data[1:], on_main_port=data[:1] == MAIN_PORT
        ),
    )

    def at_drain() -> None:
        code = GOING_AWAY if leases is None else SERVICE_RESTART  # another node goes on
        unsaved = registry.drain(code, "server is going away")
        (_log.error if unsaved else _log.info)("shards.drained", unsaved=unsaved)

    service = Service(
        booted, (hub, streams, *entry_hubs), acceptor, admission, passed=(from_http, from_siblings),
        at_drain=at_drain,
    )
    registry.scheduler.install()
    service.spawn(registry.scheduler.run)
    service.spawn(port.run)
    if matchmaking is not None:
        service.spawn(matchmaking.run)
    _cluster_port = open_port(booted, admission, answers.answer, handler)
    if leases is None:
        _resume_saved(booted, registry, placement)
    else:
        admission.node.on_report(lambda report: placement.update(report.node, report.nodes))
        admission.node.on_report(leases.take_report)
        service.spawn(lambda: _follow_lease(booted, registry, placement, leases))
    service.run()


def _follow_lease(
    booted: WorkerContext, registry: ShardRegistry, placement: Placement, leases: ShardLeases
) -> NoReturn:
    """Stop all shards when the lease of this node has ended, and bring saved ones back that tick
    when empty, also those of nodes that have ended."""
    resume_at_s = 0.0
    while True:
        now_s = booted.clock.monotonic_s()
        if not leases.is_valid():
            if leases.claimed_ids():
                _log.warning("shards.released", hint="another node may run them from now on")
                leases.lose_all()
            resume_at_s = now_s
        elif now_s >= resume_at_s and not registry.draining:
            resume_at_s = now_s + _RESUME_EVERY_S
            _resume_saved(booted, registry, placement)
        gevent.sleep(_LEASE_CHECK_S)


def _load(path: str | None) -> None:
    if path is None:
        return
    try:
        load_app_module(Path(path))
    except StartRefused as ex:
        _log.error("worker.refused", code=ex.code, message=ex.message)
        raise SystemExit(EXIT_CONFIG) from ex
    _log.info("app.loaded", path=path, shards=sorted(kinds()))


def _resume_saved(
    booted: WorkerContext, registry: ShardRegistry, placement: Placement
) -> None:
    """Bring back the saved shards that live here and tick when empty."""
    if not any(kind.config.tick_when_empty for kind in kinds().values()):
        return
    store = booted.reader_pool
    try:
        for at_rest in store.point(lambda reader: reader.shards(limits.SHARDS)):
            kind = kind_of(at_rest.id)
            if kind is None or not kind.config.tick_when_empty or registry.has_shard(at_rest.id):
                continue
            if at_rest.is_held and at_rest.owner != registry.name:
                continue
            home = placement.find(at_rest.id)
            if home.is_here and home.worker == booted.worker:
                registry.find_or_make(at_rest.id)
    except PylonError as ex:  # they come when somebody asks for them
        _log.warning("shards.not_restored", code=ex.code, message=ex.message)
