"""Cluster of a shards worker: its tunnels to other nodes, and the port for those of others.

A worker has links and entries if its node has a key pair, which it has where nodes share a
database. It has a port if PYLON_CLUSTER_URL says how others reach it. Called by `server`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pylon import log
from pylon.bus.messages import NodeState
from pylon.cluster.addresses import bind_endpoint
from pylon.cluster.keys import load_key_pair
from pylon.cluster.links import Links
from pylon.cluster.peers import Peers
from pylon.cluster.port import ClusterPort
from workers.boot import WorkerContext
from workers.hub.admission import SubscriberAdmission
from workers.hub.hub import Hub
from workers.shards.tunnel_entries import EntryTransport, TunnelEntries
from workers.shards.tunnel_exits import ShardExits, TunnelHandler

_EXIT_BUSY: Final = 75  # EX_TEMPFAIL: the supervisor starts another worker

_log = log.get_logger("cluster")


def make_entries(
    booted: WorkerContext, links: Links | None, admission: SubscriberAdmission,
    handler: Callable[[], TunnelHandler],
) -> tuple[TunnelEntries | None, tuple[Hub, ...]]:
    """Return the entries of tunnels to other nodes, and the hubs of their connections.

    Args:
        handler: returns the one that makes refusals; called later.
    """
    if links is None:
        return None, ()
    sockets, streams = (
        Hub({}, EntryTransport(is_stream=is_stream), booted.clock) for is_stream in (False, True)
    )
    entries = TunnelEntries(
        links, admission, sockets, streams, booted.app.config.trust_proxy_hops,
        lambda error, request: handler().refusal(error, request),
    )
    return entries, (sockets, streams)


def open_port(
    booted: WorkerContext, admission: SubscriberAdmission, answer: Callable[[bytes], bytes],
    handler: TunnelHandler,
) -> ClusterPort | None:
    """Open the cluster port of this worker, if the node has an address for others.

    Args:
        answer: executes a command of another node (`ClusterPort`).

    Raises:
        SystemExit: 75 when the port is taken.
    """
    config = booted.app.config
    keys = load_key_pair(booted.runtime.cluster_key)
    if keys is None or config.cluster_url is None:
        return None
    peers = Peers()
    endpoint = bind_endpoint(config.bind, config.cluster_url, booted.worker)
    try:
        port = ClusterPort(
            endpoint, keys, peers, booted.clock, booted.app.random, answer=answer,
            exits=ShardExits(handler),
        )
    except OSError as ex:
        _log.error("cluster.not_bound", endpoint=endpoint, error=str(ex),
                   hint="PYLON_CLUSTER_URL: each shards worker needs a free port from there on")
        raise SystemExit(_EXIT_BUSY) from ex

    def take_report(report: NodeState) -> None:
        peers.replace(node for node in report.nodes if node.name != report.node)

    admission.node.on_report(take_report)
    return port
