"""Codec: checks and encodes rows, so that each stored value has its field's type.

A worker turns a request body into an `EncodedRow`: the values that SQL binds, and the row's JSON
text. The store keeps that text beside the columns and answers reads with it. The writer uses the
same codec to merge a patch into a row.

Invariants: a row's JSON has sorted keys and every column with `id`, nulls present, and booleans as
true and false. The same row always gives the same bytes. SQLite and PostgreSQL can store every
accepted value. Called by the API (bodies), the writer (merge) and the schema (rows of another
server's table).
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec
import orjson

from pylon.errors import (
    InvalidData,
    InvalidId,
    LimitExceeded,
    MissingField,
    NullNotAllowed,
)
from pylon.ids import is_row_id
from pylon.manifest.model import Entity, FieldType
from pylon.values.errors import invalid_value, shorten, unknown_column
from pylon.values.types import (
    MISSING,
    check_of,
    expected,
    needs_check,
    row_value_of,
    shape_of,
    store_value_of,
)

SqlValue = str | int | float | None

Convert = Callable[[Any], Any]
_ESCAPED_NUL: Final = b"\\u0000"


class EncodedRow(msgspec.Struct, frozen=True, gc=False):
    """A row in three forms. `values` has the fields in manifest order, without `id`.

    SQL binds booleans as 0 or 1.
    """

    values: Sequence[SqlValue]
    row_json: bytes
    row: dict[str, Any]


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Return a row's JSON text, with sorted keys."""
    return orjson.dumps(row, option=orjson.OPT_SORT_KEYS)


def check_row_size(
    entity: str, size_bytes: int, limit_bytes: int, before_bytes: int = 0
) -> None:
    """Raise if a row is larger than the limit and not smaller than before.

    Raises:
        LimitExceeded: the error names entity, size, limit and setting.
    """
    if size_bytes > limit_bytes and size_bytes >= before_bytes:
        raise LimitExceeded(
            f"The {entity} row would have {size_bytes} bytes of JSON; "
            f"a row has {limit_bytes} at most (PYLON_ROW_MAX_BYTES)",
            hint="Store large texts and files elsewhere, or split the row; "
            "a larger row that is already there may be made smaller",
            entity=entity, size_bytes=size_bytes, limit_bytes=limit_bytes,
        )


def _record_type(entity: Entity) -> Any:
    """Return a msgspec type with the entity's columns, in the order of a row's JSON."""
    members: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    names: dict[str, str] = {}
    for position, column in enumerate(sorted(entity.columns)):
        field = entity.by_name.get(column)
        member = "id" if field is None else f"f{position}"  # a column may be a Python keyword
        names[member] = column
        if field is None:
            members.append((member, str | None, None))
        elif field.optional:
            members.append((member, shape_of(field) | None, None))
        else:
            members.append((member, shape_of(field)))
    return msgspec.defstruct(
        "Record", members, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False
    )


def _values_of(
    names: Sequence[str], converters: Mapping[str, Convert]
) -> Callable[[Mapping[str, Any]], Sequence[SqlValue]]:
    """Return a function that returns the column values of `names` in a row, in this order."""
    if converters:
        pairs = tuple([(name, converters.get(name)) for name in names])
        return lambda row: [
            row[name] if convert is None or row[name] is None else convert(row[name])
            for name, convert in pairs
        ]
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: [row[name] for name in names]


