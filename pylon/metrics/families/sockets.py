"""Metrics of ws and sse workers: connections, fan-out, live queries, documents, hints."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import BYTES, FAST_S, WORKER
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

CONNECTIONS: Final = Gauge(
    "pylon_connections", "Open client connections of the process.", registry=WORKER,
)
SYNC_SCOPES: Final = Gauge(
    "pylon_sync_scopes",
    "Groups of connections that ask for a part of the data only (docs/sync.md).", registry=WORKER,
)
CONNECTIONS_OPENED: Final = Counter(
    "pylon_connections_opened_total", "Client connections accepted.", registry=WORKER,
)
CONNECTIONS_CLOSED: Final = Counter(
    "pylon_connections_closed_total", "Client connections ended, by close code.", ("code",),
    registry=WORKER,
)
HANDSHAKES: Final = Counter(
    "pylon_handshakes_total", "Requests on the socket ports, by result.", ("result",),
    registry=WORKER,
)
SOCKETS_PASSED: Final = Counter(
    "pylon_sockets_passed_total",
    "Connections handed to another process, by whether one took them.", ("result",),
    registry=WORKER,
)
MESSAGES_SENT: Final = Counter(
    "pylon_messages_sent_total", "Messages written to client sockets.", registry=WORKER,
)
DEFLATE_SAVED: Final = Counter(
    "pylon_deflate_saved_bytes_total",
    "Bytes by which permessage-deflate made frames smaller; once where many sockets share one.",
    registry=WORKER,
)
MESSAGES_RECEIVED: Final = Counter(
    "pylon_messages_received_total", "Messages read from client sockets, by type.", ("type",),
    registry=WORKER,
)
SEND_QUEUE_BYTES: Final = Histogram(
    "pylon_send_queue_size_bytes",
    "Bytes in a client's outbox when it could not be emptied at once.",
    buckets=BYTES, registry=WORKER,
)
SLOW_CLIENTS: Final = Counter(
    "pylon_slow_clients_total", "Clients that read too slowly, by action.", ("action",),
    registry=WORKER,
)
SOCKETS_OVER_BUDGET: Final = Counter(
    "pylon_sockets_over_budget_total", "WebSockets that exceeded their budget, by action.",
    ("action",), registry=WORKER,
)
SYNC_DELIVERY: Final = Histogram(
    "pylon_sync_delivery_duration_seconds",
    "Time from the commit of a change to its last socket; of the first change of those that a "
    "worker sent together.", buckets=FAST_S, registry=WORKER,
)
FAN_OUT: Final = Histogram(
    "pylon_fan_out_duration_seconds",
    "Time that a worker took to send the changes of one turn to its sockets.",
    buckets=FAST_S, registry=WORKER,
)
RECOVERIES: Final = Counter(
    "pylon_client_recoveries_total", "Reconnecting clients, by how they caught up.", ("result",),
    registry=WORKER,
)
MEMBERSHIP_KEYS: Final = Gauge(
    "pylon_membership_keys", "Keys of the membership sets that policies with exists() need.",
    registry=WORKER,
)
MEMBERSHIP_CHANGES: Final = Counter(
    "pylon_membership_changes_total",
    "Connected callers whose memberships a change may have turned, so that they caught up.",
    registry=WORKER,
)
LIVE_QUERIES: Final = Gauge(
    "pylon_live_queries", "Live queries that clients have subscribed to.", registry=WORKER,
)
LIVE_DIFFS: Final = Counter(
    "pylon_live_query_diffs_total", "Changes of live queries sent to clients.", registry=WORKER,
)
LIVE_QUERIES_SHED: Final = Counter(
    "pylon_live_queries_shed_total", "Live queries ended because their patterns met too much text.",
    registry=WORKER,
)
LIVE_EVALUATION: Final = Histogram(
    "pylon_live_query_evaluation_duration_seconds",
    "Time to judge a batch of changes for all live queries.",
    buckets=FAST_S, registry=WORKER,
)
LIVE_WINDOWS: Final = Gauge(
    "pylon_live_windows", "Live windows in memory; equal ones of equal readers count once.",
    registry=WORKER,
)
LIVE_WINDOW_READS: Final = Counter(
    "pylon_live_window_reads_total",
    "Reads of the store for live windows, by reason; row: one row that moved in.", ("reason",),
    registry=WORKER,
)
LIVE_WINDOWS_WAITING: Final = Gauge(
    "pylon_live_windows_waiting", "Live windows that wait until rows are read for them.",
    registry=WORKER,
)
DOCUMENT_MERGE_CHECKS: Final = Counter(
    "pylon_document_merge_checks_total", "Pushed document updates merged on trial, by result.",
    ("result",), registry=WORKER,
)
DOCUMENT_SUBSCRIPTIONS: Final = Gauge(
    "pylon_document_subscriptions", "Subscriptions of sockets to rows' documents.",
    registry=WORKER,
)
HINTS_DROPPED: Final = Counter(
    "pylon_cursor_hints_dropped_total", "Cursor hints dropped early because there were too many.",
    registry=WORKER,
)
ROOM_MEMBERS_REMOVED: Final = Counter(
    "pylon_room_members_removed_total",
    "Callers whom a change of rows put out of a room, by the policies of rooms.", registry=WORKER,
)
