"""Retention on PostgreSQL: drops old events, op_ids and marks, in small steps.

The rules are those of `pylon.storage.core.retention`. Nothing is counted in memory, since several
nodes write: the server finds the event from which on all are kept.

Invariants: the newest event and the newest mark are never dropped, because they are the head. The
oldest events go first, without gaps. No lock: nobody changes an event. Called by `maintenance`.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.storage.postgres.statements import Session
from pylon.storage.postgres.system_reads import EVENT_BYTES
from pylon.storage.records import LogRetention

MARKS_KEPT_S: Final = 3_600
_SURPLUS: Final = "SELECT seq FROM _pylon_change_log ORDER BY seq DESC OFFSET $1 LIMIT 1"
_OLDEST: Final = (
    f"SELECT seq, timestamp, {EVENT_BYTES} "
    "FROM _pylon_change_log WHERE seq < (SELECT max(seq) FROM _pylon_change_log) "
    "ORDER BY seq LIMIT $1"
)
_DROP: Final = "DELETE FROM _pylon_change_log WHERE seq <= $1"
_OPS_SURPLUS: Final = "SELECT seq FROM _pylon_op_ids ORDER BY seq DESC OFFSET $1 LIMIT 1"
_DROP_OPS: Final = (
    "DELETE FROM _pylon_op_ids WHERE (at < $1 OR seq <= $2) AND (identity, op_id) IN "
    "(SELECT identity, op_id FROM _pylon_op_ids WHERE seq <= $3 ORDER BY seq LIMIT $4)"
)
_DROP_MARKS: Final = (
    "DELETE FROM _pylon_marks WHERE at < $1 AND number < (SELECT max(number) FROM _pylon_marks)"
)


def prune_events(session: Session, step: LogRetention) -> int:
    """Drop at most `step.limit` old events. Return how many.

    Raises:
        psycopg.Error
    """
    found = session.execute(_SURPLUS, (max(step.keep_events, 1),))
    surplus_seq = int(found.get_value(0, 0) or 0) if found.ntuples else 0
    if not surplus_seq and not step.drop_to_seq:
        return 0
    cut_seq = None
    dropped_bytes = 0
    oldest = session.execute(_OLDEST, (step.limit,))
    for n in range(oldest.ntuples):
        seq, timestamp_s, size_bytes = (int(oldest.get_value(n, c) or 0) for c in range(3))
        if seq > step.drop_to_seq:
            is_young = seq > step.old_seq and timestamp_s >= step.older_than_s
            if seq > surplus_seq or is_young:
                break
        dropped_bytes += size_bytes
        if cut_seq is not None and dropped_bytes > limits.PRUNE_STEP_BYTES:
            break
        cut_seq = seq
    if cut_seq is None:
        return 0
    return session.execute(_DROP, (cut_seq,)).command_tuples or 0


def prune_ops(session: Session, step: LogRetention) -> int:
    """Drop at most `step.limit` old op_ids beyond `limits.OP_IDS_KEPT`. Return how many.

    Raises:
        psycopg.Error
    """
    found = session.execute(_OPS_SURPLUS, (limits.OP_IDS_KEPT,))
    if not found.ntuples:
        return 0
    surplus_seq = int(found.get_value(0, 0) or 0)
    dropped = session.execute(
        _DROP_OPS, (step.older_than_s, step.old_seq, surplus_seq, step.limit)
    )
    return dropped.command_tuples or 0


def prune_marks(session: Session, now_s: int) -> None:
    """Drop the marks that every node has read long ago.

    Raises:
        psycopg.Error
    """
    session.execute(_DROP_MARKS, (now_s - MARKS_KEPT_S,))
