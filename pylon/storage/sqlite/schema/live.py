"""Live schema: reads the tables, columns and indexes that a SQLite database has.

Invariants: look-ups ignore ASCII case, as SQLite does; names keep the spelling of the database.
Read-only. Called by the modules of this package.
"""

from __future__ import annotations

from typing import Any

import apsw

from pylon.schema.live import LiveColumn, LiveIndex, LiveSchema, LiveTable


def table_names(conn: apsw.Connection) -> list[str]:
    """Return the names of all tables except SQLite's own, sorted."""
    listed: list[Any] = conn.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' "
        "ESCAPE '\\' ORDER BY name"
    ).fetchall()
    return [name for (name,) in listed]


def introspect(conn: apsw.Connection, names: tuple[str, ...]) -> LiveSchema:
    """Return the tables among `names` (in any case), and every index of the database.

    It reads the columns of these tables only, so that a start stays quick if the database has many
    tables of other programs. Indexes of other tables have no columns here; their names are taken.
    """
    wanted = {n.lower() for n in names}
    tables: dict[str, LiveTable] = {}
    indexes: dict[str, LiveIndex] = {}
    for name in table_names(conn):
        if name.lower() in wanted:
            tables[name.lower()] = LiveTable(name, _columns(conn, name), _indexes(conn, name), name)
    owners: list[Any] = conn.execute(
        "SELECT name, tbl_name FROM sqlite_schema WHERE type = 'index'"
    ).fetchall()
    known = {i.name: i for t in tables.values() for i in t.indexes}
    for name, table in owners:
        unknown = LiveIndex(name, table, (), False, False, False, "")
        indexes[name.lower()] = known.get(name) or unknown
    return LiveSchema(tables, indexes)


def _columns(conn: apsw.Connection, table: str) -> dict[str, LiveColumn]:
    rows: list[Any] = conn.execute(
        'SELECT name, type, "notnull", pk FROM pragma_table_info(?)', (table,)
    ).fetchall()
    return {
        name.lower(): LiveColumn(name, kind.upper(), bool(not_null), pk > 0, name)
        for name, kind, not_null, pk in rows
    }


def _indexes(conn: apsw.Connection, table: str) -> tuple[LiveIndex, ...]:
    listed: list[Any] = conn.execute(
        'SELECT name, "unique", origin, partial FROM pragma_index_list(?)', (table,)
    ).fetchall()
    found = []
    for name, unique, origin, partial in listed:
        # SQLite has no column name for an expression. The empty name equals no field's name.
        columns: list[Any] = conn.execute(
            "SELECT name FROM pragma_index_info(?) ORDER BY seqno", (name,)
        ).fetchall()
        fields = tuple(column or "" for (column,) in columns)
        sql = conn.execute(
            "SELECT sql FROM sqlite_schema WHERE type = 'index' AND name = ?", (name,)
        ).get
        found.append(LiveIndex(
            name, table, fields, bool(unique), origin != "c", bool(partial), str(sql or "")
        ))
    return tuple(found)
