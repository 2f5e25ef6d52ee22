"""A stored value as another type of field holds it, for `schema apply`.

Only what loses nothing is converted: the text "7" is the number 7, the text "7.5" is not a
whole number and stops the change with the row named. Used by `rewrite`, and by `plan` for
types that SQLite stores alike.
"""

from __future__ import annotations

from typing import Any, Final

import apsw
import orjson

from pylon.errors import InvalidValue, NullNotAllowed, SchemaRefused
from pylon.manifest.model import Entity, Field, FieldType
from pylon.storage.sqlite import meta
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema.history import has_table
from pylon.storage.sqlite.schema.live import LiveColumn, LiveTable
from pylon.values import EntityCodec, SqlValue, expected, shown

_WORDS: Final = {"true": True, "false": False, "1": True, "0": False}

_NARROWER: Final = (FieldType.DATETIME, FieldType.BOOL)  # than others that SQLite stores alike


def kinds_before(conn: apsw.Connection, entity: str) -> dict[str, str]:
    """The field types that the rows of `entity` were last brought up with, by lower-case name;
    empty where nobody knows."""
    shape = meta.get(conn, f"shape:{entity}") if has_table(conn, "_pylon_meta") else None
    if shape is None:
        return {}
    return {str(name).lower(): str(kind) for name, kind in orjson.loads(shape)}


def lossy_value(
    conn: apsw.Connection, entity: Entity, field: Field, table: LiveTable, column: LiveColumn
) -> str | None:
    """What is in the way when a field gets a type that is stored as the old one was, but that
    takes fewer values; None if nothing is."""
    was = kinds_before(conn, table.source).get(column.source.lower())
    if field.type not in _NARROWER or was in (None, field.type.value):
        return None
    converter = Converter(entity, field, None, was_bool=False)
    name = quote(column.source)
    try:
        for row in conn.execute(
            f"SELECT id, {name} FROM {quote(table.source)} WHERE {name} IS NOT NULL"
        ):
            converter.stored(*row)
    except SchemaRefused as refusal:
        return refusal.message
    return None


class Converter:
    """Values for one field of one entity."""

    __slots__ = ("_codec", "_default", "_field", "_was_bool", "_where")

    def __init__(self, entity: Entity, field: Field, default: str | None, was_bool: bool) -> None:
        """
        Args:
            default: what null becomes, as text; None where null stays.
            was_bool: stored 0 and 1 are false and true.

        Raises:
            SchemaRefused: the default is no value of the field.
        """
        self._codec = EntityCodec(entity)
        self._field = field
        self._where = f"{entity.name}.{field.name}"
        self._was_bool = was_bool
        self._default: SqlValue = None
        if default is not None:
            try:
                self._default = self._checked(default)
            except (ValueError, InvalidValue):
                raise SchemaRefused(
                    f"--default {self._where}={default}: expected {expected(field)}"
                ) from None

    def stored(self, *of: Any) -> SqlValue:
        """What is stored in place of a value; a function for SQLite.

        Args:
            of: the row's id, and the value.

        Raises:
            SchemaRefused: the value cannot be converted, or is null where it may not be.
        """
        row_id, value = of
        if value is None:
            if self._default is None and not self._field.optional:
                raise SchemaRefused(f"{self._where}: row {row_id} has null there")
            return self._default
        if self._was_bool and value in (0, 1) and self._field.type is not FieldType.INT:
            value = bool(value)
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
        stored = self._codec.patch({name: _as(self._field.type, value)}, "")[name]
        return int(stored) if isinstance(stored, bool) else stored


def _as(kind: FieldType, value: object) -> object:
    """
    Raises:
        ValueError, OverflowError: it is not one.
    """
    match kind, value:
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
        case (FieldType.STRING | FieldType.RICHTEXT | FieldType.ID), bool():
            return "true" if value else "false"
        case (FieldType.STRING | FieldType.RICHTEXT | FieldType.ID), int() | float():
            return str(value)
        case _:
            return value
