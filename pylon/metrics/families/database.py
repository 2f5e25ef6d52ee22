"""Metrics of the database that the supervisor keeps up: change log, files, sessions, backups."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import SLOW_S, SUPERVISOR
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

CHANGELOG_SEQ: Final = Gauge(
    "pylon_changelog_newest_seq", "Newest sequence number of the change log.", registry=SUPERVISOR,
)
CHANGELOG_OLDEST_SEQ: Final = Gauge(
    "pylon_changelog_oldest_seq", "Oldest sequence number still kept.", registry=SUPERVISOR,
)
CHANGELOG_BYTES: Final = Gauge(
    "pylon_changelog_size_bytes", "Size of the change events that are kept, about.",
    registry=SUPERVISOR,
)
WAL_BYTES: Final = Gauge(
    "pylon_wal_size_bytes",
    "Size of the write-ahead log up to its last frame; its file may be larger.",
    registry=SUPERVISOR,
)
WAL_HELD: Final = Gauge(
    "pylon_wal_held_seconds", "How long a reader has kept a WAL above its limit from being reset.",
    registry=SUPERVISOR,
)
CHECKPOINT: Final = Histogram(
    "pylon_checkpoint_duration_seconds", "Time of a WAL checkpoint.", ("mode",), buckets=SLOW_S,
    registry=SUPERVISOR,
)
DB_BYTES: Final = Gauge(
    "pylon_db_size_bytes", "Size of the database file, without its write-ahead log.",
    registry=SUPERVISOR,
)
DB_WRITABLE: Final = Gauge(
    "pylon_db_writable", "1 while the database may be written to, and its file is in its place.",
    registry=SUPERVISOR,
)
DISK_FREE_BYTES: Final = Gauge(
    "pylon_disk_free_bytes", "Space that the server may still use on the database's disk.",
    registry=SUPERVISOR,
)
DISK_LOW: Final = Gauge(
    "pylon_disk_low", "1 while writes are refused because the database's disk has less free "
    "space than PYLON_DISK_FLOOR_BYTES.", registry=SUPERVISOR,
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
RETENTION_DELETED: Final = Counter(
    "pylon_retention_deleted_total",
    "Records that retention has deleted, by kind: change_log (events and op_ids), sessions, "
    "guests, and each table of sign-in, such as audit.", ("kind",), registry=SUPERVISOR,
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
SHIPPING_LAG: Final = Gauge(
    "pylon_backup_lag_seconds",
    "Age of the oldest commit that the archive of the continuous backup lacks; 0: it has all.",
    registry=SUPERVISOR,
)
SHIPPING_LAST_SUCCESS: Final = Gauge(
    "pylon_backup_shipped_timestamp_seconds",
    "Unix time when the archive of the continuous backup last had everything.",
    registry=SUPERVISOR,
)
SHIPPING_SNAPSHOT: Final = Gauge(
    "pylon_backup_snapshot_timestamp_seconds",
    "Unix time of the newest snapshot of the continuous backup.", registry=SUPERVISOR,
)
SHIPPING_SPOOL_BYTES: Final = Gauge(
    "pylon_backup_spool_size_bytes", "Size of the segments that wait for their upload.",
    registry=SUPERVISOR,
)
SHIPPING_CAPTURED_BYTES: Final = Counter(
    "pylon_backup_captured_bytes_total", "Bytes of the WAL that were captured, not compressed.",
    registry=SUPERVISOR,
)
SHIPPING_SENT_BYTES: Final = Counter(
    "pylon_backup_shipped_bytes_total", "Bytes of segments and snapshots that were uploaded.",
    registry=SUPERVISOR,
)
SHIPPING_FAILURES: Final = Counter(
    "pylon_backup_failures_total",
    "Failures of the continuous backup: capture, upload, snapshot, chain (a new generation had to "
    "begin), prune, hook.", ("step",), registry=SUPERVISOR,
)
SHIPPING_GENERATIONS: Final = Counter(
    "pylon_backup_generations_total", "Generations that this run has begun.", registry=SUPERVISOR,
)
