"""Value conversion: converts stored values to another field type, for `schema apply`.

Invariant: a conversion loses nothing. The text "7" becomes the number 7. The text "7.5" is not a
whole number, so it stops the change with an error that names the row. Called by the backends'
`rewrite`, and by `plan` for types that a backend stores in the same form.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import orjson

from pylon.errors import InvalidValue, NullNotAllowed, SchemaRefused
from pylon.manifest.model import Entity, Field, FieldType
from pylon.schema.database import Database
from pylon.schema.live import LiveColumn, LiveTable
from pylon.values import EntityCodec, SqlValue, expected, shown
from pylon.values.decimals import decimal_of_sort_text
from pylon.values.json_values import parse_json
from pylon.values.types import store_value_of

_MIDNIGHT: Final = "T00:00:00.000000Z"
_WORDS: Final = {"true": True, "false": False, "1": True, "0": False}

# Types that accept fewer values than other types that a backend stores in the same form.
_NARROWER: Final = (FieldType.DATETIME, FieldType.BOOL, FieldType.ENUM, FieldType.DATE)
# Types whose column has another text than the row.
_OWN_FORM: Final = ("decimal", "json")


def kinds_of(shape: str | None) -> dict[str, str]:
    """Return the field types in the stored shape of an entity's rows (`shape_of`), by lower-case
    names of fields. Empty for a table that Pylon has not written."""
    if shape is None:
        return {}
    return {str(name).lower(): str(kind).split("/")[0] for name, kind in orjson.loads(shape)}


def shape_of(entity: Entity) -> str:
    """Return the fields and types that determine the JSON of a row, as JSON.

    A field that leaves the manifest must leave the JSON too, though its column stays.
    """
    return orjson.dumps([
        [f.name, f.type.value + "/text" * f.is_json_text] for f in entity.fields
    ]).decode()


def changed_shape(entity: Entity) -> str:
    """Return a shape with the types of an entity's columns, for rows that lack their JSON yet."""
    kinds = [*[[field.name, field.type.value] for field in entity.fields], ["", "rewritten"]]
    return orjson.dumps(kinds).decode()


def renamed_shape(shape: str, was: str, name: str) -> str:
    """Return a shape in which a field has another name."""
    kinds = [
        [name if str(field).lower() == was.lower() else field, kind]
        for field, kind in orjson.loads(shape)
    ]
    return orjson.dumps([*kinds, ["", "renamed"]]).decode()


def has_other_form(
    database: Database, field: Field, table: LiveTable, column: LiveColumn
) -> bool:
    """Whether the stored texts of a column must be written anew for the field's type."""
    was = database.kinds_before(table.source).get(column.source.lower())
    return _differs_in_form(was, field.type) and (
        was is not None or database.has_values(table, column)
    )


def _differs_in_form(was: str | None, now: FieldType) -> bool:
    if was == now.value:
        return False
    if was in _OWN_FORM or now.value in _OWN_FORM:
        return True
    return was == FieldType.DATETIME.value and now is FieldType.DATE


def lossy_value(
    database: Database, entity: Entity, field: Field, table: LiveTable, column: LiveColumn
) -> str | None:
    """Return the error for the first value that a field's new type does not accept, or None.

    For a type that a backend stores in the same form as the old one, and that accepts fewer values.
    """
    was = database.kinds_before(table.source).get(column.source.lower())
    if field.type not in _NARROWER or was in (None, field.type.value):
        return None
    converter = Converter(entity, field, None, None)
    try:
        for row in database.values(table, column):
            converter.convert(*row)
    except SchemaRefused as refusal:
        return refusal.message
    return None


class Converter:
    """Converts the values of one field of one entity."""

    __slots__ = ("_codec", "_default", "_field", "_stored", "_was", "_where")

    def __init__(
        self, entity: Entity, field: Field, default: str | None, was: str | None
    ) -> None:
        """
        Args:
            default: replaces null, as text; None: null stays.
            was: the type that the stored values have; None: that of the column.

        Raises:
            SchemaRefused: the field does not accept the default.
        """
        self._codec = EntityCodec(entity)
        self._field = field
        self._where = f"{entity.name}.{field.name}"
        self._was = was
        self._stored = store_value_of(field)
        self._default: SqlValue = None
        if default is not None:
            try:
                self._default = self._checked(default)
            except (ValueError, InvalidValue):
                raise SchemaRefused(
                    f"--default {self._where}={default}: expected {expected(field)}"
                ) from None

    def convert(self, *args: Any) -> SqlValue:
        """Return the value to store in place of a value.

        Args:
            args: the row's id, and the stored value.

        Raises:
            SchemaRefused: the value does not convert, or is null and the field is required.
        """
        row_id, value = args
        if value is None:
            if self._default is None and not self._field.optional:
                raise SchemaRefused(f"{self._where}: row {row_id} has null there")
            return self._default
        if self._was == "bool" and value in (0, 1) and self._field.type is not FieldType.INT:
            value = bool(value)
        elif self._was == "decimal" and isinstance(value, str):
            value = decimal_of_sort_text(value)
        try:
            return self._checked(value)
        except (ValueError, OverflowError, InvalidValue, NullNotAllowed):
            raise SchemaRefused(
                f"{self._where}: row {row_id} has {shown(value)!r}, which does not convert to "
                f"{expected(self._field)}",
                hint="change that row first, or keep the field and add another one",
            ) from None

    def _checked(self, value: object) -> SqlValue:
        name = self._field.name
        given = _convert(self._field, value)
        stored = self._codec.patch({name: given}, "")[name]
        if self._stored is not None and stored is not None:
            return self._stored(stored)  # type: ignore[no-any-return]
        return int(stored) if isinstance(stored, bool) else stored


def _convert(field: Field, value: object) -> object:
    """Return a value as the field's type.

    Raises:
        ValueError, OverflowError: the value does not convert.
    """
    match field.type, value:
        case _, bytes():
            raise ValueError("binary")
        case FieldType.INT, str():
            return int(value)
        case FieldType.INT, bool():
            return int(value)
        case FieldType.FLOAT, str() | bool():
            return float(value)
        case FieldType.BOOL, str():
            if value.lower() not in _WORDS:
                raise ValueError(value)
            return _WORDS[value.lower()]
        case FieldType.BOOL, int() | float():
            if value not in (0, 1):
                raise ValueError(value)
            return bool(value)
        case FieldType.DATETIME, int():
            return f"{value}Z"
        case FieldType.DATE, str() if value.endswith(_MIDNIGHT):
            return value.removesuffix(_MIDNIGHT)
        case FieldType.DECIMAL, float():
            return f"{Decimal(repr(value)):f}"
        case FieldType.JSON, _:
            if field.is_json_text or not isinstance(value, str):
                return value
            return parse_json(value)
        case FieldType.ENUM, int():
            return str(value)
        case (FieldType.STRING | FieldType.RICHTEXT | FieldType.ID), bool():
            return "true" if value else "false"
        case (FieldType.STRING | FieldType.RICHTEXT | FieldType.ID), int() | float():
            return str(value)
        case _:
            return value
