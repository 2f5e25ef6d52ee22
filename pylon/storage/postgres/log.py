"""Change log of the writer: the events and the executed operations of a batch.

The tables are `_pylon_change_log` and `_pylon_op_ids`. Two nodes that execute one operation at once
meet at its primary key. Implements `pylon.storage.core.transaction.LogRows`. Made by `transaction`;
`prefetch` shares the statements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg

from pylon.errors import InvalidValue
from pylon.storage.core.transaction import DoneOp, OpName, Shift
from pylon.storage.events import ChangeEvent
from pylon.storage.postgres import sequences
from pylon.storage.postgres.batch import Batch
from pylon.storage.postgres.flush import NO_REQUEST, Gathered, InsertShape
from pylon.storage.postgres.parameters import is_sendable
from pylon.storage.postgres.wire import BlockingSession

EVENTS: Final = InsertShape(
    "INSERT INTO _pylon_change_log (seq, entity, row_id, kind, data, prev_data, timestamp)",
    7, f"({sequences.SEQ}{{0}}, {{1}}, {{2}}, {{3}}, {{4}}, {{5}}, {{6}})",
)
_OPS: Final = InsertShape(
    "INSERT INTO _pylon_op_ids (seq, identity, op_id, row_id, at, digest)",
    6, f"({sequences.SEQ}{{0}}, {{1}}, {{2}}, {{3}}, {{4}}, {{5}})",
)
FIND_OPS: Final = (
    "SELECT identity, op_id, seq, row_id, digest FROM _pylon_op_ids "
    "JOIN unnest($1::text[], $2::text[]) AS asked (identity, op_id) USING (identity, op_id)"
)
# The seq of a batch's first event, after a lost connection: $1 is a head from before the batch.
# While versions are mixed, triggers may have added members to the images (`schema.fill`).
_FIND_COMMITTED: Final = (
    "SELECT seq FROM _pylon_change_log WHERE seq > $1 AND entity = $2 AND row_id = $3 "
    "AND kind = $4 AND (data IS NOT DISTINCT FROM $5 OR data::jsonb @> $5::jsonb) "
    "AND (prev_data IS NOT DISTINCT FROM $6 OR prev_data::jsonb @> $6::jsonb) "
    "AND timestamp = $7 ORDER BY seq DESC LIMIT 1"
)
_COUNT_BETWEEN: Final = "SELECT count(*) FROM _pylon_change_log WHERE seq >= $1 AND seq <= $2"
_KINDS: Final = {kind: kind.encode() for kind in ("insert", "update", "delete")}
_UNKNOWN: Final = object()


class PostgresLog:
    """See the module."""

    __slots__ = ("_batch",)

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def head_seq(self) -> int:
        """See `LogRows`."""
        batch = self._batch
        try:
            return int(batch.writer.get().execute(sequences.HEAD).get_value(0, 0) or 0)
        except psycopg.OperationalError:
            return batch.head  # asked after a failure; the next batch learns it

    def append_events(self, events: Sequence[ChangeEvent]) -> None:
        """See `LogRows`."""
        self._batch.events = events
        if not events:
            return
        now = b"%d" % events[0].timestamp_s
        self._batch.gathered += [
            Gathered("", [
                None, event.entity.encode(), event.row_id.encode(), _KINDS[event.kind], event.data,
                event.prev_data, now,
            ], NO_REQUEST, event.seq, EVENTS)
            for event in events
        ]

    def find_op(self, name: OpName) -> DoneOp | None:
        """See `LogRows`.

        Raises:
            InvalidValue: no text can be stored with a character of the name.
        """
        known: Any = self._batch.overlay.ops.get(name, _UNKNOWN)
        if known is not _UNKNOWN:
            return known  # type: ignore[no-any-return]
        if not all(map(is_sendable, name)):
            raise InvalidValue("an op_id has no NUL character")
        found = self._batch.read(FIND_OPS, ([name[0]], [name[1]]))
        if not found.ntuples:
            return None
        digest = found.get_value(0, 4)
        return (
            int(found.get_value(0, 2) or 0), (found.get_value(0, 3) or b"").decode(),
            None if digest is None else digest.decode(),
        )

    def put_ops(self, ops: Mapping[OpName, DoneOp], now_s: int) -> None:
        """See `LogRows`."""
        at = b"%d" % now_s
        gathered = self._batch.gathered
        for (identity, op_id), (seq, row_id, digest) in ops.items():
            gathered.append(Gathered("", [
                None, identity.encode(), op_id.encode(), row_id.encode(), at,
                None if digest is None else digest.encode(),
            ], NO_REQUEST, seq, _OPS))

    def find_committed(self, session: BlockingSession) -> Shift | None:
        """Look for the events of the open batch in the log, after its connection was lost.

        Without any event the batch is executed again: all its operations may be repeated.

        Raises:
            psycopg.Error
        """
        batch = self._batch
        if not batch.events:
            return None
        first, last = batch.events[0], batch.events[-1]
        found = session.execute(_FIND_COMMITTED, (
            batch.head, first.entity, first.row_id, first.kind, first.data, first.prev_data,
            first.timestamp_s,
        ))
        if not found.ntuples:
            return None
        seq = int(found.get_value(0, 0) or 0)
        by = seq - first.seq
        count = session.execute(_COUNT_BETWEEN, (seq, last.seq + by))
        if int(count.get_value(0, 0) or 0) != len(batch.events):
            return None
        return Shift(batch.origin + by, by)
