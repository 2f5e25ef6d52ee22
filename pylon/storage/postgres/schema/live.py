"""Live schema: reads the tables, columns and indexes that a PostgreSQL schema has.

It reads the schema that the connection works in (`current_schema()`). PostgreSQL knows `Task` and
`task` as two tables; a table with exactly the wanted name is the one that counts. An index that a
killed `CREATE INDEX CONCURRENTLY` has left (INVALID) does not count: `online` drops it and makes it
again. A type is named without its collation if that is "C", as Pylon's are.

Read-only. Called by the modules of this package.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from pylon.schema.live import LiveColumn, LiveIndex, LiveSchema, LiveTable
from pylon.storage.postgres.schema.results import TextRow, ask, ask_one
from pylon.storage.postgres.statements import Session

_TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND relkind IN ('r', 'p') ORDER BY relname"
)
_COLUMNS: Final = (
    "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, "
    "EXISTS (SELECT FROM pg_index AS k WHERE k.indrelid = c.oid AND k.indisprimary "
    "AND a.attnum = ANY (k.indkey)), "
    "CASE WHEN a.attcollation <> 0 THEN (SELECT collname FROM pg_collation AS l "
    "WHERE l.oid = a.attcollation) END "
    "FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid "
    "WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') "
    "AND c.relname = ANY ($1::text[]) AND a.attnum > 0 AND NOT a.attisdropped "
    "ORDER BY c.relname, a.attnum"
)
# Each column of an index: its name, or null for an expression, and its order (1: descending, 2:
# nulls first).
_INDEXES: Final = (
    "SELECT i.relname, t.relname, x.indisunique, "
    "EXISTS (SELECT FROM pg_constraint AS n WHERE n.conindid = i.oid AND n.contype IN "
    "('p', 'u', 'x')), x.indpred IS NOT NULL, m.amname, obj_description(i.oid, 'pg_class'), "
    "(SELECT string_agg(coalesce(a.attname, ''), chr(31) ORDER BY k.place) "
    "FROM unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY AS k (number, place) "
    "LEFT JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.number "
    "AND k.number > 0), "
    "array_to_string(x.indoption[0:x.indnkeyatts - 1], ',') "
    "FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid "
    "JOIN pg_class AS t ON t.oid = x.indrelid JOIN pg_am AS m ON m.oid = i.relam "
    "WHERE i.relnamespace = current_schema()::regnamespace AND x.indisvalid ORDER BY i.relname"
)
_INVALID: Final = (
    "SELECT 1 FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid "
    "WHERE i.relnamespace = current_schema()::regnamespace AND NOT x.indisvalid "
    "AND i.relname = $1"
)
_SEPARATOR: Final = "\x1f"


def table_names(session: Session) -> list[str]:
    """Return the names of all tables of the schema, sorted."""
    return [str(name) for (name,) in ask(session, _TABLES)]


def has_table(session: Session, name: str) -> bool:
    """Whether the schema has a table of exactly this name."""
    return name in table_names(session)


def introspect(session: Session, names: Sequence[str]) -> LiveSchema:
    """Return the tables among `names` (in any case, if none has a name exactly), and every index
    of the schema. Indexes of other tables have no columns here; their names are taken."""
    found: dict[str, str] = {}
    exact, lower = set(names), {name.lower() for name in names}
    for name in table_names(session):
        if name in exact or (name.lower() in lower and name.lower() not in found):
            found[name.lower()] = name
    columns: dict[str, dict[str, LiveColumn]] = defaultdict(dict)
    for row in ask(session, _COLUMNS, (list(found.values()),)):
        columns[str(row[0])][str(row[1]).lower()] = _column(row)
    by_table: dict[str, list[LiveIndex]] = defaultdict(list)
    indexes: dict[str, LiveIndex] = {}
    for row in ask(session, _INDEXES):
        index = _index(row)
        by_table[index.table].append(index)
        indexes[index.name.lower()] = index
    tables = {
        key: LiveTable(name, columns[name], tuple(by_table[name]), name)
        for key, name in found.items()
    }
    return LiveSchema(tables, indexes)


def is_invalid(session: Session, index: str) -> bool:
    """Whether there is an index of this name that was not built to its end."""
    return ask_one(session, _INVALID, (index,)) is not None


def order_text(columns: Sequence[tuple[str, bool]], where: str | None, method: str) -> str:
    """Return how an index orders its columns, and its condition, as `LiveIndex.sql` has it.

    Args:
        columns: names, and whether they descend.
    """
    options = ",".join(
        ("3" if descends else "0") if name == "id" else ("1" if descends else "2")
        for name, descends in columns
    )
    return _order_text(options, where, method)


def _order_text(options: str | None, where: str | None, method: str) -> str:
    text = f"{method} {options}"
    return text if where is None else f"{text} WHERE {where}"


def _column(row: TextRow) -> LiveColumn:
    _, name, kind, not_null, primary_key, collation = row
    shown = str(kind).upper()
    if collation is not None and collation != "C":
        shown = f'{shown} COLLATE "{collation}"'
    return LiveColumn(str(name), shown, not_null == "t", primary_key == "t", str(name))


def _index(row: TextRow) -> LiveIndex:
    name, table, unique, constraint, partial, method, comment, fields, options = row
    where = (comment or "?") if partial == "t" else None
    return LiveIndex(
        str(name), str(table), tuple(str(fields).split(_SEPARATOR)), unique == "t",
        constraint == "t", partial == "t", _order_text(options, where, str(method)),
    )
