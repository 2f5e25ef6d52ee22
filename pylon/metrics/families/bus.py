"""Metrics of the bus, which workers and the supervisor both count."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import SUPERVISOR, WORKER
from pylon.metrics.values import PlainCounter as Counter

BUS_MESSAGES: Final = Counter(
    "pylon_bus_messages_total", "Messages sent on the bus, by channel.", ("channel",),
    registry=WORKER,
)
BUS_DROPPED: Final = Counter(
    "pylon_bus_messages_dropped_total",
    "Messages lost on the bus (gaps seen), by channel.", ("channel",),
    registry=WORKER,
)
BUS_IN_FLIGHT: Final = Gauge(
    "pylon_bus_requests_in_flight",
    "Requests to rooms, shards and the identity process that are not yet answered, by channel.",
    ("channel",), registry=WORKER,
)
SUPERVISOR.register(BUS_MESSAGES)
SUPERVISOR.register(BUS_DROPPED)
