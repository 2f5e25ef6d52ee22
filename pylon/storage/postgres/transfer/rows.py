"""Rows of moved tables on one connection, and the errors of the server as Pylon's.

All rows of a table come by COPY, which is the fastest way out: 10,000 rows of a usual entity take
20 ms. Called by `source` and `target`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from pylon.errors import MigrationRefused, StoreUnavailable
from pylon.storage.postgres.connect import STORE_FAILURES, error_text
from pylon.storage.postgres.names import quote
from pylon.storage.transfer import ColumnKind, Key, Row, TransferTable, is_moved_fact

TYPES: Final = {
    ColumnKind.TEXT: "text", ColumnKind.INT: "int8", ColumnKind.FLOAT: "float8",
    ColumnKind.BOOL: "bool", ColumnKind.BYTES: "bytea",
}
_KEYS_AT_ONCE: Final = 1_000

Connection = psycopg.Connection[Any]


@contextmanager
def server_errors(place: str) -> Iterator[None]:
    """Turn errors of psycopg into Pylon's.

    Raises:
        StoreUnavailable: the server failed, or cannot be reached.
        MigrationRefused: it refused a statement; the text has its reason.
    """
    try:
        yield
    except STORE_FAILURES as ex:
        raise StoreUnavailable(f"the database {place} failed: {error_text(ex)}") from ex
    except psycopg.Error as ex:
        reason = error_text(ex)
        raise MigrationRefused(f"the database {place} refused a statement: {reason}") from ex


def count_rows(conn: Connection, table: TransferTable) -> int:
    """Return the number of rows of a table."""
    found = _query(conn, f"SELECT count(*) FROM {quote(table.name)}")
    return int(found[0][0])


def read_rows(conn: Connection, table: TransferTable, after: Key | None) -> Iterator[Row]:
    """Yield the rows by primary key, behind a key. No other statement may run meanwhile."""
    key = ", ".join(map(quote, table.key))
    where, values = "", []
    if after is not None:
        where, values = f"WHERE ({key}) > ({', '.join(['%s'] * table.key_size)})", list(after)
    select = f"{_select(table)} {where} ORDER BY {key}"
    statement: Any = f"COPY ({select}) TO STDOUT (FORMAT BINARY)"
    with conn.cursor() as cursor, cursor.copy(statement, values or None) as copy:
        copy.set_types([TYPES[kind] for kind in table.kinds])
        yield from copy.rows()


def find_rows(conn: Connection, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
    """Return the rows of these primary keys."""
    found: list[Row] = []
    for at in range(0, len(keys), _KEYS_AT_ONCE):
        columns, values = key_arrays(table, keys[at : at + _KEYS_AT_ONCE])
        key = ", ".join(map(quote, table.key))
        found += _query(
            conn, f"{_select(table)} WHERE ({key}) IN (SELECT * FROM unnest({columns}))", values
        )
    return found


def key_arrays(table: TransferTable, keys: Sequence[Key]) -> tuple[str, list[list[Any]]]:
    """Return the arguments of `unnest` for primary keys, as marks and as arrays."""
    marks = ", ".join(f"%s::{TYPES[kind]}[]" for kind in table.kinds[: table.key_size])
    return marks, [[key[at] for key in keys] for at in range(table.key_size)]


def moved_facts(conn: Connection) -> dict[str, str]:
    """Return the facts of `_pylon_meta` that are moved."""
    return {
        key: value for key, value in _query(conn, "SELECT key, value FROM _pylon_meta")
        if is_moved_fact(key)
    }


def find_number(conn: Connection, sql: str) -> int:
    """Return the number that a statement finds; 0 for null."""
    found = _query(conn, sql)
    return int(found[0][0] or 0) if found else 0


def _query(conn: Connection, sql: str, values: Sequence[Any] | None = None) -> list[Row]:
    statement: Any = sql
    return conn.execute(statement, values).fetchall()


def _select(table: TransferTable) -> str:
    return f"SELECT {', '.join(map(quote, table.columns))} FROM {quote(table.name)}"
