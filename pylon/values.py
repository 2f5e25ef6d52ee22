"""Values: checks and encodes rows, so that each stored value has its field's type.

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
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import islice
from operator import itemgetter
from typing import Annotated, Any, Final

import msgspec
import orjson

from pylon import limits
from pylon.errors import (
    SHOWN_CHARS,
    InvalidColumn,
    InvalidData,
    InvalidId,
    InvalidJson,
    InvalidValue,
    LimitExceeded,
    MissingField,
    NullNotAllowed,
)
from pylon.ids import is_row_id
from pylon.json_text import check_bounds
from pylon.manifest.model import Entity, Field, FieldType

SqlValue = str | int | float | None

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
_MISSING: Final = object()

_DATETIME = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})"
    r"(?:[Tt ]([01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9})?)?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?)?",
    re.ASCII,
)
_EPOCH = re.compile(r"-?\d{1,15}Z", re.ASCII)
_LONG_INTEGER: Final = re.compile(rb"[0-9]{19}")


class EncodedRow(msgspec.Struct, frozen=True, gc=False):
    """A row in three forms. `values` has the fields in manifest order, without `id`.

    SQL binds booleans as 0 or 1.
    """

    values: Sequence[SqlValue]
    row_json: bytes
    row: dict[str, Any]


def decode_body(raw: bytes, nodes: int = limits.JSON_NODES) -> Any:
    """Decode a request body.

    Args:
        nodes: the largest number of values.

    Raises:
        InvalidJson: the body is not JSON in UTF-8 (spec/http.md §3.0), or has more levels than
            `limits.JSON_DEPTH`.
        LimitExceeded: the body has more than `nodes` values.
    """
    check_bounds(raw, nodes)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidJson("Invalid request body") from None


def decode_query(raw: bytes) -> Any:
    """Decode the body of a query: as `decode_body`, but keep integers beyond 64 bits exact.

    orjson turns such an integer into a float, which may equal a row's number although the integer
    does not.

    Raises:
        InvalidJson, LimitExceeded: as `decode_body`.
    """
    body = decode_body(raw)
    return body if _LONG_INTEGER.search(raw) is None else msgspec.json.decode(raw)


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


def unknown_column(entity: Entity, name: str) -> InvalidColumn:
    """Return the error for a field that `entity` does not have, worded by spec/http.md §2.8."""
    return InvalidColumn(
        f'Unknown column "{_shorten(name)}" -- valid columns: {", ".join(entity.columns)}',
        entity=entity.name, field=_shorten(name),
    )


def is_datetime(text: str) -> bool:
    """Whether `text` is an ISO 8601 date or date-time, or epoch seconds followed by Z."""
    match = _DATETIME.fullmatch(text)
    if match is None:
        return _EPOCH.fullmatch(text) is not None
    try:
        date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return False
    return True


# Each check returns the value to store, or _MISSING if the value is not of the type.
Check = Callable[[Any], Any]


def _string(value: Any) -> Any:
    return value if isinstance(value, str) and "\0" not in value else _MISSING


def _int(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _MISSING
    if isinstance(value, float):
        # The float -2**63 may be a smaller integer that a JSON decoder has rounded.
        if not value.is_integer() or value == INT_MIN:  # `is_integer` is False for inf and NaN
            return _MISSING
        value = int(value)
    return value if INT_MIN <= value <= INT_MAX else _MISSING


def _float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _MISSING
    try:
        number = float(value)
    except OverflowError:
        return _MISSING
    return number if math.isfinite(number) else _MISSING


def _bool(value: Any) -> Any:
    return value if isinstance(value, bool) else _MISSING


def _datetime(value: Any) -> Any:
    return value if isinstance(value, str) and is_datetime(value) else _MISSING


_CHECKS: Final[dict[FieldType, tuple[Check, str]]] = {
    FieldType.STRING: (_string, "a string without NUL characters"),
    FieldType.RICHTEXT: (_string, "a string without NUL characters"),
    FieldType.ID: (_string, "a row id (a string without NUL characters)"),
    FieldType.INT: (_int, "a whole number of 64 bits"),
    FieldType.FLOAT: (_float, "a finite number"),
    FieldType.BOOL: (_bool, "true or false"),
    FieldType.DATETIME: (_datetime, "an ISO 8601 date or date-time, or epoch seconds and Z"),
}


# The msgspec type of each field type. It may refuse values that the checks accept (3.0 as a whole
# number). It accepts no value that they refuse, except NUL characters and malformed dates.
_SHAPES: Final[dict[FieldType, Any]] = {
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
_ESCAPED_NUL: Final = b"\\u0000"


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
            members.append((member, _SHAPES[field.type] | None, None))
        else:
            members.append((member, _SHAPES[field.type]))
    return msgspec.defstruct(
        "Record", members, rename=names, forbid_unknown_fields=True, kw_only=True, gc=False
    )


def _values_of(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[SqlValue]]:
    """Return a function that returns the values of `names` in a row, in this order."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda row: [row[name] for name in names]


class EntityCodec:
    """Validates, merges and encodes the rows of one entity. Immutable."""

    __slots__ = ("_bools", "_checks", "_datetimes", "_max_bytes", "_names", "_record",
                 "_required", "_values", "entity")

    def __init__(self, entity: Entity, max_bytes: int = sys.maxsize) -> None:
        """
        Args:
            max_bytes: the largest JSON of a new row. The writer checks rows that change.
        """
        self.entity = entity
        self._max_bytes = max_bytes
        self._record = _record_type(entity)
        self._values = _values_of([f.name for f in entity.fields])
        self._datetimes = tuple(f.name for f in entity.fields if f.type is FieldType.DATETIME)
        self._names = tuple(f.name for f in entity.fields)
        self._bools = frozenset(f.name for f in entity.fields if f.type is FieldType.BOOL)
        self._required = tuple(f.name for f in entity.fields if not f.optional)
        self._checks = {f.name: (_CHECKS[f.type][0], f) for f in entity.fields}

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
                f"(use generateId() from @pylonsync/sync). Got: {_shorten(shown)}"
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
        for name in self._datetimes:
            value = row[name]
            if value is not None and not is_datetime(value):
                return self._insert_checked(body, row_id)
        row_json = orjson.dumps(row)
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
                f"the id of a row cannot be changed (row {_shorten(row_id)})",
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
        return after, encode_row(after)

    def row_from_sql(
        self, values: Sequence[Any], columns: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return a row from SQL values of `columns`, by default those of the entity in order.

        Integers of boolean fields become booleans, and binary becomes base64 text. Other values
        that no field accepts (in another server's table) stay as they are.
        """
        names = self.entity.columns if columns is None else columns
        row: dict[str, Any] = {}
        for name, value in zip(names, values, strict=True):
            if isinstance(value, bytes):
                value = base64.b64encode(value).decode()
            elif isinstance(value, int) and name in self._bools:
                value = bool(value)
            row[name] = value
        return row

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
            if stored is _MISSING:
                raise invalid_value(self.entity, field, value)
            out[name] = stored
        return out

    def _expected(self, name: str) -> str:
        return expected(self._checks[name][1])


def expected(field: Field) -> str:
    """Return the description of the values that `field` accepts."""
    return _CHECKS[field.type][1]


def fits(field: Field, value: object) -> bool:
    """Whether `value`, which is not null, is of the field's type."""
    return _CHECKS[field.type][0](value) is not _MISSING


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
        return value if INT_MIN <= value <= INT_MAX else _shorten(str(value))
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return _shorten(value)
    pieces = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).iterencode(value)
    return _shorten("".join(islice(pieces, SHOWN_CHARS + 1)))


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
