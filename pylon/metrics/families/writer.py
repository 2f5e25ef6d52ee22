"""Metrics of the writer: its queue, batches, commits, and the documents that it merges."""

from __future__ import annotations

from typing import Final

from prometheus_client import Gauge

from pylon.metrics.registries import FAST_S, SIZES, SUPERVISOR
from pylon.metrics.values import PlainCounter as Counter
from pylon.metrics.values import PlainHistogram as Histogram

WRITE_QUEUE_DEPTH: Final = Gauge(
    "pylon_write_queue_length", "Write requests taken by the writer and not yet answered.",
    registry=SUPERVISOR,
)
WRITES_REFUSED: Final = Counter(
    "pylon_writes_refused_total", "Writes that the store refused, by reason: nothing of them was "
    "acknowledged.", ("reason",), registry=SUPERVISOR,
)
WRITES_DEFERRED: Final = Gauge(
    "pylon_writes_deferred", "Calls that wait for a later transaction: large rows are being "
    "changed, or the database does not answer.",
    registry=SUPERVISOR,
)
COMMIT: Final = Histogram(
    "pylon_commit_duration_seconds", "Time of a commit.", buckets=FAST_S, registry=SUPERVISOR,
)
BATCH_SIZE: Final = Histogram(
    "pylon_group_commit_size", "Write requests that shared one commit.", buckets=SIZES,
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
BATCHES_OVERTAKEN: Final = Counter(
    "pylon_batches_overtaken_total", "Batches that were executed again, since another node had "
    "changed the same rows.", registry=SUPERVISOR,
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
WRITER_CONNECTIONS_LOST: Final = Counter(
    "pylon_writer_connections_lost_total", "Connections to the database that the writer has lost.",
    registry=SUPERVISOR,
)
CASCADED_ROWS: Final = Counter(
    "pylon_cascaded_rows_total",
    "Rows that deletes took along by onDelete, by what became of them: deleted, set_null.",
    ("outcome",), registry=SUPERVISOR,
)
SEARCH_WORDS_CUT: Final = Counter(
    "pylon_search_words_cut_total", "Rows with more words than the search index takes.",
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
    buckets=FAST_S, registry=SUPERVISOR,
)
