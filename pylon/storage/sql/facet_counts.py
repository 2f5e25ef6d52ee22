"""Facet counts: counts rows, and the values of their fields, in one statement.

The statement selects the rows once, whatever the number of fields. Total and counts are of one
commit. Called by `reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pylon.storage.core.names import quote
from pylon.storage.records import FacetCounts
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.predicate_sql import Dialect


def statement(
    dialect: Dialect, table: str, where: SqlClause, fields: Sequence[str], max_values: int
) -> SqlClause:
    """Return the whole SELECT. `fold` converts its rows.

    Args:
        table: the quoted name.
        fields: distinct names.
        max_values: largest number of values for each field.
    """
    if not fields:
        return SqlClause(f"SELECT 0, NULL, count(*) FROM {table} WHERE {where.sql}", where.params)
    columns = ", ".join(quote(field) for field in fields)
    parts = [
        f"WITH hits AS MATERIALIZED (SELECT {columns} FROM {table} WHERE {where.sql}) "
        f"SELECT 0, NULL{dialect.as_text}, count(*) FROM hits"
    ]
    for number, field in enumerate(fields, 1):
        column = quote(field)
        parts.append(
            f"SELECT * FROM (SELECT {number}, {column}{dialect.as_text}, count(*) FROM hits "
            f"WHERE {column} IS NOT NULL GROUP BY {column} ORDER BY 3 DESC, {column} LIMIT ?)"
            f"{dialect.alias}"
        )
    return SqlClause(" UNION ALL ".join(parts), (*where.params, *[max_values] * len(fields)))


def fold(
    fields: Sequence[str], converters: Mapping[str, Callable[[Any], Any]],
    rows: Iterable[Sequence[Any]],
) -> FacetCounts:
    """Return the counts from the rows of `statement`. `converters` make values of rows."""
    total = 0
    values: list[list[tuple[object, int]]] = [[] for _ in fields]
    for number, value, count in rows:
        place = int(number) - 1
        if place < 0:
            total = int(count)
        else:
            convert = converters.get(fields[place])
            values[place].append((value if convert is None else convert(value), int(count)))
    return FacetCounts(total, dict(zip(fields, values, strict=True)))
