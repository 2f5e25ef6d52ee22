"""Schemas of what queries are asked with: the filter object of each entity (spec/http.md §3.3).

Operands are described by the JSON type that the field compares with; bounds that depend on the
whole filter (conditions, depth) are in docs/limits.md and answered with LIMIT_EXCEEDED.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.config import Config
from pylon.manifest.model import Entity, Field, FieldType
from pylon.openapi.parts import Schema, listed, nullable, obj, ref
from pylon.values import INT_MAX, INT_MIN

_TEXT: Final[Schema] = {"type": "string"}
_OPERANDS: Final[dict[FieldType, Schema]] = {
    FieldType.STRING: _TEXT,
    FieldType.RICHTEXT: _TEXT,
    FieldType.ID: _TEXT,
    FieldType.DATETIME: _TEXT,
    FieldType.INT: {"type": "number", "minimum": INT_MIN, "maximum": INT_MAX},
    FieldType.FLOAT: {"type": "number"},
    FieldType.BOOL: {"enum": [True, False, 0, 1]},
}
_TEXTS: Final = (FieldType.STRING, FieldType.RICHTEXT, FieldType.ID, FieldType.DATETIME)
_ORDER: Final[Schema] = {"enum": ["asc", "desc"]}
_ROW_ID: Final = Field("id", FieldType.ID, optional=False, unique=True)


def columns_of(entity: Entity) -> tuple[Field, ...]:
    """The fields that a query may name, `id` among them."""
    return (_ROW_ID, *entity.fields)


def filter_schemas(entity: Entity, config: Config) -> dict[str, Schema]:
    """The schema `<E>Filter`."""
    name = f"{entity.name}Filter"
    nested = listed(ref(name))
    return {
        name: obj(
            {
                **{field.name: _condition(field) for field in columns_of(entity)},
                "$and": nested,
                "$or": nested,
                "$search": nullable({"type": "string"}),
                "$order": nullable(order_schema(entity)),
                "$limit": nullable(
                    {"type": "integer", "minimum": 0, "maximum": config.list_limit}
                ),
                "$offset": nullable({"type": "integer", "minimum": 0, "maximum": INT_MAX}),
            },
            (),
        )
    }


def order_schema(entity: Entity) -> Schema:
    """Columns and their directions, in the order given."""
    return obj({field.name: _ORDER for field in columns_of(entity)}, ())


def _condition(field: Field) -> Schema:
    """A value that the field equals, or operators on it."""
    operand = _OPERANDS[field.type]
    or_null = nullable(operand)
    operators: dict[str, Schema] = {
        "$not": or_null, "$ne": or_null,
        "$gt": operand, "$gte": operand, "$lt": operand, "$lte": operand,
        "$in": listed(or_null), "$nin": listed(or_null),
        "$exists": {"type": "boolean"},
    }
    if field.type in _TEXTS:
        operators["$like"] = {"type": "string", "maxLength": limits.LIKE_CHARS}
        operators["$startsWith"] = {"type": "string", "maxLength": limits.LIKE_CHARS}
    return {"anyOf": [or_null, {**obj(operators, ()), "minProperties": 1}]}
