"""The writer's upkeep: retention of the change log and of op_ids; the test reset.

Retention works in small steps between other writes. How many events and op_ids there are is
counted once (a scan) and then kept by addition, since SQLite keeps no row counts.

Invariants: the newest event stays for ever (it is the head), what is younger than the caller
says stays, and events go oldest first without holes. Called by `engine`
and `row_writes`, in their transaction.
"""

from __future__ import annotations

from typing import Any, Final

import apsw

from pylon import limits
from pylon.manifest.model import Entity
from pylon.storage.names import quote
from pylon.storage.ops import PruneLog
from pylon.storage.sqlite import log
from pylon.storage.sqlite.schema.ddl import JSON_COLUMN, SEQ_COLUMN

_OLDEST: Final = (
    "SELECT seq, timestamp, ifnull(octet_length(data), 0) + ifnull(octet_length(prev_data), 0) "
    "FROM _pylon_change_log ORDER BY seq LIMIT ?"
)


class Retention:
    """Prunes, and remembers how much there is."""

    __slots__ = ("_conn", "_events", "_ops")

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn
        self._events: int | None = None  # None: not counted yet
        self._ops: int | None = None

    def committed(self, events: int, ops: int) -> None:
        """So many were added by a transaction that has been committed."""
        if self._events is not None:
            self._events += events
        if self._ops is not None:
            self._ops += ops

    def forget(self) -> None:
        """A transaction was undone: count again."""
        self._events = self._ops = None

    def prune(self, op: PruneLog) -> int:
        """Drop at most `op.limit` of each kind, so that none waits for another; returns how
        many in all."""
        return self._prune_events(op) + self._prune_ops(op)

    def _prune_events(self, op: PruneLog) -> int:
        if self._events is None:
            self._events = int(self._conn.execute("SELECT count(*) FROM _pylon_change_log").get)
        surplus = self._events - max(op.keep_events, 1)
        if surplus <= 0 and not op.drop_to_seq:
            return 0
        most = min(op.limit, self._events - 1)
        cut = None
        dropped_bytes = 0
        oldest: list[Any] = self._conn.execute(_OLDEST, (most,)).fetchall()
        for number, (seq, timestamp, size_bytes) in enumerate(oldest, 1):
            if seq > op.drop_to_seq:
                is_young = seq > op.old_seq and log.timestamp_s(timestamp) >= op.older_than_s
                if number > surplus or is_young:
                    break
            dropped_bytes += size_bytes
            if cut is not None and dropped_bytes > limits.PRUNE_STEP_BYTES:
                break  # the pages of large images are read to be freed
            cut = seq
        if cut is None:
            return 0
        self._conn.execute("DELETE FROM _pylon_change_log WHERE seq <= ?", (cut,))
        dropped = self._conn.changes()
        self._events -= dropped
        return dropped

    def _prune_ops(self, op: PruneLog) -> int:
        if self._ops is None:
            self._ops = int(self._conn.execute("SELECT count(*) FROM _pylon_op_ids").get)
        wanted = min(op.limit, self._ops - limits.OP_IDS_KEPT)
        if wanted <= 0:
            return 0
        self._conn.execute(
            "DELETE FROM _pylon_op_ids WHERE (at < ? OR seq <= ?) AND (identity, op_id) IN "
            "(SELECT identity, op_id FROM _pylon_op_ids ORDER BY seq LIMIT ?)",
            (op.older_than_s, op.old_seq, wanted),
        )
        dropped = self._conn.changes()
        self._ops -= dropped
        return dropped


def take_rows(
    conn: apsw.Connection, entity: Entity
) -> list[tuple[str, bytes, int | None]]:
    """Delete all rows of `entity`; returns their ids, JSON and versions, by id."""
    table = quote(entity.name)
    rows: list[Any] = conn.execute(
        f"SELECT id, CAST({JSON_COLUMN} AS BLOB), {SEQ_COLUMN} FROM {table} ORDER BY id"
    ).fetchall()
    conn.execute(f"DELETE FROM {table}")
    return rows