class EntityCodec:
    """Validates, merges and encodes the rows of one entity. Immutable."""

    __slots__ = ("_checks", "_converters", "_has_json", "_max_bytes", "_names", "_reconverters",
                 "_record", "_required", "_second_checks", "_values", "entity")

    def __init__(self, entity: Entity, max_bytes: int = sys.maxsize) -> None:
        """
        Args:
            max_bytes: the largest JSON of a new row. The writer checks rows that change.
        """
        self.entity = entity
        self._max_bytes = max_bytes
        self._record = _record_type(entity)
        self._converters = {
            f.name: convert for f in entity.fields if (convert := store_value_of(f)) is not None
        }
        self._reconverters = {
            f.name: convert for f in entity.fields if (convert := row_value_of(f)) is not None
        }
        self._values = _values_of([f.name for f in entity.fields], self._converters)
        self._second_checks = tuple((f.name, check_of(f)) for f in entity.fields if needs_check(f))
        self._has_json = any(f.type is FieldType.JSON for f in entity.fields)
        self._names = tuple(f.name for f in entity.fields)
        self._required = tuple(f.name for f in entity.fields if not f.optional)
        self._checks = {f.name: (check_of(f), f) for f in entity.fields}

    def client_id(self, body: object) -> str | None:
        """Return the row id that the client chose (`id` in the body), or None.

        Raises:
            InvalidId: the id is not 40 lower-case hex characters (spec/realtime.md §1.5).
        """
        if not isinstance(body, dict) or body.get("id") is None:
            return None
        given = body["id"]
        if not is_row_id(given):
            shown = orjson.dumps(given).decode() if not isinstance(given, str) else f'"{given}"'
            raise InvalidId(
                "client-provided `id` must be a 40-char lowercase hex string "
                f"(use generateId() from @pylonsync/sync). Got: {shorten(shown)}"
            )
        return str(given)

    def insert(self, body: object, row_id: str) -> EncodedRow:
        """Return the new row of `body` with the id `row_id`; an `id` in the body is ignored.

        Raises:
            InvalidData, InvalidColumn, InvalidValue, NullNotAllowed, MissingField: of a field.
            LimitExceeded: the row is larger than `max_bytes`.
        """
        try:
            record = msgspec.convert(body, self._record)
        except msgspec.ValidationError:
            return self._insert_checked(body, row_id)
        # PERF: valid bodies, nearly all, skip the checks of single fields.
        record.id = row_id
        row: dict[str, Any] = msgspec.to_builtins(record)
        for name, check in self._second_checks:
            value = row[name]
            if value is not None:
                stored = check(value)
                if stored is MISSING:
                    return self._insert_checked(body, row_id)
                row[name] = stored
        row_json = encode_row(row) if self._has_json else orjson.dumps(row)
        if _ESCAPED_NUL in row_json:
            return self._insert_checked(body, row_id)
        if len(row_json) > self._max_bytes:
            check_row_size(self.entity.name, len(row_json), self._max_bytes)
        return EncodedRow(self._values(row), row_json, row)

    def _insert_checked(self, body: object, row_id: str) -> EncodedRow:
        """Do the same field by field: it accepts more values, and names a refused field."""
        if not isinstance(body, dict):
            raise InvalidData("Insert data must be a JSON object", entity=self.entity.name)
        given = self._checked(body)
        for name in self._required:
            if name not in given:
                raise MissingField(
                    f"{self.entity.name}.{name} is required",
                    entity=self.entity.name, field=name, expected=self._expected(name),
                )
        return self._encoded(row_id, given)

    def patch(self, body: object, row_id: str) -> dict[str, Any]:
        """Return the fields to change, checked, without an `id` equal to `row_id`.

        Raises:
            InvalidData, InvalidColumn, InvalidValue, NullNotAllowed
            InvalidId: the body names another id.
        """
        if not isinstance(body, dict):
            raise InvalidData("Update data must be a JSON object", entity=self.entity.name)
        if "id" in body and body["id"] != row_id:
            raise InvalidId(
                f"the id of a row cannot be changed (row {shorten(row_id)})",
                entity=self.entity.name, field="id",
            )
        return self._checked(body)

    def merge(
        self, before: Mapping[str, Any], patch: Mapping[str, Any]
    ) -> tuple[dict[str, Any], bytes]:
        """Return `before` with the checked fields of `patch`, and its JSON."""
        after = {**before, **patch}
        if len(after) != len(self._names) + 1:  # `before` was not written by this codec
            after = {name: after.get(name) for name in self.entity.columns}
        return after, orjson.dumps(after, option=orjson.OPT_SORT_KEYS)

    def row_from_sql(
        self, values: Sequence[Any], columns: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return a row from SQL values of `columns`, by default those of the entity in order.

        Integers of boolean fields become booleans, sort texts decimals, JSON texts values, and
        binary becomes base64 text. Other values that no field accepts (in another server's table)
        stay as they are.
        """
        names = self.entity.columns if columns is None else columns
        reconverters = self._reconverters
        row: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            if isinstance(value, bytes):
                value = base64.b64encode(value).decode()
            elif value is not None and name in reconverters:
                value = reconverters[name](value)
            row[name] = value
        return row

    def column_values(
        self, row: Mapping[str, Any], fields: Sequence[str]
    ) -> list[SqlValue]:
        """Return the values that the columns of `fields` have for a row."""
        if not self._converters:
            return [row[name] for name in fields]
        out: list[SqlValue] = []
        for name in fields:
            value, convert = row[name], self._converters.get(name)
            out.append(value if convert is None or value is None else convert(value))
        return out

    def encode(self, row: Mapping[str, Any]) -> bytes:
        """Return the row's JSON text: sorted keys, every column present."""
        return encode_row({name: row.get(name) for name in self.entity.columns})

    def _encoded(self, row_id: str, given: Mapping[str, Any]) -> EncodedRow:
        row: dict[str, Any] = {"id": row_id}
        for name in self._names:
            row[name] = given.get(name)
        row_json = encode_row(row)
        check_row_size(self.entity.name, len(row_json), self._max_bytes)
        return EncodedRow(self._values(row), row_json, row)

    def _checked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in body.items():
            if name == "id":
                continue
            known = self._checks.get(name)
            if known is None:
                raise unknown_column(self.entity, name)
            check, field = known
            if value is None:
                if not field.optional:
                    raise NullNotAllowed(
                        f"{self.entity.name}.{name} may not be null",
                        entity=self.entity.name, field=name, value=None,
                        expected=self._expected(name),
                    )
                out[name] = None
                continue
            stored = check(value)
            if stored is MISSING:
                raise invalid_value(self.entity, field, value)
            out[name] = stored
        return out

    def _expected(self, name: str) -> str:
        return expected(self._checks[name][1])
