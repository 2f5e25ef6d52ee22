"""Records of the auth tables in SQLite: reads and changes them by the statements of `record_sql`.

The caller translates apsw's errors. Called by `reader`, `transaction` and `maintenance`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import apsw

from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Kind, Value
from pylon.storage.sql import record_sql
from pylon.storage.sql.record_sql import RecordDialect, RecordStatement

DIALECT: Final = RecordDialect(
    mark=lambda number, kind: "?",
    encode=lambda kind, value: int(value) if kind == "bool" else value,
    types={"text": "TEXT", "int": "INTEGER", "bytes": "BLOB", "bool": "INTEGER"},
    suffix=" WITHOUT ROWID",
)
_FOUND: Final = 100
_DECODERS: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    "text": str, "int": int, "bytes": bytes, "bool": int,
}


def find(
    conn: apsw.Connection, table: str, where: Sequence[Condition], order: Sequence[str], limit: int
) -> list[dict[str, Value]]:
    """Return records. See `pylon.storage.interface.Reader.records`."""
    declared = record_sql.table_of(table)
    text, parameters = record_sql.select(DIALECT, declared, where, order, limit)
    return [
        record_sql.decode_row(declared, row, _DECODERS) for row in conn.execute(text, parameters)
    ]


def count(conn: apsw.Connection, table: str, where: Sequence[Condition]) -> int:
    """Return the number of records that fulfil the conditions."""
    text, parameters = record_sql.count(DIALECT, record_sql.table_of(table), where)
    return int(conn.execute(text, parameters).get)


class SqliteRecords:
    """`pylon.storage.core.transaction.RecordRows`."""

    __slots__ = ("_conn",)

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn

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
        return self._change(
            record_sql.update(DIALECT, declared, where, values, added, expected)
        )

    def drop_records(self, table: str, where: Sequence[Condition], expected: int | None) -> int:
        """See `RecordRows`."""
        return self._change(
            record_sql.delete(DIALECT, record_sql.table_of(table), where, expected)
        )

    def count_records(self, table: str, where: Sequence[Condition]) -> int:
        """See `RecordRows`."""
        return count(self._conn, table, where)

    def add_up_records(self, table: str, column: str, where: Sequence[Condition]) -> int:
        """See `RecordRows`."""
        text, parameters = record_sql.total(DIALECT, record_sql.table_of(table), column, where)
        return int(self._conn.execute(text, parameters).get)

    def find_records(self, table: str, where: Sequence[Condition]) -> list[dict[str, Any]]:
        """See `RecordRows`."""
        return list[dict[str, Any]](find(self._conn, table, where, (), _FOUND))

    def find_tats(self, keys: Sequence[str]) -> dict[str, int]:
        """See `RecordRows`."""
        return dict(self._conn.execute(
            "SELECT key, tat FROM _pylon_auth_limits "
            "WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(keys),),
        ))

    def put_tats(self, tats: Mapping[str, int]) -> None:
        """See `RecordRows`."""
        self._conn.executemany(
            "INSERT OR REPLACE INTO _pylon_auth_limits (key, tat) VALUES (?, ?)", tats.items()
        )

    def _change(self, statement: RecordStatement) -> int:
        self._conn.execute(*statement)
        return self._conn.changes()


def prune(
    conn: apsw.Connection, limit: int, now_s: int, kept_s: Mapping[str, int]
) -> dict[str, int]:
    """Drop expired records. See `pylon.storage.interface.Maintenance.prune_records`."""
    dropped = {}
    for table, (text, parameters) in record_sql.prunes(DIALECT, limit, now_s, kept_s).items():
        conn.execute(text, parameters)
        dropped[table] = conn.changes()
    return dropped


def note_keys_used(conn: apsw.Connection, key_ids: Sequence[str], now_s: int) -> int:
    """Note the use of API keys. See `pylon.storage.interface.Maintenance.note_keys_used`."""
    noted = 0
    for text, parameters in record_sql.note_keys_used(DIALECT, key_ids, now_s):
        conn.execute(text, parameters)
        noted += conn.changes()
    return noted
