"""Schemas of values and rows: what `pylon.values` accepts, and what the store returns.

Each entity has three schemas: `<E>`, a row as read, with every column; `<E>Insert` and
`<E>Patch`, rows as written. The schema of a written value is exact. The schema of a read value
has the JSON type only, because a database that another server filled may hold other texts.
"""

from __future__ import annotations

import sys
from typing import Final

from pylon import limits
from pylon.manifest.model import Entity, Field, FieldType
from pylon.openapi.parts import Schema, nullable, obj
from pylon.values import INT_MAX, INT_MIN
from pylon.values.decimals import DIGITS

_DAY: Final = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_TIME: Final = (
    r"(?:[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]{1,9})?)?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])?)?"
)
# There is no year 0.
DATETIME_PATTERN: Final = rf"^(?:(?!0000){_DAY}{_TIME}|-?[0-9]{{1,15}}Z)$"
DATE_PATTERN: Final = rf"^(?!0000){_DAY}$"
DECIMAL_PATTERN: Final = rf"^[+-]?0*[0-9]{{1,{DIGITS}}}(?:\.[0-9]{{1,{DIGITS}}})?$"
TEXT_PATTERN: Final = r"^[^\u0000]*$"

_INTEGER: Final[Schema] = {
    "type": "integer", "format": "int64", "minimum": INT_MIN, "maximum": INT_MAX,
}
_READ: Final[dict[FieldType, Schema]] = {
    FieldType.STRING: {"type": "string"},
    FieldType.RICHTEXT: {"type": "string"},
    FieldType.ID: {"type": "string"},
    FieldType.INT: _INTEGER,
    FieldType.FLOAT: {"type": "number", "format": "double"},
    FieldType.BOOL: {"type": "boolean"},
    FieldType.DATETIME: {"type": "string"},
    FieldType.DATE: {"type": "string"},
    FieldType.DECIMAL: {"type": "string"},
    FieldType.ENUM: {"type": "string"},
    FieldType.JSON: {},
}
_WRITTEN: Final[dict[FieldType, Schema]] = {
    **_READ,
    FieldType.STRING: {"type": "string", "pattern": TEXT_PATTERN},
    FieldType.RICHTEXT: {"type": "string", "pattern": TEXT_PATTERN},
    FieldType.ID: {"type": "string", "pattern": TEXT_PATTERN},
    FieldType.FLOAT: {
        "type": "number", "format": "double",
        "minimum": -sys.float_info.max, "maximum": sys.float_info.max,
    },
    FieldType.DATETIME: {
        "type": "string", "pattern": DATETIME_PATTERN,
        "description": "ISO 8601 date or date-time of the years 1 to 9999 (UTC), or epoch seconds "
        "and Z; answered as 2026-03-29T00:30:00.000000Z",
    },
    FieldType.DATE: {"type": "string", "format": "date", "pattern": DATE_PATTERN},
    FieldType.DECIMAL: {
        "anyOf": [
            {"type": "string", "pattern": DECIMAL_PATTERN},
            {"type": "integer", "minimum": INT_MIN, "maximum": INT_MAX},
        ],
        "description": "An exact number; answered as text without zeros at its end",
    },
    FieldType.JSON: {
        "description": f"Any JSON value of at most {limits.JSON_VALUE_DEPTH} levels and "
        f"{limits.JSON_VALUE_BYTES} bytes",
    },
}
CLIENT_ID: Final[Schema] = {
    "type": "string", "pattern": "^[0-9a-f]{40}$",
    "description": "A row id that the client made; the server makes one if it is missing",
}

# `allOf`, because a field may have a pattern of its own beside that of its type.
_FORMATS: Final[dict[str, Schema]] = {
    "email": {"format": "email"}, "url": {"format": "uri"},
    "file": {"allOf": [{"pattern": r"^file_[A-Za-z0-9_.-]{1,200}$"}]},
}


def read(field: Field) -> Schema:
    """Return the schema of a value of the field as it is read."""
    if field.is_json_text:
        return _described(field, {"type": "string"})
    return _described(field, _READ[field.type])


def written(field: Field) -> Schema:
    """Return the schema of a value of the field as it may be written."""
    if field.type is FieldType.ENUM:
        return _described(field, {"enum": list(field.values)})
    if field.is_json_text:
        return _described(field, {"type": "string", "contentMediaType": "application/json"})
    return _described(field, {**_WRITTEN[field.type], **_constrained(field)})


def _constrained(field: Field) -> Schema:
    """Return the keywords of the field's constraints."""
    constraints = field.constraints
    if constraints is None:
        return {}
    out: Schema = {}
    is_number = field.type in (FieldType.INT, FieldType.FLOAT)
    for key, value in (("minimum", constraints.minimum), ("maximum", constraints.maximum)):
        if value is not None and is_number:
            out[key] = value
    if constraints.min_length is not None:
        out["minLength"] = constraints.min_length
    if constraints.max_length is not None:
        out["maxLength"] = constraints.max_length
    if constraints.format is not None:
        out |= _FORMATS[constraints.format]
    bounds = [
        f"{word} {value}" for word, value in (
            ("at least", constraints.minimum), ("at most", constraints.maximum)
        ) if value is not None and not is_number
    ]
    if constraints.pattern is not None:
        out["allOf"] = [*out.get("allOf", ()), {"pattern": constraints.pattern}]
    if bounds:
        out["description"] = ", ".join(bounds)
    return out


def entity_schemas(entity: Entity) -> dict[str, Schema]:
    """Return the schemas of the rows of one entity, by name."""
    writes = {field.name: written(field) for field in entity.fields}
    patch = obj({"id": {"type": "string", "description": "The row's own id"}, **writes}, ())
    if entity.fields:
        patch["anyOf"] = [{"required": [field.name]} for field in entity.fields]
    return {
        entity.name: obj(
            {"id": {"type": "string"}, **{f.name: read(f) for f in entity.public_fields}}
        ),
        f"{entity.name}Insert": obj(
            {"id": nullable(CLIENT_ID), **writes},
            [f.name for f in entity.fields if not f.optional and f.insert_default is None],
        ),
        f"{entity.name}Patch": patch,
    }


def _described(field: Field, schema: Schema) -> Schema:
    out = dict(schema)
    notes = [out.pop("description", None)]
    if field.type is FieldType.ID:
        notes.append(f"The id of a row of {field.target}")
    if field.unique:
        notes.append("Unique")
    if field.insert_default is not None:
        notes.append("The server sets it if it is missing")
    if field.is_set_by_server:
        notes.append("Only admins may send it")
    text = ". ".join(note for note in notes if note)
    if field.optional:
        out = nullable(out)
    return {**out, "description": text} if text else out
