"""Metrics of any worker: credentials, rates, writes, reads of the store, its event loop."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import FAST_S, SUPERVISOR, WORKER
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

AUTH_ATTEMPTS: Final = Counter(
    "pylon_auth_attempts_total", "Credentials judged, by result.", ("result",), registry=WORKER,
)
RATE_LIMITED: Final = Counter(
    "pylon_rate_limited_total", "Requests and messages refused by a rate, by rate.", ("rate",),
    registry=WORKER,
)
RATE_SKIPPED: Final = Counter(
    "pylon_rate_limit_skipped_total",
    "Takes from a rate that passed because another process had locked the bucket.",
    registry=WORKER,
)
RATE_EVICTED: Final = Counter(
    "pylon_rate_limit_evictions_total",
    "Cells of the rate table that were dropped early because their bucket was full.",
    registry=WORKER,
)
WRITE_WAIT: Final = Histogram(
    "pylon_write_duration_seconds", "Time from handing a write to the bus to its reply.",
    buckets=FAST_S, registry=WORKER,
)
WRITES_IN_FLIGHT: Final = Gauge(
    "pylon_writes_in_flight", "Writes sent to the writer and not yet answered.", registry=WORKER,
)
POOL_WAIT: Final = Histogram(
    "pylon_db_pool_wait_seconds", "Time that a read waited for a connection.",
    buckets=FAST_S, registry=WORKER,
)
DATABASE_LOST: Final = Counter(
    "pylon_database_connections_lost_total",
    "Connections for short reads that a worker lost to the database.", registry=WORKER,
)
READS_MOVED: Final = Counter(
    "pylon_reads_moved_to_threads_total",
    "Reads that took too long for the loop and went to the thread pool.",
    registry=WORKER,
)
QUERIES: Final = Counter(
    "pylon_queries_total", "Reads of rows that the store has answered, by entity and kind.",
    ("entity", "kind"), registry=WORKER,
)
QUERY_SECONDS: Final = Counter(
    "pylon_query_seconds_total",
    "Time that reads of rows took, policies included and the wait for a connection not.",
    ("entity", "kind"), registry=WORKER,
)
SLOW_QUERIES: Final = Counter(
    "pylon_slow_queries_total", "Reads of rows that took longer than PYLON_SLOW_QUERY_S.",
    ("entity", "kind"), registry=WORKER,
)
POLICY_LOOKUPS: Final = Counter(
    "pylon_policy_lookups_total",
    "Rows that exists(...) of policies looked for one by one, by the entity that they asked.",
    ("entity",), registry=WORKER,
)
POLICY_LOOKUP_SECONDS: Final = Counter(
    "pylon_policy_lookup_seconds_total", "Time that these look-ups took.", ("entity",),
    registry=WORKER,
)
UNINDEXED_QUERIES: Final = Counter(
    "pylon_unindexed_queries_total",
    "Slow queries of tables above 50,000 rows that no index serves, by the index that would help.",
    ("entity", "index"), registry=WORKER,
)
ADMISSION_WAITING: Final = Gauge(
    "pylon_admission_queue_length",
    "Requests that wait for a slot of a shared resource, by resource.",
    ("queue",), registry=WORKER,
)
ADMISSION_REFUSED: Final = Counter(
    "pylon_admission_refused_total",
    "Requests refused because too many waited for a shared resource, by resource.",
    ("queue",), registry=WORKER,
)
STREAMED_WAITING: Final = Gauge(
    "pylon_streamed_responses_waiting",
    "Responses of many pages that wait for the turn of their next page.",
    registry=WORKER,
)
ACCEPT_PAUSES: Final = Counter(
    "pylon_accept_pauses_total",
    "Times that a worker stopped accepting because it was out of descriptors.", registry=WORKER,
)
EVENT_LOOP_STALL: Final = Gauge(
    "pylon_event_loop_stall_seconds",
    "Longest time in the last second that the event loop was held up.",
    registry=WORKER,
)
# The writer asks related rows too.
SUPERVISOR.register(POLICY_LOOKUPS)
SUPERVISOR.register(POLICY_LOOKUP_SECONDS)
