"""The filter object of queries becomes a `Query` (spec/http.md §3.3).

What the original ignores is refused here: an unknown operator or a wrong operand would make a
query answer more than was asked for. `null` written as an operand means IS NULL.

Invariants: values travel as parameters only; every operand is of its field's type; at most
`limits.FILTER_TERMS` conditions. Called by the API; the caller's read policy is ANDed to the
result with `pylon.storage.where.and_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.storage.clause import SqlClause
from pylon.storage.contract import Query
from pylon.storage.names import quote
from pylon.storage.where import NOTHING, and_
from pylon.values import INT_MAX, INT_MIN, invalid_value, unknown_column

_COMPARE: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS: Final = ("$not", *_COMPARE, "$like", "$in")
_DIRECTIVES: Final = ("$order", "$limit", "$offset", "$search")
_ID: Final = Field("id", FieldType.ID, optional=False, unique=True)
_NUMBERS: Final = (FieldType.INT, FieldType.FLOAT)


def parse_filter(entity: Entity, body: object, max_limit: int) -> Query:
    """The query that `body` describes.

    Args:
        body: a decoded JSON object.
        max_limit: most rows to answer (PYLON_LIST_LIMIT); also the default.

    Raises:
        InvalidQuery: not an object, an unknown operator, a malformed directive.
        InvalidColumn: a field that the entity does not have.
        InvalidValue: an operand of another type than the field.
        LimitExceeded: too many conditions, or `$limit` above `max_limit`.
    """
    if not isinstance(body, dict):
        raise InvalidQuery("A filter must be a JSON object, for example {}")
    clauses: list[SqlClause] = []
    for key, operand in body.items():
        if key in _DIRECTIVES:
            continue
        if key.startswith("$") and key not in entity.by_name:
            raise _unknown(key, _DIRECTIVES)
        field = _field(entity, key)
        if isinstance(operand, dict):
            clauses += _operators(entity, field, operand)
        else:
            clauses.append(_equals(entity, field, operand))
        if len(clauses) > limits.FILTER_TERMS:
            raise LimitExceeded(f"A filter may have {limits.FILTER_TERMS} conditions at most")
    if "$search" in body:
        raise InvalidQuery(
            "$search needs a search index, which this server does not build yet",
            hint="use $like on a single field",
        )
    return Query(
        and_(*clauses),
        limit=_limit(body, max_limit),
        order=_order(entity, body.get("$order")),
        offset=_count(body, "$offset", 0),
    )


def _field(entity: Entity, name: str) -> Field:
    if name == "id":
        return _ID
    field = entity.by_name.get(name)
    if field is None:
        raise unknown_column(entity, name)
    return field


def _unknown(operator: str, known: tuple[str, ...]) -> InvalidQuery:
    return InvalidQuery(
        f'Unknown operator "{operator[:100]}" -- known operators: {", ".join(known)}',
        operator=operator[:100],
    )


def _operators(entity: Entity, field: Field, operand: Mapping[str, Any]) -> list[SqlClause]:
    if not operand:
        raise InvalidQuery(
            f"The condition on {field.name} has no operator -- "
            f"known operators: {', '.join(_OPERATORS)}"
        )
    column = quote(field.name)
    clauses = []
    for operator, value in operand.items():
        if operator == "$not":
            clauses.append(_differs(entity, field, value))
        elif operator in _COMPARE:
            param = _operand(entity, field, value)
            clauses.append(SqlClause(f"{column} {_COMPARE[operator]} ?", (param,)))
        elif operator == "$like":
            clauses.append(_like(entity, field, value))
        elif operator == "$in":
            clauses.append(_in(entity, field, value))
        else:
            raise _unknown(operator, _OPERATORS)
    return clauses


def _equals(entity: Entity, field: Field, value: object) -> SqlClause:
    if value is None:
        return SqlClause(f"{quote(field.name)} IS NULL", ())
    return SqlClause(f"{quote(field.name)} = ?", (_operand(entity, field, value),))


def _differs(entity: Entity, field: Field, value: object) -> SqlClause:
    """Rows with null there never differ, except from a written null."""
    if value is None:
        return SqlClause(f"{quote(field.name)} IS NOT NULL", ())
    return SqlClause(f"{quote(field.name)} <> ?", (_operand(entity, field, value),))


def _like(entity: Entity, field: Field, value: object) -> SqlClause:
    """A substring; `%` and `_` in it stay wildcards."""
    if field.type in _NUMBERS or field.type is FieldType.BOOL:
        raise InvalidQuery(f"$like works on text, and {field.name} is {field.type.value}")
    if not isinstance(value, str):
        raise invalid_value(entity, field, value)
    if len(value) > limits.LIKE_CHARS:
        raise LimitExceeded(f"$like takes {limits.LIKE_CHARS} characters at most")
    return SqlClause(f"{quote(field.name)} LIKE ?", (f"%{value}%",))


def _in(entity: Entity, field: Field, value: object) -> SqlClause:
    """One parameter for the whole list, so that lists of all lengths share a statement."""
    if not isinstance(value, list):
        raise InvalidQuery(f"$in takes a list (field {field.name})")
    members = [_operand(entity, field, v) for v in value if v is not None]
    column = quote(field.name)
    listed = SqlClause(
        f"{column} IN (SELECT value FROM json_each(?))", (orjson.dumps(members).decode(),)
    )
    if None not in value:
        return listed if members else NOTHING
    if not members:
        return SqlClause(f"{column} IS NULL", ())
    return SqlClause(f"({listed.sql} OR {column} IS NULL)", listed.params)


def _operand(entity: Entity, field: Field, value: object) -> object:
    """`value` as SQL compares it. Numbers of both kinds compare with each other; booleans may
    also be asked for as 0 and 1, as the clients do."""
    if field.type is FieldType.BOOL:
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return int(value)
    elif field.type in _NUMBERS:
        if isinstance(value, float) or (
            isinstance(value, int) and not isinstance(value, bool) and INT_MIN <= value <= INT_MAX
        ):
            return value
    elif isinstance(value, str):
        return value
    raise invalid_value(entity, field, value)


def _order(entity: Entity, order: object) -> tuple[tuple[str, bool], ...]:
    if order is None:
        return ()
    if not isinstance(order, dict):
        raise InvalidQuery('$order takes an object, for example {"title": "desc"}')
    if len(order) > limits.FILTER_TERMS:
        raise LimitExceeded(f"$order may name {limits.FILTER_TERMS} fields at most")
    pairs = []
    for name, direction in order.items():
        if direction not in ("asc", "desc"):
            raise InvalidQuery(f'$order of {name[:100]} must be "asc" or "desc"')
        pairs.append((_field(entity, name).name, direction == "desc"))
    return tuple(pairs)


def _count(body: Mapping[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT_MAX:
        raise InvalidQuery(f"{name} must be a whole number from 0")
    return value


def _limit(body: Mapping[str, Any], max_limit: int) -> int:
    limit = _count(body, "$limit", max_limit)
    if limit > max_limit:
        raise LimitExceeded(
            f"$limit is {limit}, and at most {max_limit} rows are answered (PYLON_LIST_LIMIT)",
            hint="ask for pages with $limit and $offset",
        )
    return limit
