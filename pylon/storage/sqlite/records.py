"""Records of the auth tables in SQLite: reads them by the statements of `record_sql`.

Functions on a connection; the caller translates apsw's errors. Called by `reader` and
`transaction`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import apsw

from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Kind, Value
from pylon.storage.sql import record_sql
from pylon.storage.sql.record_sql import RecordDialect

DIALECT: Final = RecordDialect(
    mark=lambda number, kind: "?",
    encode=lambda kind, value: int(value) if kind == "bool" else value,
)
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
