"""Aggregates: figures over the rows that a condition selects (spec/http.md §3.6).

A figure is a count, a sum, an average, a minimum, a maximum or a count of distinct values. Groups
are fields, or datetimes cut off at an hour, day, week, month or year of their UTC time, whatever
form they are stored in. Sums of whole numbers are exact up to 64 bits; a larger sum is a float.

Invariants: every figure is of a field of a fitting type, or the parser refuses it; at most
`limits.AGGREGATE_TERMS` figures and groups. Called by the aggregate resource; the store answers
an `Aggregate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, FieldType
from pylon.query.parse import NUMBERS, field_of, parse_where
from pylon.query.predicate import TRUE, Predicate, guarded

BUCKETS: Final = ("hour", "day", "week", "month", "year")
_KEYS: Final = ("count", "sum", "avg", "min", "max", "countDistinct", "groupBy", "where")
_LISTS: Final = {
    "sum": "sum_", "avg": "avg_", "min": "min_", "max": "max_",
    "countDistinct": "count_distinct_",
}
_SUMMABLE: Final = (*NUMBERS, FieldType.BOOL)
_DEFAULT_BUCKET: Final = "day"


@dataclass(frozen=True, slots=True)
class Group:
    """A field by whose values the rows are grouped; `key` names it in the answer."""

    key: str
    field: str
    bucket: str | None = None  # one of BUCKETS, for a datetime


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One number of an aggregate; a count without a field counts rows."""

    key: str
    kind: str  # count, sum, avg, min, max or countDistinct
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Figures over the rows of `where`, one row for each distinct value of `groups`."""

    figures: tuple[Aggregation, ...]
    groups: tuple[Group, ...]
    where: Predicate


def parse_aggregate(entity: Entity, body: object, allowed: Predicate = TRUE) -> Aggregate:
    """The aggregate that `body` asks for, over the rows of `allowed`.

    Raises:
        InvalidQuery: not an object, nothing requested, an unknown key, a bad bucket, a field
            that cannot be summed, two figures of one name.
        InvalidColumn, InvalidValue, LimitExceeded: also those of `parse_where`.
    """
    if not isinstance(body, dict):
        raise InvalidQuery('An aggregate must be a JSON object, for example {"count": "*"}')
    for key in body:
        if key not in _KEYS:
            raise InvalidQuery(
                f'Unknown key "{key[:100]}" of an aggregate -- known keys: {", ".join(_KEYS)}'
            )
    figures = tuple(_figures(entity, body))
    groups = tuple(_groups(entity, body.get("groupBy")))
    names = [group.key for group in groups] + [figure.key for figure in figures]
    if not names:
        raise InvalidQuery(
            "The aggregate requests nothing", hint='for example {"count": "*"}'
        )
    if len(names) > limits.AGGREGATE_TERMS:
        raise LimitExceeded(
            f"An aggregate may have {limits.AGGREGATE_TERMS} figures and groups at most"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidQuery(f'Two members of the answer would be called "{twice}"')
    where = body.get("where")
    wanted = parse_where(entity, {} if where is None else where)
    return Aggregate(figures, groups, guarded(allowed, wanted))


def _figures(entity: Entity, body: dict[str, Any]) -> Iterator[Aggregation]:
    count = body.get("count")
    if count == "*":
        yield Aggregation("count", "count")
    elif isinstance(count, str):
        name = field_of(entity, count).name
        yield Aggregation(f"count_{name}", "count", name)
    elif count is not None:
        raise InvalidQuery('count takes "*" or the name of a field')
    for kind, prefix in _LISTS.items():
        for name in _names(kind, body.get(kind)):
            field = field_of(entity, name)
            if kind in ("sum", "avg") and field.type not in _SUMMABLE:
                raise InvalidQuery(
                    f"{kind} works on numbers, and {field.name} is {field.type.value}"
                )
            yield Aggregation(prefix + field.name, kind, field.name)


def _groups(entity: Entity, asked: object) -> Iterator[Group]:
    for item in _names("groupBy", asked):
        if not isinstance(item, dict):
            name = field_of(entity, item).name
            yield Group(name, name)
            continue
        unknown = next((key for key in item if key not in ("field", "bucket")), None)
        if unknown is not None or not isinstance(item.get("field"), str):
            raise InvalidQuery(
                'A group is the name of a field or {"field": name, "bucket": "day"}'
            )
        field = field_of(entity, item["field"])
        bucket = item.get("bucket", _DEFAULT_BUCKET)
        if not isinstance(bucket, str) or bucket not in BUCKETS:
            raise InvalidQuery(
                f"Unknown bucket {str(bucket)[:100]!r} of {field.name} -- known buckets: "
                f"{', '.join(BUCKETS)}"
            )
        if field.type is not FieldType.DATETIME:
            raise InvalidQuery(
                f"Buckets are for datetimes, and {field.name} is {field.type.value}"
            )
        yield Group(f"{field.name}_{bucket}", field.name, bucket)


def _names(key: str, value: object) -> Sequence[Any]:
    if value is None:
        return ()
    kinds: tuple[type, ...] = (str, dict) if key == "groupBy" else (str,)
    if not isinstance(value, list) or not all(isinstance(item, kinds) for item in value):
        raise InvalidQuery(f"{key} takes a list of fields")
    if len(value) > limits.AGGREGATE_TERMS:
        raise LimitExceeded(f"{key} may name {limits.AGGREGATE_TERMS} fields at most")
    return value
