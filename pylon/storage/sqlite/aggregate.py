"""Aggregates: from a request's body to SQL, and from SQL's rows to the answer's
(spec/http.md §3.6).

Sums of whole numbers are exact up to 64 bits: SQLite would stop with an error beyond, so the
upper and lower halves are summed apart and put together here; a larger sum is given as a float.
Datetimes are grouped by their UTC time, whatever form they are stored in.

Invariants: what is requested is of a fitting type, or refused; names in SQL are the entity's
own; at most `limits.AGGREGATE_TERMS` figures and groups, and `limits.AGGREGATE_GROUPS` rows.
Called by the API (`parse_aggregate`) and by `SqliteReader.aggregate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, FieldType
from pylon.storage.clause import SqlClause
from pylon.storage.interface import Aggregate, Aggregation, Group
from pylon.storage.names import quote
from pylon.storage.sqlite.conditions import NUMBERS, field_of, parse_where
from pylon.storage.where import ALL
from pylon.values import INT_MAX, INT_MIN

_KEYS: Final = ("count", "sum", "avg", "min", "max", "countDistinct", "groupBy", "where")
_LISTS: Final = {
    "sum": "sum_", "avg": "avg_", "min": "min_", "max": "max_",
    "countDistinct": "count_distinct_",
}
_SUMMABLE: Final = (*NUMBERS, FieldType.BOOL)
# How a time is cut off, for strftime and as the leading part of `YYYY-MM-DD HH:MM`.
_FORMATS: Final = {
    "hour": ("%Y-%m-%d %H:00:00", "substr({c}, 1, 10) || ' ' || ifnull(nullif(substr({c}, 12, 2), "
             "''), '00') || ':00:00'"),
    "day": ("%Y-%m-%d", "substr({c}, 1, 10)"),
    "week": ("%Y-W%W", "strftime('%Y-W%W', substr({c}, 1, 10))"),
    "month": ("%Y-%m", "substr({c}, 1, 7)"),
    "year": ("%Y", "substr({c}, 1, 4)"),
}
_DEFAULT_BUCKET: Final = "day"


def parse_aggregate(entity: Entity, body: object, allowed: SqlClause = ALL) -> Aggregate:
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
    wanted = parse_where(entity, {} if where is None else where, allowed=allowed)
    return Aggregate(figures, groups, wanted)


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
        if not isinstance(bucket, str) or bucket not in _FORMATS:
            raise InvalidQuery(
                f"Unknown bucket {str(bucket)[:100]!r} of {field.name} -- known buckets: "
                f"{', '.join(_FORMATS)}"
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


# --- SQL ----------------------------------------------------------------------------------------

_Decode = Callable[[Iterator[Any]], object]


def aggregate_rows(
    fetch: Callable[[str, tuple[object, ...]], list[tuple[Any, ...]]],
    entity: Entity, aggregate: Aggregate,
) -> list[dict[str, Any]]:
    """See `pylon.storage.interface.Reader.aggregate`.

    Args:
        fetch: runs a statement and gives all its rows.
    """
    columns: list[str] = []
    decoders: list[tuple[str, _Decode]] = []
    for group in aggregate.groups:
        column = quote(group.field)
        columns.append(column if group.bucket is None else _bucket(column, group.bucket))
        decoders.append((group.key, _decode_value(entity, group.field)))
    for figure in aggregate.figures:
        expressions, decode = _figure(entity, figure)
        columns += expressions
        decoders.append((figure.key, decode))
    places = ", ".join(str(n) for n in range(1, len(aggregate.groups) + 1))
    grouping = f" GROUP BY {places} ORDER BY {places}" if places else ""
    found = fetch(
        f"SELECT {', '.join(columns)} FROM {quote(entity.name)} WHERE {aggregate.where.sql}"
        f"{grouping} LIMIT ?",
        (*aggregate.where.params, limits.AGGREGATE_GROUPS + 1),
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


def _figure(entity: Entity, figure: Aggregation) -> tuple[list[str], _Decode]:
    """The columns of a figure, and how they make its value."""
    if figure.field is None:
        return ["count(*)"], next
    column, kind = quote(figure.field), figure.kind
    if kind == "countDistinct":
        return [f"count(DISTINCT {column})"], next
    if kind == "sum" and field_of(entity, figure.field).type is not FieldType.FLOAT:
        return [f"sum({column} >> 32)", f"sum({column} & 4294967295)"], _joined
    decode = _decode_value(entity, figure.field) if kind in ("min", "max") else next
    return [f"{kind}({column})"], decode


def _joined(values: Iterator[Any]) -> object:
    high, low = next(values), next(values)
    if high is None:
        return None
    total: int = (high << 32) + low
    return total if INT_MIN <= total <= INT_MAX else float(total)


def _decode_value(entity: Entity, name: str) -> _Decode:
    if field_of(entity, name).type is not FieldType.BOOL:
        return next
    return _truth


def _truth(values: Iterator[Any]) -> object:
    value = next(values)
    return None if value is None else bool(value)


def _bucket(column: str, bucket: str) -> str:
    """The stored forms (`pylon.values`): epoch seconds and Z; ISO 8601 without an offset or
    with Z, whose text is cut; and with an offset, which is taken off before."""
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
