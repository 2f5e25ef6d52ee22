"""Aggregates: figures over the rows that a condition selects (spec/http.md §3.6).

A figure is a count, a sum, an average, a minimum, a maximum or a count of distinct values. Groups
are fields, or datetimes cut off at an hour, day, week, month or year of their UTC time, whatever
form they are stored in. Sums of whole numbers are exact up to 64 bits; a larger sum is a float.

Invariant: the parser refuses a figure that does not fit the type of its field. Bound:
`limits.AGGREGATE_TERMS` figures and groups. Called by the aggregate resource, which passes the
`Aggregate` to the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import field

from pylon import limits
from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, FieldType
from pylon.query.conditions import guarded
from pylon.query.operands import NUMBERS, field_of
from pylon.query.parse import parse_where
from pylon.query.predicate import TRUE, Predicate

BUCKETS: Final = ("hour", "day", "week", "month", "year")
_SUMMABLE: Final = (*NUMBERS, FieldType.BOOL, FieldType.DECIMAL)
_TIMES: Final = (FieldType.DATETIME, FieldType.DATE)
_DEFAULT_BUCKET: Final = "day"
T = TypeVar("T")


def _list_refusal(name: str) -> Refusal:
    return Refusal(wrong=InvalidQuery, text=f"{name} takes a list of fields")


class AggregateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures, the fields that group the rows, and a condition on them."""

    count: Annotated[
        str | None,
        Refusal(wrong=InvalidQuery, text='count takes "*" or the name of a field'),
    ] = None
    sum: Annotated[list[str] | None, _list_refusal("sum")] = None
    avg: Annotated[list[str] | None, _list_refusal("avg")] = None
    min: Annotated[list[str] | None, _list_refusal("min")] = None
    max: Annotated[list[str] | None, _list_refusal("max")] = None
    count_distinct: Annotated[
        list[str] | None, _list_refusal("countDistinct")
    ] = field(default=None, name="countDistinct")
    group_by: Annotated[
        list[str | dict[str, Any]] | None, _list_refusal("groupBy")
    ] = field(default=None, name="groupBy")
    where: Any = None


_BODY: Final = BodyType(
    AggregateBody, '{"count": "*"}', noun="An aggregate", error=InvalidQuery,
    unknown='Unknown key "{name}" of an aggregate -- known keys: {known}',
)


class Group(msgspec.Struct, frozen=True):
    """A field by whose values the rows are grouped; `key` names it in the answer."""

    key: str
    field: str
    bucket: str | None = None  # one of BUCKETS, for a datetime


class Aggregation(msgspec.Struct, frozen=True):
    """One number of an aggregate; a count without a field counts rows."""

    key: str
    kind: str  # count, sum, avg, min, max or countDistinct
    field: str | None = None


class Aggregate(msgspec.Struct, frozen=True):
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
    typed = _BODY.convert(body)
    figures = tuple(_figures(entity, typed))
    groups = tuple(_groups(entity, typed.group_by))
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
    wanted = parse_where(entity, {} if typed.where is None else typed.where)
    return Aggregate(figures, groups, guarded(allowed, wanted))


def _figures(entity: Entity, body: AggregateBody) -> Iterator[Aggregation]:
    if body.count == "*":
        yield Aggregation("count", "count")
    elif body.count is not None:
        name = field_of(entity, body.count).name
        yield Aggregation(f"count_{name}", "count", name)
    for kind, prefix, names in (
        ("sum", "sum_", body.sum), ("avg", "avg_", body.avg), ("min", "min_", body.min),
        ("max", "max_", body.max), ("countDistinct", "count_distinct_", body.count_distinct),
    ):
        for name in _check_names(kind, names):
            field = field_of(entity, name)
            if kind in ("sum", "avg") and field.type not in _SUMMABLE:
                raise InvalidQuery(
                    f"{kind} works on numbers, and {field.name} is {field.type.value}"
                )
            if kind in ("min", "max") and field.type is FieldType.JSON:
                raise InvalidQuery(f"{kind} has no meaning for {field.name}, which is json")
            yield Aggregation(prefix + field.name, kind, field.name)


def _groups(
    entity: Entity, asked: list[str | dict[str, Any]] | None
) -> Iterator[Group]:
    for item in _check_names("groupBy", asked):
        if not isinstance(item, dict):
            group = field_of(entity, item)
            if group.type is FieldType.JSON:
                raise InvalidQuery(f"groupBy takes no json field, and {group.name} is json")
            yield Group(group.name, group.name)
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
        if field.type not in _TIMES or (bucket == "hour" and field.type is FieldType.DATE):
            raise InvalidQuery(
                f"Buckets are for datetimes, and days and longer ones for dates, and {field.name} "
                f"is {field.type.value}"
            )
        yield Group(f"{field.name}_{bucket}", field.name, bucket)


def _check_names(key: str, names: list[T] | None) -> Sequence[T]:
    if names is None:
        return ()
    if len(names) > limits.AGGREGATE_TERMS:
        raise LimitExceeded(f"{key} may name {limits.AGGREGATE_TERMS} fields at most")
    return names
