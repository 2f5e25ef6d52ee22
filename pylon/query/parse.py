"""Filters: parses the filter object of a request into a `Predicate` (spec/http.md §3.3).

A row must meet all conditions of a filter. `$or` and `$and` take lists of filters; `$search`
searches the texts of the entity. The parser refuses everything that it does not know: if it ignored
a condition, a query would return more rows than the client asked for. `null` as an operand means
"is null". No other condition holds for a null in a row, not even `$ne` or `$nin`.

Numbers compare by their mathematical value, whatever their type and size. If an operand is a whole
number beyond 64 bits, the parser takes a float for which the comparison has the same result.

Invariant: every operand has the type of its field. Bounds: `limits.FILTER_TERMS` conditions, with
each `$or` and `$and` counted, in `limits.FILTER_DEPTH` levels; `limits.HARD_PATTERNS` patterns for
which SQLite's LIKE may be slow (`patterns.is_hard_pattern`). Called by `rows`, `graph`, `aggregate`
and `matcher`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from math import inf, isfinite
from typing import Any, Final

from pylon import limits
from pylon.errors import SHOWN_CHARS, InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.query.conditions import and_, in_values, like, or_
from pylon.query.elements import element_condition, path_of
from pylon.query.predicate import (
    FALSE,
    TRUE,
    Affix,
    Column,
    Compare,
    InValues,
    IsNull,
    Like,
    Literal,
    Not,
    Predicate,
    Scalar,
    Sign,
)
from pylon.query.words import parse_words
from pylon.values import INT_MAX, INT_MIN, instant_of, invalid_value, unknown_column
from pylon.values.datetimes import is_date
from pylon.values.decimals import decimal_of, sort_text_of
from pylon.values.notations import notation_of

ID: Final = Field("id", FieldType.ID, optional=False, unique=True)
NUMBERS: Final = (FieldType.INT, FieldType.FLOAT)
NOT_TEXTS: Final = (*NUMBERS, FieldType.BOOL)
# Types of whose values a look-up has another text.
CONVERTED: Final = (
    *NOT_TEXTS, FieldType.DATETIME, FieldType.DATE, FieldType.DECIMAL, FieldType.ENUM,
    FieldType.JSON,
)
_JSON: Final = FieldType.JSON
_PLAIN_TEXTS: Final = (FieldType.STRING, FieldType.ID, FieldType.RICHTEXT)
_NO_PARTS: Final = (*NOT_TEXTS, FieldType.DECIMAL)
COMBINING: Final = ("$or", "$and", "$search")
_NUMBER_TEXT: Final = re.compile(
    r"[\t-\r ]*([+-]?[0-9]{1,19}|[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[\t-\r ]*"
)


def parse_where(
    entity: Entity, body: object, directives: Collection[str] = ()
) -> Predicate:
    """Return the condition that `body` describes.

    Args:
        body: a decoded JSON object.
        directives: further keys that `body` may have, such as `$order`. The parser skips them.

    Raises:
        InvalidQuery: not an object, an unknown operator, a malformed list.
        InvalidColumn: a field that the entity does not have.
        InvalidValue: an operand of another type than the field.
        LimitExceeded: too many conditions, or too deep.
    """
    return FilterParser(entity, directives).parse(body)


def filter_object(body: object) -> dict[str, Any]:
    """Return `body` if it is a JSON object.

    Raises:
        InvalidQuery: it is no object.
    """
    if not isinstance(body, dict):
        raise InvalidQuery("A filter must be a JSON object, for example {}")
    return body


def field_of(entity: Entity, name: object) -> Field:
    """Return the field of that name, which may be `id`.

    Raises:
        InvalidColumn: the entity has no such field.
    """
    if name == "id":
        return ID
    field = entity.by_name.get(name) if isinstance(name, str) else None
    if field is None:
        raise unknown_column(entity, str(name))
    return field


class FilterParser:
    """Parses one filter and counts its conditions.

    After `parse`, `has_search` tells whether the filter has a `$search`, and `patterns` lists its
    `$like` patterns.
    """

    __slots__ = (
        "_directives", "_entity", "_hard", "_pattern_chars", "_terms", "has_search", "patterns",
    )

    def __init__(self, entity: Entity, directives: Collection[str] = ()) -> None:
        self._entity = entity
        self._directives = directives
        self._hard = 0
        self._pattern_chars = 0
        self._terms = 0
        self.has_search = False
        self.patterns: list[str] = []

    def parse(self, body: object, depth: int = 0) -> Predicate:
        """Return the condition of a filter object. Raises the errors of `parse_where`."""
        found: list[Predicate] = []
        for key, operand in filter_object(body).items():
            if key.startswith("$"):
                if key in self._directives:
                    if depth:
                        raise InvalidQuery(f"{key} has its place in the outermost filter only")
                    continue
                found.append(self._parse_combined(key, operand, depth))
                continue
            if "." in key:
                found += self._parse_path(key, operand)
                continue
            field = field_of(self._entity, key)
            if field.type is _JSON:
                found += self._parse_element(field, (), operand)
            elif isinstance(operand, dict):
                found += self._parse_operators(field, operand)
            else:
                self._count()
                found.append(_equal(self._entity, field, operand))
        return found[0] if len(found) == 1 else and_(*found)

    def _parse_path(self, key: str, operand: object) -> list[Predicate]:
        name, _, rest = key.partition(".")
        field = field_of(self._entity, name)
        if field.type is not _JSON:
            raise InvalidQuery(
                f"{field.name} is {field.type.value}, and only a json field has a path"
            )
        return self._parse_element(field, path_of(field, rest), operand)

    def _parse_element(
        self, field: Field, path: tuple[str, ...], operand: object
    ) -> list[Predicate]:
        operators = operand if isinstance(operand, dict) else {"$eq": operand}
        if not operators:
            raise InvalidQuery(f"The condition on {field.name} has no operator")
        found = []
        for operator, value in operators.items():
            self._count()
            found.append(element_condition(self._entity, field, path, operator, value))
        return found

    def _parse_combined(self, key: str, operand: object, depth: int) -> Predicate:
        self._count()
        if key == "$search":
            return self._parse_search(operand)
        if key not in ("$or", "$and"):
            raise _unknown(key, (*COMBINING, *self._directives))
        if not isinstance(operand, list):
            raise InvalidQuery(f'{key} takes a list of filters, for example [{{"id": "x"}}]')
        if depth == limits.FILTER_DEPTH:
            raise LimitExceeded(
                f"$or and $and may be nested {limits.FILTER_DEPTH} levels deep at most"
            )
        found: list[Predicate] = []
        for part in operand:
            self._count()
            found.append(self.parse(part, depth + 1))
        return and_(*found) if key == "$and" else or_(*found)

    def _parse_search(self, text: object) -> Predicate:
        if not isinstance(text, str):
            raise InvalidQuery("$search takes a text")
        if self.has_search:
            raise InvalidQuery("A filter may have one $search")
        self.has_search = True
        return parse_words(self._entity, text)

    def _parse_operators(self, field: Field, operand: dict[str, Any]) -> list[Predicate]:
        if not operand:
            raise InvalidQuery(
                f"The condition on {field.name} has no operator -- "
                f"known operators: {', '.join(_OPERATORS)}"
            )
        found = []
        for operator, value in operand.items():
            self._count()
            make = _OPERATORS.get(operator)
            if make is None:
                raise _unknown(operator, tuple(_OPERATORS))
            condition = make(self._entity, field, value)
            if operator == "$like":
                self._count_pattern(value, condition)
            found.append(condition)
        return found

    def _count_pattern(self, pattern: str, condition: Predicate) -> None:
        self.patterns.append(pattern)
        self._pattern_chars += len(pattern)
        if self._pattern_chars > limits.LIKE_CHARS:
            raise LimitExceeded(
                f"The $like patterns of a filter have {limits.LIKE_CHARS} characters at most, "
                "all together"
            )
        if type(condition) is Like and condition.is_hard:
            self._hard += 1
        if self._hard > limits.HARD_PATTERNS:
            raise LimitExceeded(
                f"A filter may have {limits.HARD_PATTERNS} $like patterns at most that are long "
                "or repeat their first character often",
                hint="ask for shorter texts",
            )

    def _count(self) -> None:
        self._terms += 1
        if self._terms > limits.FILTER_TERMS:
            raise LimitExceeded(f"A filter may have {limits.FILTER_TERMS} conditions at most")


def _unknown(operator: str, known: tuple[str, ...]) -> InvalidQuery:
    shown = operator[:SHOWN_CHARS]
    return InvalidQuery(
        f'Unknown operator "{shown}" -- known operators: {", ".join(known)}', operator=shown
    )


# --- Operands -----------------------------------------------------------------------------------


def parse_operand(entity: Entity, field: Field, value: object) -> Any:
    """Return `value` as an operand for the field.

    Whole numbers and floats compare with each other. Clients also send booleans as 0 and 1.

    Raises:
        InvalidValue: the value has another type than the field.
    """
    if field.type is FieldType.BOOL:
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
    elif field.type in NUMBERS:
        if _is_number(value) and (field.type is FieldType.FLOAT or not is_beyond_64_bits(value)):
            return value
    elif field.type in _PLAIN_TEXTS:
        if isinstance(value, str):
            return value
    elif isinstance(value, str) or field.type is FieldType.DECIMAL:
        operand = text_operand(field, value)
        if operand is not None:
            return operand
    raise invalid_value(entity, field, value)


def text_operand(field: Field, value: Any) -> str | None:
    """Return the text that a field's column compares with; None if the field has no such value.

    Args:
        value: a text, or of a decimal also a whole number.
    """
    match field.type:
        case FieldType.DATETIME:
            return instant_of(value)
        case FieldType.DECIMAL:
            text = decimal_of(value)
            return None if text is None else sort_text_of(text)
        case FieldType.DATE:
            return value if is_date(value) else None
        case FieldType.ENUM:
            return value if value in field.values else None
        case FieldType.JSON:
            return None
        case _:
            return str(value)


def column_of(field: Field) -> Column:
    """Return the node of a field's value."""
    return Column(field.name, notation_of(field))


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_beyond_64_bits(value: object) -> bool:
    """Return whether the value is a whole number beyond 64 bits, which no row can have."""
    return isinstance(value, int) and not INT_MIN <= value <= INT_MAX


def exact_float(value: float) -> float | None:
    """Return the float that equals a number; None if no float does."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if number == value else None


def value_of_text(field: Field, text: str) -> Scalar:
    """Return the value of the field that a text in a URL means; None if it means no value.

    A number may have a sign, a fraction, an exponent, and white space around it; a boolean is
    ``true``, ``false``, 1 or 0.
    """
    if field.type not in NOT_TEXTS:
        return text_operand(field, text)
    if field.type is FieldType.BOOL and text in ("true", "false"):
        return text == "true"
    found = _NUMBER_TEXT.fullmatch(text)
    if found is None:
        return None
    try:
        number: int | float = int(found[1])
    except ValueError:  # a fraction, an exponent, or thousands of digits
        number = float(found[1])
    if is_beyond_64_bits(number):
        number = float(found[1])
    if field.type is not FieldType.BOOL:
        return number
    return bool(number) if number in (0, 1) else None


# --- Operators ----------------------------------------------------------------------------------


def _equal(entity: Entity, field: Field, value: object) -> Predicate:
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


_OPERATORS: Final[dict[str, Callable[[Entity, Field, object], Predicate]]] = {
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
