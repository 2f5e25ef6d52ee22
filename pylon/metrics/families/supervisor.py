"""Metrics of the supervisor: its processes, rooms, and the place among other nodes."""

from __future__ import annotations

import platform
from typing import Final

from prometheus_client import Gauge

import pylon
from pylon.metrics.registries import SUPERVISOR
from pylon.metrics.values import PlainCounter as Counter

BUILD_INFO: Final = Gauge(
    "pylon_build_info", "Always 1; the labels name the versions that run.", ("version", "python"),
    registry=SUPERVISOR,
)
BUILD_INFO.labels(pylon.__version__, platform.python_version()).set(1)
UPTIME: Final = Gauge("pylon_uptime_seconds", "Seconds since the start.", registry=SUPERVISOR)
GENERATION: Final = Gauge(
    "pylon_generation", "The number of the present workers' generation: 1 at a start, one more "
    "after each reload and scaling.", registry=SUPERVISOR,
)
RELOADS: Final = Counter(
    "pylon_reloads_total", "Reloads and scalings: done, refused by the checks, or failed because "
    "new workers did not start.", ("result",), registry=SUPERVISOR,
)
RELAY_LAG_SEQS: Final = Gauge(
    "pylon_relay_lag_seqs", "How far the changes that were sent to the workers are behind the "
    "newest that this node has heard of (PostgreSQL).", registry=SUPERVISOR,
)
RELAY_LAG_SECONDS: Final = Gauge(
    "pylon_relay_lag_seconds", "For how long they have been behind, or the database has not "
    "answered (PostgreSQL).", registry=SUPERVISOR,
)
NODES: Final = Gauge(
    "pylon_nodes", "Nodes that share the database and live, this one among them (PostgreSQL).",
    registry=SUPERVISOR,
)
NODE_LEADS: Final = Gauge(
    "pylon_node_leads", "1 while this node does the upkeep of all nodes (PostgreSQL).",
    registry=SUPERVISOR,
)
NEWS_BYTES: Final = Counter(
    "pylon_news_bytes_total", "Bytes of news that this node has sent to the others (PostgreSQL).",
    registry=SUPERVISOR,
)
NEWS_DROPPED: Final = Counter(
    "pylon_news_dropped_total", "News to other nodes that were dropped because too many waited.",
    registry=SUPERVISOR,
)
NEWS_LOST: Final = Counter(
    "pylon_news_lost_total", "Gaps in the news of other nodes, after which this node asked anew.",
    registry=SUPERVISOR,
)
WORKER_RESTARTS: Final = Counter(
    "pylon_worker_restarts_total", "Workers started again, by role and why.", ("role", "reason"),
    registry=SUPERVISOR,
)
WORKERS_READY: Final = Gauge(
    "pylon_workers_ready", "Worker processes that are ready.", ("role",), registry=SUPERVISOR,
)
WORKERS_WANTED: Final = Gauge(
    "pylon_workers_wanted", "Worker processes that there should be.", ("role",),
    registry=SUPERVISOR,
)
ROOMS: Final = Gauge("pylon_rooms", "Rooms that have members.", registry=SUPERVISOR)
ROOM_MEMBERS: Final = Gauge(
    "pylon_room_members", "Members of all rooms; who is in two counts twice.", registry=SUPERVISOR,
)
ROOM_EVENTS: Final = Counter(
    "pylon_room_updates_total", "Updates for subscribers of rooms: sent, coalesced, or dropped.",
    ("result",), registry=SUPERVISOR,
)
