"""Aggregates: PostgreSQL's SQL for a figure of an aggregate (`pylon.storage.sql.aggregate`).

Sums of whole numbers and of decimals are exact there (numeric). A sum of doubles that no double can
hold fails; the second dialect of `aggregates_of` adds the doubles as exact numbers then. Values
come as text. Called by `reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

from pylon.manifest.model import Entity, FieldType
from pylon.query.aggregate import Aggregation
from pylon.query.operands import field_of
from pylon.storage.core.names import quote
from pylon.storage.postgres.functions import DECIMAL, EXACT, WEEK
from pylon.storage.sql.aggregate import AggregateDialect, Decode, Figure
from pylon.storage.sql.predicate_sql import Dialect
from pylon.values import INT_MAX, INT_MIN
from pylon.values.decimals import mean_of, text_of
from pylon.values.types import row_value_of

# The start of a time's bucket, from the stored notation.
_BUCKETS: Final = {
    "hour": "substr({c}, 1, 10) || ' ' || substr({c}, 12, 2) || ':00:00'",
    "day": "substr({c}, 1, 10)",
    "week": f"{WEEK}({{c}})",
    "month": "substr({c}, 1, 7)",
    "year": "substr({c}, 1, 4)",
}
_OF_BOOLEANS: Final = {"min": "bool_and", "max": "bool_or"}


def value_decoder(entity: Entity, name: str) -> Callable[[bytes], Any]:
    """Return the function that makes a row's value from a column's text."""
    field = field_of(entity, name)
    if field.type is FieldType.INT:
        return int
    if field.type is FieldType.FLOAT:
        return float
    if field.type is FieldType.BOOL:
        return lambda value: value[:1] == b"t"
    convert = row_value_of(field)
    if convert is None:
        return bytes.decode
    return lambda value: convert(value.decode())


def _decode(entity: Entity, name: str) -> Decode:
    make = value_decoder(entity, name)

    def decode(values: Iterator[Any]) -> object:
        value = next(values)
        return None if value is None else make(value)

    return decode


def _figure(entity: Entity, aggregation: Aggregation, doubles: str = "sum({c})") -> Figure:
    if aggregation.field is None:
        return ["count(*)"], _count
    column, kind = quote(aggregation.field), aggregation.kind
    if kind == "count":
        return [f"count({column})"], _count
    if kind == "countDistinct":
        return [f"count(DISTINCT {column})"], _count
    field = field_of(entity, aggregation.field)
    is_bool = field.type is FieldType.BOOL
    if kind in ("min", "max"):
        function = _OF_BOOLEANS[kind] if is_bool else kind
        return [f"{function}({column})"], _decode(entity, aggregation.field)
    if field.type is FieldType.DECIMAL:
        total, make = f"sum({DECIMAL}({column}))", _DECIMALS[kind]
    elif field.type is FieldType.FLOAT:
        total, make = doubles.format(c=column), _DOUBLES[kind]
    else:
        total, make = f"sum({column}{'::int' * is_bool})", _WHOLES[kind]
    return [total, f"count({column})"], make


def _count(values: Iterator[Any]) -> object:
    return int(next(values))


def _of_total(make: Callable[[Any, int], object]) -> Decode:
    """Return the decoder of a figure that is made of a total and a count; null for no values."""

    def decode(values: Iterator[Any]) -> object:
        total, count = next(values), int(next(values))
        return None if total is None else make(total, count)

    return decode


def _whole_sum(total: bytes, _: int) -> int | float:
    found = int(total)
    return found if INT_MIN <= found <= INT_MAX else float(found)


_WHOLES: Final = {
    "sum": _of_total(_whole_sum), "avg": _of_total(lambda total, count: float(total) / count),
}
_DOUBLES: Final = {
    "sum": _of_total(lambda total, _: float(total)),
    "avg": _of_total(lambda total, count: float(total) / count),
}
_DECIMALS: Final = {
    "sum": _of_total(lambda total, _: text_of(Decimal(total.decode()))),
    "avg": _of_total(lambda total, count: text_of(mean_of(Decimal(total.decode()), count))),
}


def _bucket(column: str, bucket: str) -> str:
    return _BUCKETS[bucket].format(c=column)


def _reaching_figure(entity: Entity, aggregation: Aggregation) -> Figure:
    return _figure(entity, aggregation, f"sum({EXACT}({{c}}))")


def _decode_text(values: Iterator[Any]) -> object:
    value = next(values)
    return None if value is None else value.decode()


def aggregates_of(base: Dialect) -> tuple[AggregateDialect, AggregateDialect]:
    """Return the dialect of aggregates, and the one for sums that no double can hold."""
    return (
        AggregateDialect(base, _figure, _bucket, _decode, _decode_text),
        AggregateDialect(base, _reaching_figure, _bucket, _decode, _decode_text),
    )
