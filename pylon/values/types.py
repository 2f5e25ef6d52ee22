"""Types of fields: which values each accepts, and what the store keeps of them.

A type has a check, which returns the value to store, and a description for errors. Its shape is the
msgspec type with which the codec checks whole rows at once. Called by the codec, the parsers of
queries, and the actions' inputs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from pylon.manifest.model import Field, FieldType
from pylon.values.datetimes import instant_of

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
MISSING: Final = object()

# Each check returns the value to store, or MISSING if the value is not of the type.
Check = Callable[[Any], Any]


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


CHECKS: Final[dict[FieldType, tuple[Check, str]]] = {
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
}


# The msgspec type of each field type. It may refuse values that the checks accept (3.0 as a whole
# number). It accepts no value that they refuse, except NUL characters and malformed dates.
SHAPES: Final[dict[FieldType, Any]] = {
    FieldType.STRING: str,
    FieldType.RICHTEXT: str,
    FieldType.ID: str,
    FieldType.DATETIME: str,
    FieldType.INT: Annotated[int, msgspec.Meta(ge=INT_MIN, le=INT_MAX)],
    FieldType.FLOAT: Annotated[
        float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)
    ],
    FieldType.BOOL: bool,
}

def expected(field: Field) -> str:
    """Return the description of the values that `field` accepts."""
    return CHECKS[field.type][1]


def fits(field: Field, value: object) -> bool:
    """Whether `value`, which is not null, is of the field's type."""
    return CHECKS[field.type][0](value) is not MISSING
