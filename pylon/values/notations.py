"""Notations: makes values comparable that have one value in several texts.

The store keeps a comparable text in the column, so SQL compares texts. An evaluator in Python takes
the key of a row's value and compares it with the same literal. Invariant: keys order and equal as
the values do, and no function of `KEYS` raises. Called by `pylon.query` and `pylon.policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from pylon.manifest.model import Field, FieldType
from pylon.values.datetimes import instant_key
from pylon.values.decimals import decimal_key

Notation = Literal["", "instant", "decimal"]

KEYS: Final[dict[Notation, Callable[[Any], Any]]] = {"instant": instant_key, "decimal": decimal_key}
_NOTATIONS: Final[dict[FieldType, Notation]] = {
    FieldType.DATETIME: "instant", FieldType.DECIMAL: "decimal",
}


def notation_of(field: Field) -> Notation:
    """Return the notation in which the store compares the field's values."""
    return _NOTATIONS.get(field.type, "")
