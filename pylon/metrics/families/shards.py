"""Metrics of shards workers: shards, their ticks, inputs and snapshots."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import FAST_S, WORKER
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

SHARDS: Final = Gauge("pylon_shards", "Shards of this process, by state.", ("state",),
                      registry=WORKER)
SHARD_SUBSCRIBERS: Final = Gauge(
    "pylon_shard_subscribers", "Subscribers of all running shards.", registry=WORKER,
)
SHARD_TICKS: Final = Counter("pylon_shard_ticks_total", "Ticks done.", registry=WORKER)
SHARD_LATENESS: Final = Histogram(
    "pylon_shard_tick_lateness_seconds", "How late ticks began.", buckets=FAST_S, registry=WORKER,
)
SHARD_TICK: Final = Histogram(
    "pylon_shard_tick_duration_seconds", "How long ticks took, sending included.", buckets=FAST_S,
    registry=WORKER,
)
SHARD_INPUTS: Final = Counter(
    "pylon_shard_inputs_total", "Inputs that ticks applied or refused.", registry=WORKER,
)
SHARD_INPUTS_REJECTED: Final = Counter(
    "pylon_shard_inputs_rejected_total", "Inputs refused on arrival, by error code.", ("code",),
    registry=WORKER,
)
SHARD_FRAMES: Final = Counter(
    "pylon_shard_snapshots_sent_total", "Snapshots sent, whole or as a delta.", registry=WORKER,
)
SHARD_STOPS: Final = Counter(
    "pylon_shard_stops_total", "Shards that stopped, by reason.", ("reason",), registry=WORKER,
)
SHARD_SAVES_REFUSED: Final = Counter(
    "pylon_shard_saves_refused_total",
    "States of shards that were not stored, because another worker has claimed the shard.",
    registry=WORKER,
)
