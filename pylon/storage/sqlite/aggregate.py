"""Aggregates: what SQLite writes of a figure in its own way (`pylon.storage.sql.aggregate`).

SQLite's sum() of integers fails beyond 64 bits. So the statement sums the upper and the lower
halves separately, and this module adds them. Called by `SqliteReader.aggregate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pylon.manifest.model import Entity, FieldType
from pylon.query.aggregate import Aggregation
from pylon.query.operands import field_of
from pylon.storage.sql.aggregate import AggregateDialect, Decode, Figure
from pylon.storage.sqlite.dialect import SQLITE
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

def _figure(entity: Entity, aggregation: Aggregation) -> Figure:
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


def _decode_value(entity: Entity, name: str) -> Decode:
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


AGGREGATES: Final = AggregateDialect(SQLITE, _figure, _bucket, _decode_value, next)
