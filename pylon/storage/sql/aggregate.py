"""Aggregates: writes the SQL of an aggregate, and converts its rows to those of the response.

The store's own part (`AggregateDialect`) writes each figure, as one or more columns, and a function
that makes its value from them. Called by the readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from pylon import limits
from pylon.errors import LimitExceeded
from pylon.manifest.model import Entity
from pylon.query.aggregate import Aggregate, Aggregation
from pylon.storage.core.names import quote
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.predicate_sql import Dialect

Decode = Callable[[Iterator[Any]], object]  # takes its columns of a row
Figure = tuple[list[str], Decode]


class AggregateDialect(msgspec.Struct, frozen=True, eq=False):
    """The SQL that a store writes itself: the columns of a figure, and of the time of a bucket; and
    how the value of a field is read from a row."""

    base: Dialect
    figure: Callable[[Entity, Aggregation], Figure]
    bucket: Callable[[str, str], str]
    decode: Callable[[Entity, str], Decode]
    decode_bucket: Decode


def aggregate_rows(
    dialect: AggregateDialect,
    fetch: Callable[[str, tuple[object, ...]], Sequence[Sequence[Any]]],
    entity: Entity, aggregate: Aggregate, where: SqlClause,
) -> list[dict[str, Any]]:
    """See `pylon.storage.interface.Reader.aggregate`.

    Args:
        fetch: runs a statement and gives all its rows.
        where: the aggregate's condition, compiled.
    """
    columns: list[str] = []
    decoders: list[tuple[str, Decode]] = []
    for group in aggregate.groups:
        column = quote(group.field)
        if group.bucket is None:
            columns.append(column)
            decoders.append((group.key, dialect.decode(entity, group.field)))
        else:
            columns.append(dialect.bucket(column, group.bucket))
            decoders.append((group.key, dialect.decode_bucket))
    for aggregation in aggregate.figures:
        expressions, decode = dialect.figure(entity, aggregation)
        columns += expressions
        decoders.append((aggregation.key, decode))
    places = range(1, len(aggregate.groups) + 1)
    grouping = ""
    if places:
        ordered = ", ".join(f"{place}{dialect.base.ascending}" for place in places)
        grouping = f" GROUP BY {', '.join(map(str, places))} ORDER BY {ordered}"
    found = fetch(
        f"SELECT {', '.join(columns)} FROM {quote(entity.name)} WHERE {where.sql}"
        f"{grouping} LIMIT ?",
        (*where.params, limits.AGGREGATE_GROUPS + 1),
    )
    if len(found) > limits.AGGREGATE_GROUPS:
        raise LimitExceeded(
            f"An aggregate answers {limits.AGGREGATE_GROUPS} groups at most",
            hint="ask for fewer with where, or group by a larger bucket",
        )
    rows = []
    for values in found:
        rest = iter(values)
        rows.append({key: decode(rest) for key, decode in decoders})
    return rows
