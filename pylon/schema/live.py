"""What a SQLite database has at the moment: tables, columns, indexes.

Invariant: names are looked up as SQLite compares them, without regard to ASCII case; the
spelling in the database is kept. Read-only. Called by `plan` and by `pylonctl schema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apsw


@dataclass(frozen=True, slots=True)
class LiveColumn:
    name: str
    type: str  # as declared, upper case
    not_null: bool
    primary_key: bool


@dataclass(frozen=True, slots=True)
class LiveIndex:
    name: str
    table: str
    fields: tuple[str, ...]
    unique: bool
    constraint: bool  # made by UNIQUE or PRIMARY KEY in the table itself
    partial: bool


@dataclass(frozen=True, slots=True)
class LiveTable:
    name: str
    columns: dict[str, LiveColumn]  # by lower-case name
    indexes: tuple[LiveIndex, ...]


@dataclass(frozen=True, slots=True)
class LiveSchema:
    tables: dict[str, LiveTable]  # by lower-case name
    indexes: dict[str, LiveIndex]  # by lower-case name, of all tables


def introspect(conn: apsw.Connection, names: tuple[str, ...]) -> LiveSchema:
    """The tables among `names` (in any case), and every index of the database.

    Only what the manifest names is looked at closely: start-up must stay cheap in a database
    with many tables of others.
    """
    wanted = {n.lower() for n in names}
    tables: dict[str, LiveTable] = {}
    indexes: dict[str, LiveIndex] = {}
    listed: list[Any] = conn.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table'"
    ).fetchall()
    for (name,) in listed:
        own = _indexes(conn, name) if name.lower() in wanted else ()
        if name.lower() in wanted:
            tables[name.lower()] = LiveTable(name, _columns(conn, name), own)
    owners: list[Any] = conn.execute(
        "SELECT name, tbl_name FROM sqlite_schema WHERE type = 'index'"
    ).fetchall()
    known = {i.name: i for t in tables.values() for i in t.indexes}
    for name, table in owners:
        indexes[name.lower()] = known.get(name) or LiveIndex(name, table, (), False, False, False)
    return LiveSchema(tables, indexes)


def _columns(conn: apsw.Connection, table: str) -> dict[str, LiveColumn]:
    rows: list[Any] = conn.execute(
        'SELECT name, type, "notnull", pk FROM pragma_table_info(?)', (table,)
    ).fetchall()
    return {
        name.lower(): LiveColumn(name, kind.upper(), bool(not_null), pk > 0)
        for name, kind, not_null, pk in rows
    }


def _indexes(conn: apsw.Connection, table: str) -> tuple[LiveIndex, ...]:
    listed: list[Any] = conn.execute(
        'SELECT name, "unique", origin, partial FROM pragma_index_list(?)', (table,)
    ).fetchall()
    found = []
    for name, unique, origin, partial in listed:
        # An expression has no column name; it is kept as an empty one, which matches no field.
        columns: list[Any] = conn.execute(
            "SELECT name FROM pragma_index_info(?) ORDER BY seqno", (name,)
        ).fetchall()
        fields = tuple(column or "" for (column,) in columns)
        found.append(LiveIndex(name, table, fields, bool(unique), origin != "c", bool(partial)))
    return tuple(found)
