"""Metrics of the cluster port: connections between nodes, and what they carry."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import WORKER
from pylon.metrics.values import PlainCounter as Counter

CLUSTER_LINKS: Final = Gauge(
    "pylon_cluster_links", "Connections of this process to cluster ports of other nodes.",
    registry=WORKER,
)
CLUSTER_PEERS: Final = Gauge(
    "pylon_cluster_peers", "Processes of other nodes that are connected to this cluster port.",
    registry=WORKER,
)
CLUSTER_LOST: Final = Counter(
    "pylon_cluster_links_lost_total", "Connections between nodes that ended, by reason.",
    ("reason",), registry=WORKER,
)
CLUSTER_REFUSED: Final = Counter(
    "pylon_cluster_refused_total",
    "Handshakes (key) and messages (version) that a cluster port has refused.", ("reason",),
    registry=WORKER,
)
CLUSTER_CALLS: Final = Counter(
    "pylon_cluster_calls_total", "Commands sent to shards of other nodes, by result.", ("result",),
    registry=WORKER,
)
CLUSTER_TUNNELS: Final = Gauge(
    "pylon_cluster_tunnels",
    "Connections of clients that pass between this process and another node, by the end that is "
    "here: entry (the client) or exit (the shard).", ("end",), registry=WORKER,
)
CLUSTER_BYTES: Final = Counter(
    "pylon_cluster_sent_bytes_total", "Bytes sent to other nodes by the cluster port, unencrypted.",
    registry=WORKER,
)
CLUSTER_FULL: Final = Counter(
    "pylon_cluster_queue_full_total",
    "Times that the queue to another node was full, so that its connections had to wait.",
    registry=WORKER,
)
