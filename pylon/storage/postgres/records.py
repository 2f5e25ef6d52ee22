"""Records of the writer: the changes of the auth tables.

Whether an operation is refused depends on the records as they are at the commit. So a batch with
one runs under the lock from its beginning (`prefetch`), and its statements are executed at once:
the number of changed rows is the answer. Another node has the lock for its own, so nothing changes
until the commit. The rules are in `pylon.storage.core.records`.

A change of a session leaves a line in `_pylon_marks`, as the beginning and the end of one do
(`sessions`), so that no worker answers from memory.

Implements `pylon.storage.core.transaction.RecordRows`. Made by `transaction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pylon.storage.auth_ops import Condition
from pylon.storage.postgres.batch import Batch
from pylon.storage.postgres.record_rows import DECODERS, DIALECT
from pylon.storage.postgres.sessions import PostgresSessions
from pylon.storage.postgres.system_reads import rows_of, text_of
from pylon.storage.sql import record_sql
from pylon.storage.sql.record_sql import RecordStatement

_FOUND: Final = 100
_TATS: Final = "SELECT key, tat FROM _pylon_auth_limits WHERE key = ANY($1::text[])"
_PUT_TATS: Final = (
    "INSERT INTO _pylon_auth_limits (key, tat) SELECT * FROM unnest($1::text[], $2::bigint[]) "
    "ON CONFLICT (key) DO UPDATE SET tat = excluded.tat"
)


class PostgresRecords:
    """See the module."""

    __slots__ = ("_batch", "_sessions")

    def __init__(self, batch: Batch, sessions: PostgresSessions) -> None:
        self._batch = batch
        self._sessions = sessions

    def put_record(self, table: str, values: Mapping[str, Any], *, replaces: bool) -> bool:
        """See `RecordRows`."""
        declared = record_sql.table_of(table)
        return self._change(record_sql.insert(DIALECT, declared, values, replaces=replaces)) > 0

    def set_records(
        self, table: str, where: Sequence[Condition], values: Mapping[str, Any],
        added: Mapping[str, int], expected: int | None,
    ) -> int:
        """See `RecordRows`."""
        declared = record_sql.table_of(table)
        count = self._change(
            record_sql.update(DIALECT, declared, where, values, added, expected)
        )
        if count and declared.has_own_writes:
            self._sessions.mark_changed()
        return count

    def drop_records(self, table: str, where: Sequence[Condition], expected: int | None) -> int:
        """See `RecordRows`."""
        return self._change(
            record_sql.delete(DIALECT, record_sql.table_of(table), where, expected)
        )

    def count_records(self, table: str, where: Sequence[Condition]) -> int:
        """See `RecordRows`."""
        found = self._batch.scan(*record_sql.count(DIALECT, record_sql.table_of(table), where))
        return int(found.get_value(0, 0) or 0)

    def add_up_records(self, table: str, column: str, where: Sequence[Condition]) -> int:
        """See `RecordRows`."""
        declared = record_sql.table_of(table)
        found = self._batch.scan(*record_sql.total(DIALECT, declared, column, where))
        return int(found.get_value(0, 0) or 0)

    def find_records(self, table: str, where: Sequence[Condition]) -> list[dict[str, Any]]:
        """See `RecordRows`."""
        declared = record_sql.table_of(table)
        found = self._batch.scan(*record_sql.select(DIALECT, declared, where, (), _FOUND))
        return [record_sql.decode_row(declared, row, DECODERS) for row in rows_of(found)]

    def find_tats(self, keys: Sequence[str]) -> dict[str, int]:
        """See `RecordRows`."""
        found = self._batch.scan(_TATS, (list(keys),))
        return {text_of(key): int(tat or 0) for key, tat in rows_of(found)}

    def put_tats(self, tats: Mapping[str, int]) -> None:
        """See `RecordRows`."""
        self._batch.gather(_PUT_TATS, (list(tats), list(tats.values())))

    def _change(self, statement: RecordStatement) -> int:
        return self._batch.change(*statement).command_tuples or 0
