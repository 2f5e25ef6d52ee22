"""Aggregates: writes the SQL of an aggregate, and converts its rows to those of the response.

SQLite's sum() of integers fails beyond 64 bits. So the statement sums the upper and the lower
halves separately, and this module adds them. Called by `SqliteReader.aggregate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from pylon import limits
from pylon.errors import LimitExceeded
from pylon.manifest.model import Entity, FieldType
from pylon.query.aggregate import Aggregate, Aggregation
from pylon.query.parse import field_of
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sqlite.functions import DECIMAL_AVG, DECIMAL_SUM
from pylon.storage.sqlite.names import quote
from pylon.values import INT_MAX, INT_MIN
from pylon.values.types import row_value_of

# The start of a time's bucket: the format for strftime, and SQL for text in ISO 8601.
_FORMATS: Final = {
    "hour": ("%Y-%m-%d %H:00:00", "substr({c}, 1, 10) || ' ' || ifnull(nullif(substr({c}, 12, 2), "
             "''), '00') || ':00:00'"),
    "day": ("%Y-%m-%d", "substr({c}, 1, 10)"),
    "week": ("%Y-W%W", "strftime('%Y-W%W', substr({c}, 1, 10))"),
    "month": ("%Y-%m", "substr({c}, 1, 7)"),
    "year": ("%Y", "substr({c}, 1, 4)"),
}

_Decode = Callable[[Iterator[Any]], object]


def aggregate_rows(
    fetch: Callable[[str, tuple[object, ...]], list[tuple[Any, ...]]],
    entity: Entity, aggregate: Aggregate, where: SqlClause,
) -> list[dict[str, Any]]:
    """See `pylon.storage.interface.Reader.aggregate`.

    Args:
        fetch: runs a statement and gives all its rows.
        where: the aggregate's condition, compiled.
    """
    columns: list[str] = []
    decoders: list[tuple[str, _Decode]] = []
    for group in aggregate.groups:
        column = quote(group.field)
        columns.append(column if group.bucket is None else _bucket(column, group.bucket))
        decoders.append((group.key, _decode_value(entity, group.field)))
    for aggregation in aggregate.figures:
        expressions, decode = _aggregation_sql(entity, aggregation)
        columns += expressions
        decoders.append((aggregation.key, decode))
    places = ", ".join(str(n) for n in range(1, len(aggregate.groups) + 1))
    grouping = f" GROUP BY {places} ORDER BY {places}" if places else ""
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


def _aggregation_sql(entity: Entity, aggregation: Aggregation) -> tuple[list[str], _Decode]:
    """Return the columns of an aggregation, and the function that makes its value from them."""
    if aggregation.field is None:
        return ["count(*)"], next
    column, kind = quote(aggregation.field), aggregation.kind
    if kind == "countDistinct":
        return [f"count(DISTINCT {column})"], next
    field = field_of(entity, aggregation.field)
    if kind in ("sum", "avg") and field.type is FieldType.DECIMAL:
        return [f"{DECIMAL_SUM if kind == 'sum' else DECIMAL_AVG}({column})"], next
    if kind == "sum" and field.type is not FieldType.FLOAT:
        return [f"sum({column} >> 32)", f"sum({column} & 4294967295)"], _joined
    decode = _decode_value(entity, aggregation.field) if kind in ("min", "max") else next
    return [f"{kind}({column})"], decode


def _joined(values: Iterator[Any]) -> object:
    high, low = next(values), next(values)
    if high is None:
        return None
    total: int = (high << 32) + low
    return total if INT_MIN <= total <= INT_MAX else float(total)


def _decode_value(entity: Entity, name: str) -> _Decode:
    convert = row_value_of(field_of(entity, name))
    if convert is None:
        return next

    def decode(values: Iterator[Any]) -> object:
        value = next(values)
        return None if value is None else convert(value)

    return decode


def _bucket(column: str, bucket: str) -> str:
    """Return the SQL of a time's bucket, for all stored forms (`pylon.values`).

    The forms are: epoch seconds and Z; ISO 8601 without an offset or with Z, whose text is cut; and
    ISO 8601 with an offset, which is subtracted first.
    """
    style, prefix = _FORMATS[bucket]
    offset = f"substr(replace({column}, ':', ''), -5)"
    minutes = (
        f"CASE substr({offset}, 1, 1) WHEN '+' THEN '-' ELSE '+' END || "
        f"(substr({offset}, 2, 2) * 60 + substr({offset}, 4, 2)) || ' minutes'"
    )
    local = f"substr({column}, 1, 10) || ' ' || substr({column}, 12, 5)"
    return (
        f"CASE WHEN {column} NOT GLOB '[0-9][0-9][0-9][0-9]-??-??*' "
        f"THEN strftime('{style}', rtrim({column}, 'Z') + 0, 'unixepoch') "
        f"WHEN substr({column}, 11) GLOB '*[+-]*' "
        f"THEN strftime('{style}', {local}, {minutes}) "
        f"ELSE {prefix.format(c=column)} END"
    )
