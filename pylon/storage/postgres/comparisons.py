"""Comparisons: compares a value of a type with a literal of any type, for every row alike.

PostgreSQL gives each parameter one type, and takes no text with a NUL character or half a surrogate
pair. So the literal becomes one of the value's type:

- A number becomes one of the type, or the next one, with another sign where needed.
- An impossible text becomes the text next to it.
- Where no row can decide otherwise, the comparison becomes a constant, or "is not null".

Invariant: the comparison holds for the same rows as that of `pylon.query.evaluate`. Called by
`operands` and `dialect`.
"""

from __future__ import annotations

from decimal import Decimal
from math import ceil, floor, isinf, isnan
from typing import Any, Final, cast
from typing import Literal as OneWord

import msgspec

from pylon.query.conditions import and_, is_null, not_
from pylon.query.predicate import FALSE, Compare, Literal, Predicate, Scalar, Sign, Value
from pylon.values import INT_MAX, INT_MIN

SqlType = OneWord["text", "bigint", "double precision", "boolean", "numeric"]

FAR: Final = 2.0**63
_LAST: Final = "\ue000"  # the first character behind the surrogates


class Number(msgspec.Struct, frozen=True, gc=False):
    """An exact number, as its digits."""

    digits: str


def exact_digits(value: float) -> str:
    """Return the digits of a number as the function `_pylon_exact` has them."""
    if isinstance(value, int):
        return str(value)
    if isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if -FAR <= value < FAR and abs(value) >= 2.0**53:
        return str(int(value))
    return str(Decimal(repr(value)))


def is_storable(text: str) -> bool:
    """Whether a row can have the text."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def compare_literal(sign: Sign, left: Value, kind: SqlType, value: Scalar) -> Predicate:
    """Return the comparison of a value of a type with a literal."""
    if value is None:
        return FALSE
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "text" and isinstance(value, str):
        if is_storable(value):
            return Compare(sign, left, Literal(value))
        return _near_text(sign, left, value)
    if kind == "boolean" and not isinstance(value, str):
        return Compare(sign, left, Literal(bool(value)))
    if kind == "numeric" and is_number:
        return Compare(sign, left, cast(Value, Number(exact_digits(cast(float, value)))))
    if kind == "bigint" and is_number:
        return _with_whole(sign, left, value)
    if kind == "double precision" and is_number:
        return _with_double(sign, left, value)
    return compare_kinds(sign, left, None, kind == "text")


def compare_kinds(
    sign: Sign, left: Value, right: Value | None, left_is_text: bool
) -> Predicate:
    """Return the comparison of a number or boolean with a text, which is behind it."""
    holds = sign == "<>" or (sign[0] == ">" if left_is_text else sign[0] == "<")
    if not holds:
        return FALSE
    present = not_(is_null(left))
    return present if right is None else and_(present, not_(is_null(right)))


def _present(value: Value) -> Predicate:
    return not_(is_null(value))


def _with_whole(sign: Sign, left: Value, value: Any) -> Predicate:
    """Return the comparison of a whole number of 64 bits with any number."""
    if isinstance(value, float):
        if isnan(value):
            return FALSE
        if isinf(value) or not value.is_integer():
            below = INT_MIN - 1 if value < 0 else INT_MAX + 1
            return _between(
                sign, left, below if isinf(value) else floor(value),
                below if isinf(value) else ceil(value),
            )
        value = int(value)
    if not INT_MIN <= value <= INT_MAX:
        return _between(sign, left, value, value)
    return Compare(sign, left, Literal(value))


def _between(sign: Sign, left: Value, low: int, high: int) -> Predicate:
    """Return the comparison with a number that is no whole number of 64 bits, between two."""
    if sign == "=":
        return FALSE
    if sign == "<>":
        return _present(left)
    if sign[0] == "<":
        if low < INT_MIN:
            return FALSE
        return _present(left) if low > INT_MAX else Compare("<=", left, Literal(low))
    if high > INT_MAX:
        return FALSE
    return _present(left) if high < INT_MIN else Compare(">=", left, Literal(high))


def _with_double(sign: Sign, left: Value, value: Any) -> Predicate:
    """Return the comparison of a double with any number."""
    if isinstance(value, float):
        return FALSE if isnan(value) else Compare(sign, left, Literal(value))
    try:
        nearest = float(value)
    except OverflowError:
        nearest = float("inf") if value > 0 else -float("inf")
    if nearest == value:
        return Compare(sign, left, Literal(nearest))
    if sign == "=":
        return FALSE
    if sign == "<>":
        return _present(left)
    # No double is between the number and the nearest one.
    bounds: dict[str, Sign] = (
        {"<": "<", ">": ">="} if nearest > value else {"<": "<=", ">": ">"}
    )
    return Compare(bounds[sign[0]], left, Literal(nearest))


def _near_text(sign: Sign, left: Value, text: str) -> Predicate:
    """Return the comparison with a text that no row can have: by the text before the first
    impossible character, and behind it the first possible one."""
    if sign == "=":
        return FALSE
    if sign == "<>":
        return _present(left)
    begin = storable_pieces(text)[0]
    if text[len(begin)] == "\0":
        return Compare("<=" if sign[0] == "<" else ">", left, Literal(begin))
    return Compare("<" if sign[0] == "<" else ">=", left, Literal(begin + _LAST))


def storable_pieces(text: str) -> list[str]:
    """Return what stands before the first and behind the last impossible character."""
    places = [
        place for place, character in enumerate(text)
        if character == "\0" or "\ud800" <= character <= "\udfff"
    ]
    return [text[: places[0]], text[places[-1] + 1 :]]
