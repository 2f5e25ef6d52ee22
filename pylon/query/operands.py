"""Operands: the values that a request compares fields with, checked and brought to their notation.

A JSON value must have the type of its field. Numbers compare by their mathematical value, whatever
their type and size, so a whole number is an operand of a float field too. A text in a URL stands
for the value that it spells (`value_of_text`).

Invariant: an operand has the notation of the field's column (`pylon.values.notations`), so a store
compares it as it is. Called by the parsers of filters, windows, positions and searches, and by
readers for look-ups.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Final

from pylon.manifest.model import Entity, Field, FieldType
from pylon.query.predicate import Column, Scalar
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
_PLAIN_TEXTS: Final = (FieldType.STRING, FieldType.ID, FieldType.RICHTEXT)
_NUMBER_TEXT: Final = re.compile(
    r"[\t-\r ]*([+-]?[0-9]{1,19}|[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[\t-\r ]*"
)


def field_of(entity: Entity, name: object) -> Field:
    """Return the field of that name, which may be `id`.

    No filter, order, group or figure may name a hidden field: its answer would tell the value.

    Raises:
        InvalidColumn: the entity has no such field, or it is hidden.
    """
    if name == "id":
        return ID
    field = entity.by_name.get(name) if isinstance(name, str) else None
    if field is None or field.server_only:
        raise unknown_column(entity, str(name))
    return field


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
