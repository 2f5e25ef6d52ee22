"""Operators: the condition that each operator of a filter makes (`$gt`, `$like`, `$in` ...).

`OPERATORS` has them by name. Each is a function of an entity, a field and the operand of the
request. docs/query-semantics.md defines their meaning.

If an operand is a whole number beyond 64 bits, the comparison takes a float for which it has the
same result. Bounds: `limits.LIKE_CHARS`, `LIKE_WILD_CHARS` and `FILTER_VALUES`. Called by `parse`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.query.conditions import in_values, like
from pylon.query.operands import (
    NOT_TEXTS,
    NUMBERS,
    column_of,
    exact_float,
    is_beyond_64_bits,
    parse_operand,
)
from pylon.query.predicate import (
    FALSE,
    TRUE,
    Affix,
    Compare,
    InValues,
    IsNull,
    Literal,
    Not,
    Predicate,
    Sign,
)
from pylon.values import invalid_value
from pylon.values.notations import notation_of

_NO_PARTS: Final = (*NOT_TEXTS, FieldType.DECIMAL)


def equal_condition(entity: Entity, field: Field, value: object) -> Predicate:
    if value is None:
        return IsNull(column_of(field))
    operand: Any = parse_operand(entity, field, value)
    if field.type is FieldType.FLOAT and is_beyond_64_bits(operand):
        operand = exact_float(operand)
        if operand is None:
            return FALSE
    return Compare("=", column_of(field), Literal(operand))


def _unequal(entity: Entity, field: Field, value: object) -> Predicate:
    if value is None:
        return Not(IsNull(column_of(field)))
    operand: Any = parse_operand(entity, field, value)
    if field.type is FieldType.FLOAT and is_beyond_64_bits(operand):
        operand = exact_float(operand)
        if operand is None:
            return Not(IsNull(column_of(field)))
    return Compare("<>", column_of(field), Literal(operand))


def _comparison(sign: Sign) -> Callable[[Entity, Field, object], Predicate]:
    def compared(entity: Entity, field: Field, value: object) -> Predicate:
        if field.type in NUMBERS and is_beyond_64_bits(value) and not isinstance(value, bool):
            return _far_bound(field, sign, value)
        return Compare(sign, column_of(field), Literal(parse_operand(entity, field, value)))

    return compared


def _far_bound(field: Field, sign: Sign, value: Any) -> Predicate:
    """Return a comparison with a whole number beyond 64 bits, by the nearest float.

    No number that a row can have lies between the two. If they differ, the sign changes from `<` to
    `<=` or the other way, so that the result is that of the whole number.
    """
    try:
        nearest = float(value)
    except OverflowError:
        nearest = inf if value > 0 else -inf
    if nearest > value:
        sign = "<" if sign[0] == "<" else ">="
    elif nearest < value:
        sign = "<=" if sign[0] == "<" else ">"
    return Compare(sign, column_of(field), Literal(nearest))


def _like(entity: Entity, field: Field, value: object) -> Predicate:
    """Return the condition that a text contains the pattern; `%` and `_` are wildcards."""
    text = _parse_text(entity, field, value, "$like")
    if len(text) > limits.LIKE_WILD_CHARS and any(
        "_" in piece and len(piece) > limits.LIKE_WILD_CHARS for piece in text.split("%")
    ):
        raise LimitExceeded(
            f"$like takes {limits.LIKE_WILD_CHARS} characters at most around a _ "
            f"(field {field.name})",
            hint="put a % where any text may stand",
        )
    return like(field.name, text, notation_of(field))


def _starts_with(entity: Entity, field: Field, value: object) -> Predicate:
    text = _parse_text(entity, field, value, "$startsWith")
    if not text:
        return Not(IsNull(column_of(field)))
    return Affix(False, column_of(field), Literal(text))


def _parse_text(entity: Entity, field: Field, value: object, operator: str) -> str:
    if field.type in _NO_PARTS:
        raise InvalidQuery(f"{operator} works on text, and {field.name} is {field.type.value}")
    if not isinstance(value, str):
        raise invalid_value(entity, field, value)
    if len(value) > limits.LIKE_CHARS:
        raise LimitExceeded(f"{operator} takes {limits.LIKE_CHARS} characters at most")
    return value


def _in(entity: Entity, field: Field, value: object) -> Predicate:
    return in_values(
        field.name, *_parse_members(entity, field, value, "$in"), notation_of(field)
    )


def _not_in(entity: Entity, field: Field, value: object) -> Predicate:
    """Return the condition that `$ne` holds for each member. An empty list selects every row."""
    members, _ = _parse_members(entity, field, value, "$nin")
    if members:
        return InValues(
            field.name, members, is_negated=True, notation=notation_of(field)
        )
    return Not(IsNull(column_of(field))) if value else TRUE


def _parse_members(
    entity: Entity, field: Field, value: object, operator: str
) -> tuple[tuple[Any, ...], bool]:
    """Return the members of a list without null, and whether the list has a null."""
    if not isinstance(value, list):
        raise InvalidQuery(f"{operator} takes a list (field {field.name})")
    if len(value) > limits.FILTER_VALUES:
        raise LimitExceeded(
            f"{operator} takes {limits.FILTER_VALUES} values at most, and {field.name} has "
            f"{len(value)}"
        )
    members: list[Any] = [parse_operand(entity, field, v) for v in value if v is not None]
    if field.type is FieldType.FLOAT:
        members = [m for m in map(exact_float, members) if m is not None]
    return tuple(members), None in value


def _exists(entity: Entity, field: Field, value: object) -> Predicate:
    if not isinstance(value, bool):
        raise InvalidQuery(f"$exists takes true or false (field {field.name})")
    return Not(IsNull(column_of(field))) if value else IsNull(column_of(field))


OPERATORS: Final[dict[str, Callable[[Entity, Field, object], Predicate]]] = {
    "$not": _unequal,
    "$ne": _unequal,
    "$gt": _comparison(">"),
    "$gte": _comparison(">="),
    "$lt": _comparison("<"),
    "$lte": _comparison("<="),
    "$like": _like,
    "$startsWith": _starts_with,
    "$in": _in,
    "$nin": _not_in,
    "$exists": _exists,
}
