"""Facts of a schema: head, lineage, structure and the digest of each table, within a transaction.

The digest of a table does not depend on the order of its rows: it is the sum of 60 bits of the
SHA-256 of each row's text. The server computes it, so no row is sent: 1.6 us a row.

Invariant: the same rows have the same digest on every version of PostgreSQL, since the settings
that change the text of a value are fixed. Called by `create`, `verify` and `restore`.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import psycopg

from pylon.storage.bundle.contents import POSTGRES, Facts, TableEntry
from pylon.storage.postgres.names import quote

# The text of a row, whatever the role or the database has set.
FIXED_TEXTS: Final = (
    "SET extra_float_digits = 1", "SET bytea_output = hex", "SET DateStyle = 'ISO, YMD'",
    "SET IntervalStyle = postgres", "SET TimeZone = 'UTC'",
)
_TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND relkind IN ('r', 'p') ORDER BY relname COLLATE \"C\""
)
_COLUMNS: Final = (
    "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute "
    "JOIN pg_class ON pg_class.oid = attrelid "
    "WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') "
    "AND attnum > 0 AND NOT attisdropped ORDER BY relname COLLATE \"C\", attnum"
)
_INDEXES: Final = (
    "SELECT t.relname, i.relname, indisunique, indisprimary, "
    "(SELECT string_agg(pg_get_indexdef(indexrelid, n, false), ', ' ORDER BY n) "
    " FROM generate_series(1, indnatts) n), indoption::text "
    "FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_class t ON t.oid = indrelid "
    "WHERE t.relnamespace = current_schema()::regnamespace "
    "ORDER BY t.relname COLLATE \"C\", i.relname COLLATE \"C\""
)
_DIGEST: Final = (
    "SELECT count(*), coalesce(sum(('x' || left(encode(sha256(convert_to(t::text, 'UTF8')), "
    "'hex'), 15))::bit(60)::bigint), 0)::text FROM {table} AS t"
)
_HEAD: Final = (
    ("_pylon_change_log", "max(seq)"), ("_pylon_epochs", "max(first_seq)"),
    ("_pylon_change_seq", "max(value)"),
)

Connection = psycopg.Connection[Any]


def read_facts(conn: Connection, *, with_tables: bool = True) -> Facts:
    """Return the facts of the current schema; also of one that Pylon has never opened.

    Args:
        with_tables: also count and digest all rows. The connection has `FIXED_TEXTS`.

    Raises:
        psycopg.Error
    """
    tables = [str(name) for (name,) in conn.execute(_TABLES)]
    head = 0
    for table, value in _HEAD:
        if table in tables:
            head = max(head, int(_scalar(conn, f"SELECT {value} FROM {table}") or 0))
    meta: dict[str, str] = {}
    if "_pylon_meta" in tables:
        meta = dict(conn.execute(
            "SELECT key, value FROM _pylon_meta WHERE key IN ('lineage', 'history_id')"
        ).fetchall())
    digest = hashlib.sha256()
    for sql in (_COLUMNS, _INDEXES):
        for row in conn.execute(sql):
            digest.update(repr(row).encode())
    return Facts(
        seq=head, lineage=meta.get("lineage", ""), schema_hash=digest.hexdigest(), store=POSTGRES,
        server_version=str(_scalar(conn, "SHOW server_version")),
        history_id=meta.get("history_id", ""),
        schema=str(_scalar(conn, "SELECT current_schema()") or ""),
        tables={name: digest_table(conn, name) for name in tables} if with_tables else {},
    )


def digest_table(conn: Connection, name: str) -> TableEntry:
    """Count and digest the rows of a table.

    Raises:
        psycopg.Error
    """
    statement: Any = _DIGEST.format(table=quote(name))
    found = conn.execute(statement).fetchone()
    assert found is not None
    return TableEntry(int(found[0]), f"{int(found[1]):x}")


def server_version(conn: Connection) -> int:
    """Return the version of the server, for example 150018."""
    return conn.info.server_version


def _scalar(conn: Connection, sql: str) -> Any:
    statement: Any = sql
    found = conn.execute(statement).fetchone()
    return None if found is None else found[0]
