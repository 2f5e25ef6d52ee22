"""Errors of values: they name the field, the value and what is allowed.

Called by the codec, the parsers of queries and the API.
"""

from __future__ import annotations

import json
from itertools import islice

from pylon.errors import SHOWN_CHARS, InvalidColumn, InvalidValue
from pylon.manifest.model import Entity, Field
from pylon.values.types import INT_MAX, INT_MIN, expected


def unknown_column(entity: Entity, name: str) -> InvalidColumn:
    """Return the error for a field that `entity` does not have, worded by spec/http.md §2.8.

    A hidden field is unknown to whoever may not name it.
    """
    known = ", ".join(["id", *(field.name for field in entity.public_fields)])
    return InvalidColumn(
        f'Unknown column "{shorten(name)}" -- valid columns: {known}',
        entity=entity.name, field=shorten(name),
    )


def invalid_value(entity: Entity, field: Field, value: object) -> InvalidValue:
    """Return the error for a value that is not of the field's type."""
    return InvalidValue(
        f"{entity.name}.{field.name} must be {expected(field)}",
        entity=entity.name, field=field.name, value=shown(value), expected=expected(field),
    )


def shown(value: object) -> object:
    """Return `value` for an error: scalars unchanged, other values as shortened text.

    An integer beyond 64 bits (`decode_query`) becomes text too, because orjson cannot encode it.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value if INT_MIN <= value <= INT_MAX else shorten(str(value))
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return shorten(value)
    pieces = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).iterencode(value)
    return shorten("".join(islice(pieces, SHOWN_CHARS + 1)))


def shorten(text: str) -> str:
    """Return the text, cut off behind `SHOWN_CHARS` characters."""
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
