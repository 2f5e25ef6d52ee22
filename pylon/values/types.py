"""Types of fields: which values each accepts, and what the store keeps of them.

`check_of` returns the check of a field: its type's, and its constraints behind it. The check
returns the value that a row has, or `MISSING`. The shape of a type is the msgspec type with which
the codec checks whole rows at once. `store_value_of` and `row_value_of` convert the types whose
column has another value than the row's JSON. Called by the codec, the parsers of queries, the
schema, and the actions' inputs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec

from pylon.manifest.model import Field, FieldType
from pylon.values.constraints import describe, tests_of
from pylon.values.datetimes import instant_of, is_date
from pylon.values.decimals import DIGITS, decimal_key, decimal_of, decimal_of_sort_text
from pylon.values.json_values import json_text_of, parse_json

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
MISSING: Final = object()

# Each check returns the value that the row has, or MISSING if the value is not of the type.
Check = Callable[[Any], Any]
Convert = Callable[[Any], Any]


def _string(value: Any) -> Any:
    return value if isinstance(value, str) and "\0" not in value else MISSING


def _int(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING
    if isinstance(value, float):
        # The float -2**63 may be a smaller integer that a JSON decoder has rounded.
        if not value.is_integer() or value == INT_MIN:  # `is_integer` is False for inf and NaN
            return MISSING
        value = int(value)
    return value if INT_MIN <= value <= INT_MAX else MISSING


def _float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING
    try:
        number = float(value)
    except OverflowError:
        return MISSING
    return number if math.isfinite(number) else MISSING


def _bool(value: Any) -> Any:
    return value if isinstance(value, bool) else MISSING


def _datetime(value: Any) -> Any:
    found = instant_of(value) if isinstance(value, str) else None
    return MISSING if found is None else found


def _date(value: Any) -> Any:
    return value if isinstance(value, str) and is_date(value) else MISSING


def _decimal(value: Any) -> Any:
    found = decimal_of(value)
    return MISSING if found is None else found


def _json(value: Any) -> Any:
    return MISSING if json_text_of(value) is None else value


def _json_text(value: Any) -> Any:
    if not isinstance(value, str):
        return MISSING
    try:
        text = json_text_of(parse_json(value))
    except ValueError:
        return MISSING
    return MISSING if text is None else text


_CHECKS: Final[dict[FieldType, tuple[Check, str]]] = {
    FieldType.STRING: (_string, "a string without NUL characters"),
    FieldType.RICHTEXT: (_string, "a string without NUL characters"),
    FieldType.ID: (_string, "a row id (a string without NUL characters)"),
    FieldType.INT: (_int, "a whole number of 64 bits"),
    FieldType.FLOAT: (_float, "a finite number"),
    FieldType.BOOL: (_bool, "true or false"),
    FieldType.DATETIME: (
        _datetime,
        "an ISO 8601 date or date-time of the years 1 to 9999, or epoch seconds and Z",
    ),
    FieldType.DATE: (_date, "a date such as 2026-03-29"),
    FieldType.DECIMAL: (
        _decimal,
        f'a decimal as text such as "12.50", with at most {DIGITS} digits before and {DIGITS} '
        "behind the point",
    ),
    FieldType.JSON: (
        _json,
        "a JSON value with whole numbers of 64 bits, no NUL characters, and within the limits of "
        "depth and size (docs/data-types.md)",
    ),
}


# The msgspec type of each field type. It may refuse values that the checks accept (3.0 as a whole
# number). It accepts no value that they refuse, except NUL characters and the texts and JSON values
# that `needs_check` names.
_SHAPES: Final[dict[FieldType, Any]] = {
    FieldType.STRING: str,
    FieldType.RICHTEXT: str,
    FieldType.ID: str,
    FieldType.DATETIME: str,
    FieldType.DATE: str,
    FieldType.DECIMAL: str,
    FieldType.JSON: Any,
    FieldType.INT: Annotated[int, msgspec.Meta(ge=INT_MIN, le=INT_MAX)],
    FieldType.FLOAT: Annotated[
        float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)
    ],
    FieldType.BOOL: bool,
}
_CHECKED: Final = (FieldType.DATETIME, FieldType.DATE, FieldType.DECIMAL, FieldType.JSON)


def shape_of(field: Field) -> Any:
    """Return the msgspec type of a field's values, without null."""
    if field.type is FieldType.ENUM:
        return Literal[field.values]
    return _SHAPES[field.type]


def needs_check(field: Field) -> bool:
    """Whether a value of the field's shape must still pass its check."""
    return field.type in _CHECKED or field.constraints is not None


@lru_cache(maxsize=4096)
def check_of(field: Field) -> Check:
    """Return the check of a field's values.

    Raises:
        ValueError: the field's pattern is none of RE2.
    """
    check = _type_check_of(field)
    tests = tests_of(field)
    if not tests:
        return check

    def constrained(value: Any) -> Any:
        stored = check(value)
        if stored is not MISSING:
            for test in tests:
                if not test(stored):
                    return MISSING
        return stored

    return constrained


def _type_check_of(field: Field) -> Check:
    if field.type is FieldType.ENUM:
        values = frozenset(field.values)
        return lambda value: value if isinstance(value, str) and value in values else MISSING
    if field.is_json_text:
        return _json_text
    return _CHECKS[field.type][0]


def expected(field: Field) -> str:
    """Return the description of the values that `field` accepts."""
    if field.type is FieldType.ENUM:
        return f"one of {', '.join(field.values)}"
    text = "a text of JSON: " if field.is_json_text else ""
    return f"{text}{_CHECKS[field.type][1]}{describe(field.constraints)}"


def fits(field: Field, value: object) -> bool:
    """Whether `value`, which is not null, is of the field's type and fulfils its constraints."""
    return check_of(field)(value) is not MISSING


def store_value_of(field: Field) -> Convert | None:
    """Return the function that makes a column's value of a row's; None: they are the same."""
    if field.type is FieldType.DECIMAL:
        return decimal_key
    if field.type is FieldType.JSON and not field.is_json_text:
        return json_text_of
    return None


def row_value_of(field: Field) -> Convert | None:
    """Return the function that makes a row's value of a column's; None: they are the same.

    A value that the field does not accept, in a table that another program filled, stays.
    """
    if field.type is FieldType.BOOL:
        return lambda value: bool(value) if isinstance(value, int) else value
    if field.type is FieldType.DECIMAL:
        return _stored_decimal
    if field.type is FieldType.JSON and not field.is_json_text:
        return _stored_json
    return None


def _stored_decimal(value: Any) -> Any:
    is_sort_text = isinstance(value, str) and len(value) == 2 * DIGITS + 1 and value.isdecimal()
    return decimal_of_sort_text(value) if is_sort_text else value


def _stored_json(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value
