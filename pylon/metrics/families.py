"""Every metric of the project: prometheus_client's counters, gauges and histograms, as constants.

The registry `WORKER` has the metrics of workers, `SUPERVISOR` those of the supervisor; the
metrics of the bus are in both. Callers use the constants: ``metrics.BUS_DROPPED.labels(
"status").inc()``. Code that runs for each request or message keeps the child of `labels(…)`:
the look-up takes a lock. Labels never carry ids.

Invariants: no other module declares a metric; names follow Prometheus' rules (base units,
`_total` on counters); importing this module starts no thread and touches no file, so a process
may fork after it.
"""

from __future__ import annotations

import platform
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

import pylon
from pylon.metrics import values
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

values.install()
WORKER: Final = CollectorRegistry()
SUPERVISOR: Final = CollectorRegistry()

_FAST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SLOW_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
_BYTES: Final = (1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576)

# --- HTTP workers --------------------------------------------------------------------------

HTTP_REQUESTS: Final = Counter(
    "pylon_http_requests_total", "Answered HTTP requests.", ("route", "method", "status"),
    registry=WORKER,
)
HTTP_UNKNOWN_PARAMETERS: Final = Counter(
    "pylon_http_unknown_parameters_total",
    "Requests with a query parameter that the route does not take.", ("route",), registry=WORKER,
)
HTTP_DURATION: Final = Histogram(
    "pylon_http_request_duration_seconds", "Time from a parsed request to its answer.",
    ("route",), buckets=_FAST_S, registry=WORKER,
)
HTTP_REQUESTS_IN_FLIGHT: Final = Gauge(
    "pylon_http_requests_in_flight",
    "Requests being answered at the moment, waiting ones included.",
    registry=WORKER,
)
HTTP_WAITING: Final = Gauge(
    "pylon_http_connections_waiting",
    "Connections that wait for a greenlet to answer them.", registry=WORKER,
)
HTTP_ABORTED: Final = Counter(
    "pylon_http_connections_aborted_total",
    "HTTP connections ended by a limit, by reason.", ("reason",),
    registry=WORKER,
)
COMPRESSED_RESPONSES: Final = Counter(
    "pylon_http_compressed_responses_total",
    "Large responses that the client takes compressed, by encoding; none: too many at once.",
    ("encoding",), registry=WORKER,
)
COMPRESSION_SAVED: Final = Counter(
    "pylon_http_compression_saved_bytes_total",
    "Bytes of responses that compression saved.", registry=WORKER,
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
HIDDEN_CONFLICTS: Final = Counter(
    "pylon_hidden_conflicts_total",
    "Refused writes that reveal a row which the caller may not read, by kind of value; values "
    "that an undone transaction had tried.", ("kind",), registry=WORKER,
)
AUTH_ATTEMPTS: Final = Counter(
    "pylon_auth_attempts_total", "Credentials judged, by result.", ("result",), registry=WORKER,
)
WRITE_WAIT: Final = Histogram(
    "pylon_write_duration_seconds", "Time from handing a write to the bus to its reply.",
    buckets=_FAST_S, registry=WORKER,
)
WRITES_IN_FLIGHT: Final = Gauge(
    "pylon_writes_in_flight", "Writes sent to the writer and not yet answered.", registry=WORKER,
)
POOL_WAIT: Final = Histogram(
    "pylon_db_pool_wait_seconds", "Time that a read waited for a connection.",
    buckets=_FAST_S, registry=WORKER,
)
DATABASE_LOST: Final = Counter(
    "pylon_database_connections_lost_total",
    "Connections for short reads that a worker lost to the database.", registry=WORKER,
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
UNINDEXED_QUERIES: Final = Counter(
    "pylon_unindexed_queries_total",
    "Slow queries of tables above 50,000 rows that no index serves, by the index that would help.",
    ("entity", "index"), registry=WORKER,
)
READS_MOVED: Final = Counter(
    "pylon_reads_moved_to_threads_total",
    "Reads that took too long for the loop and went to the thread pool.",
    registry=WORKER,
)
QUERY_CACHE_LOOKUPS: Final = Counter(
    "pylon_query_cache_lookups_total",
    "Queries and pulls, by whether the query cache had the answer: hit or miss.",
    ("result",), registry=WORKER,
)
QUERY_CACHE_BYTES: Final = Gauge(
    "pylon_query_cache_size_bytes",
    "Bytes of answers in the query cache, which lasts until the next commit.", registry=WORKER,
)

# --- Socket workers --------------------------------------------------------------------------

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
    buckets=_BYTES, registry=WORKER,
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
    "pylon_sync_delivery_duration_seconds", "Time from the receipt of a change to its last socket.",
    buckets=_FAST_S, registry=WORKER,
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
    buckets=_FAST_S, registry=WORKER,
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
EVENT_LOOP_STALL: Final = Gauge(
    "pylon_event_loop_stall_seconds",
    "Longest time in the last second that the event loop was held up.",
    registry=WORKER,
)

# --- Supervisor ------------------------------------------------------------------------------

BUILD_INFO: Final = Gauge(
    "pylon_build_info", "Always 1; the labels name the versions that run.", ("version", "python"),
    registry=SUPERVISOR,
)
BUILD_INFO.labels(pylon.__version__, platform.python_version()).set(1)
UPTIME: Final = Gauge("pylon_uptime_seconds", "Seconds since the start.", registry=SUPERVISOR)
CHANGELOG_SEQ: Final = Gauge(
    "pylon_changelog_newest_seq", "Newest sequence number of the change log.", registry=SUPERVISOR,
)
CHANGELOG_OLDEST_SEQ: Final = Gauge(
    "pylon_changelog_oldest_seq", "Oldest sequence number still kept.", registry=SUPERVISOR,
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
WRITE_QUEUE_DEPTH: Final = Gauge(
    "pylon_write_queue_length", "Write requests taken by the writer and not yet answered.",
    registry=SUPERVISOR,
)
WRITES_REFUSED: Final = Counter(
    "pylon_writes_refused_total", "Writes that the store refused, by reason: nothing of them was "
    "acknowledged.", ("reason",), registry=SUPERVISOR,
)
WRITER_CONNECTIONS_LOST: Final = Counter(
    "pylon_writer_connections_lost_total", "Connections to the database that the writer has lost.",
    registry=SUPERVISOR,
)
BATCHES_LOCKED: Final = Counter(
    "pylon_batches_locked_total", "Batches that have taken the lock of all writers before their "
    "end, since the database was asked about other rows.", registry=SUPERVISOR,
)
BATCHES_EXAMINED: Final = Counter(
    "pylon_batches_examined_total", "Batches that the database has refused, so that each of their "
    "requests was tried alone.", registry=SUPERVISOR,
)
BATCH_READS: Final = Counter(
    "pylon_batch_reads_total", "Reads of batches beyond the one at their beginning.",
    registry=SUPERVISOR,
)
LOCK_WAITS: Final = Counter(
    "pylon_lock_waits_total", "Batches that have waited a second for the lock of all writers.",
    registry=SUPERVISOR,
)
FROZEN_WRITERS: Final = Counter(
    "pylon_frozen_writers_total", "Connections of other nodes that stood still with the lock of "
    "all writers, and were ended.", registry=SUPERVISOR,
)
SEARCH_WORDS_CUT: Final = Counter(
    "pylon_search_words_cut_total", "Rows with more words than the search index takes.",
    registry=SUPERVISOR,
)
BATCHES_OVERTAKEN: Final = Counter(
    "pylon_batches_overtaken_total", "Batches that were executed again, since another node had "
    "changed the same rows.", registry=SUPERVISOR,
)
WRITES_DEFERRED: Final = Gauge(
    "pylon_writes_deferred", "Calls that wait for a later transaction: large rows are being "
    "changed, or the database does not answer.",
    registry=SUPERVISOR,
)
COMMIT: Final = Histogram(
    "pylon_commit_duration_seconds", "Time of a commit.", buckets=_FAST_S, registry=SUPERVISOR,
)
BATCH_SIZE: Final = Histogram(
    "pylon_group_commit_size", "Write requests that shared one commit.", buckets=_SIZES,
    registry=SUPERVISOR,
)
DOCUMENTS_DECODED: Final = Gauge(
    "pylon_document_cache_entries", "Rows' documents that the writer holds in memory.",
    registry=SUPERVISOR,
)
DOCUMENTS_DECODED_BYTES: Final = Gauge(
    "pylon_document_cache_size_bytes", "About how much memory those documents take.",
    registry=SUPERVISOR,
)
DOCUMENT_MERGE: Final = Histogram(
    "pylon_document_merge_duration_seconds",
    "Time to merge a client's update into a row's document.",
    buckets=_FAST_S, registry=SUPERVISOR,
)
CASCADED_ROWS: Final = Counter(
    "pylon_cascaded_rows_total",
    "Rows that deletes took along by onDelete, by what became of them: deleted, set_null.",
    ("outcome",), registry=SUPERVISOR,
)
WAL_BYTES: Final = Gauge(
    "pylon_wal_size_bytes",
    "Size of the write-ahead log up to its last frame; its file may be larger.",
    registry=SUPERVISOR,
)
CHANGELOG_BYTES: Final = Gauge(
    "pylon_changelog_size_bytes", "Size of the change events that are kept, about.",
    registry=SUPERVISOR,
)
DB_WRITABLE: Final = Gauge(
    "pylon_db_writable", "1 while the database may be written to, and its file is in its place.",
    registry=SUPERVISOR,
)
WAL_HELD: Final = Gauge(
    "pylon_wal_held_seconds", "How long a reader has kept a WAL above its limit from being reset.",
    registry=SUPERVISOR,
)
CHECKPOINT: Final = Histogram(
    "pylon_checkpoint_duration_seconds", "Time of a WAL checkpoint.", ("mode",), buckets=_SLOW_S,
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
DB_BYTES: Final = Gauge(
    "pylon_db_size_bytes", "Size of the database file, without its write-ahead log.",
    registry=SUPERVISOR,
)
DISK_FREE_BYTES: Final = Gauge(
    "pylon_disk_free_bytes", "Space that the server may still use on the database's disk.",
    registry=SUPERVISOR,
)
SESSIONS: Final = Gauge(
    "pylon_sessions", "Stored sessions, expired ones not yet collected included, by kind; counted "
    "once a minute.", ("kind",), registry=SUPERVISOR,
)
SESSIONS_COLLECTED: Final = Counter(
    "pylon_sessions_deleted_total",
    "Sessions deleted because they had expired, or were guests that nobody had used.",
    registry=SUPERVISOR,
)
DATETIMES_CONVERTED: Final = Counter(
    "pylon_datetimes_converted_total",
    "Rows of an earlier version whose datetimes were brought to the stored notation.",
    registry=SUPERVISOR,
)
DATETIMES_UNCONVERTED: Final = Gauge(
    "pylon_datetimes_unconverted_entities",
    "Entities with rows that the conversion of datetimes has yet to look at.",
    registry=SUPERVISOR,
)
SCHEMA_PENDING: Final = Gauge(
    "pylon_schema_pending_steps",
    "Steps of the schema that are left to do while the server serves: indexes of large tables, and "
    "rows that nodes with another manifest wrote.",
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
ROOM_MEMBERS_REMOVED: Final = Counter(
    "pylon_room_members_removed_total",
    "Callers whom a change of rows put out of a room, by the policies of rooms.", registry=WORKER,
)
BACKUP_LAST_SUCCESS: Final = Gauge(
    "pylon_backup_last_success_timestamp_seconds", "Unix time of the last good backup.",
    registry=SUPERVISOR,
)
BACKUP_DURATION: Final = Gauge(
    "pylon_backup_duration_seconds", "How long the last good backup took.", registry=SUPERVISOR,
)
BACKUP_BYTES: Final = Gauge(
    "pylon_backup_size_bytes", "Size of the last good backup.", registry=SUPERVISOR,
)
BACKUP_RUNNING: Final = Gauge(
    "pylon_backups_running", "Backups that are being made.", registry=SUPERVISOR,
)
BACKUPS: Final = Counter(
    "pylon_backups_total", "Backups of the running server, by result.", ("result",),
    registry=SUPERVISOR,
)

# --- Shards workers --------------------------------------------------------------------------

SHARDS: Final = Gauge("pylon_shards", "Shards of this process, by state.", ("state",),
                      registry=WORKER)
SHARD_SUBSCRIBERS: Final = Gauge(
    "pylon_shard_subscribers", "Subscribers of all running shards.", registry=WORKER,
)
SHARD_TICKS: Final = Counter("pylon_shard_ticks_total", "Ticks done.", registry=WORKER)
SHARD_LATENESS: Final = Histogram(
    "pylon_shard_tick_lateness_seconds", "How late ticks began.", buckets=_FAST_S, registry=WORKER,
)
SHARD_TICK: Final = Histogram(
    "pylon_shard_tick_duration_seconds", "How long ticks took, sending included.", buckets=_FAST_S,
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

# --- Both --------------------------------------------------------------------------------------

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
    "Requests to rooms and shards that are not yet answered, by channel.", ("channel",),
    registry=WORKER,
)
SUPERVISOR.register(BUS_MESSAGES)
SUPERVISOR.register(BUS_DROPPED)

# Derived from HTTP_REQUESTS when the page is made (spec/http.md §7): help texts by name.
DERIVED_HELP: Final = {
    "pylon_http_requests_ok_total": "Answered HTTP requests with a status from 200 to 399.",
    "pylon_http_requests_errors_total": "Answered HTTP requests with any other status.",
    "pylon_http_requests_by_method": "The same as pylon_http_requests_by_method_total: the name "
    "that dashboards of the other server read.",
    "pylon_http_requests_by_method_total": "Answered HTTP requests by method.",
}

__all__ = [  # noqa: RUF022  (in the order above)
    "WORKER", "SUPERVISOR", "HTTP_REQUESTS", "HTTP_UNKNOWN_PARAMETERS", "HTTP_DURATION",
    "HTTP_REQUESTS_IN_FLIGHT",
    "HTTP_WAITING", "HTTP_ABORTED", "COMPRESSED_RESPONSES", "COMPRESSION_SAVED",
    "HIDDEN_CONFLICTS", "AUTH_ATTEMPTS", "WRITE_WAIT",
    "WRITES_IN_FLIGHT", "POOL_WAIT", "DATABASE_LOST", "ADMISSION_WAITING", "ADMISSION_REFUSED",
    "STREAMED_WAITING", "UNINDEXED_QUERIES",
    "READS_MOVED", "QUERY_CACHE_LOOKUPS", "QUERY_CACHE_BYTES", "CONNECTIONS", "CONNECTIONS_OPENED",
    "SYNC_SCOPES",
    "CONNECTIONS_CLOSED", "HANDSHAKES", "SOCKETS_PASSED", "MESSAGES_SENT", "DEFLATE_SAVED",
    "MESSAGES_RECEIVED", "SEND_QUEUE_BYTES", "SLOW_CLIENTS", "SOCKETS_OVER_BUDGET", "SYNC_DELIVERY",
    "RECOVERIES", "MEMBERSHIP_KEYS", "MEMBERSHIP_CHANGES",
    "LIVE_QUERIES", "LIVE_DIFFS", "LIVE_EVALUATION", "LIVE_QUERIES_SHED",
    "LIVE_WINDOWS", "LIVE_WINDOW_READS", "LIVE_WINDOWS_WAITING",
    "DOCUMENT_SUBSCRIPTIONS", "DOCUMENT_MERGE_CHECKS", "RATE_LIMITED", "RATE_SKIPPED",
    "RATE_EVICTED", "HINTS_DROPPED", "EVENT_LOOP_STALL", "BUILD_INFO", "UPTIME", "CHANGELOG_SEQ",
    "CHANGELOG_OLDEST_SEQ", "RELAY_LAG_SEQS", "RELAY_LAG_SECONDS", "NODES", "NODE_LEADS",
    "CLUSTER_LINKS", "CLUSTER_PEERS", "CLUSTER_LOST", "CLUSTER_REFUSED", "CLUSTER_CALLS",
    "CLUSTER_TUNNELS", "CLUSTER_BYTES", "CLUSTER_FULL", "NEWS_BYTES",
    "NEWS_DROPPED", "NEWS_LOST", "WRITE_QUEUE_DEPTH",
    "WRITES_REFUSED", "WRITER_CONNECTIONS_LOST",
    "BATCHES_LOCKED", "BATCHES_EXAMINED", "BATCH_READS", "LOCK_WAITS", "FROZEN_WRITERS",
    "SEARCH_WORDS_CUT", "BATCHES_OVERTAKEN",
    "WRITES_DEFERRED", "COMMIT",
    "BATCH_SIZE", "DOCUMENTS_DECODED", "DOCUMENTS_DECODED_BYTES", "DOCUMENT_MERGE", "CASCADED_ROWS",
    "WAL_BYTES",
    "WAL_HELD", "DB_WRITABLE", "CHANGELOG_BYTES", "CHECKPOINT", "WORKER_RESTARTS", "WORKERS_READY",
    "WORKERS_WANTED", "DB_BYTES", "DISK_FREE_BYTES", "SESSIONS", "SESSIONS_COLLECTED",
    "DATETIMES_CONVERTED", "DATETIMES_UNCONVERTED", "SCHEMA_PENDING", "ROOMS",
    "ROOM_MEMBERS", "ROOM_EVENTS", "ROOM_MEMBERS_REMOVED",
    "BACKUP_LAST_SUCCESS", "BACKUP_DURATION", "BACKUP_BYTES",
    "BACKUP_RUNNING", "BACKUPS", "SHARDS", "SHARD_SUBSCRIBERS", "SHARD_TICKS", "SHARD_LATENESS",
    "SHARD_TICK", "SHARD_INPUTS", "SHARD_INPUTS_REJECTED", "SHARD_FRAMES", "SHARD_STOPS",
    "BUS_MESSAGES", "BUS_DROPPED", "BUS_IN_FLIGHT",
]
