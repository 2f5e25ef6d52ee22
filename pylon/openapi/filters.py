"""Schemas of filters, graph queries and aggregates (spec/http.md §3.3, §3.5, §3.6).

`<E>Where` has conditions only; `<E>Filter` has the directives too. An operand has the JSON type
that the field compares with. A schema cannot say the bounds of a filter as a whole (conditions,
depth): docs/limits.md has them, and the server refuses a larger filter with LIMIT_EXCEEDED.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.config import Config
from pylon.manifest.model import Entity, Field, FieldType
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import Schema, listed, nullable, obj, ref
from pylon.openapi.search import search_request
from pylon.query.aggregate import AggregateBody
from pylon.query.graph import GraphNodeBody
from pylon.values import INT_MAX, INT_MIN

_TEXT: Final[Schema] = {"type": "string"}
_OPERANDS: Final[dict[FieldType, Schema]] = {
    FieldType.STRING: _TEXT,
    FieldType.RICHTEXT: _TEXT,
    FieldType.ID: _TEXT,
    FieldType.DATETIME: _TEXT,
    FieldType.DATE: _TEXT,
    FieldType.ENUM: _TEXT,
    FieldType.DECIMAL: {"type": ["string", "integer"]},
    FieldType.JSON: {"type": ["string", "number", "boolean"]},
    FieldType.INT: {"type": "number", "minimum": INT_MIN, "maximum": INT_MAX},
    FieldType.FLOAT: {"type": "number"},
    FieldType.BOOL: {"enum": [True, False, 0, 1]},
}
_TEXTS: Final = (FieldType.STRING, FieldType.RICHTEXT, FieldType.ID, FieldType.DATETIME,
                 FieldType.DATE, FieldType.ENUM)
_NUMBERS: Final = (FieldType.INT, FieldType.FLOAT)
_TIMES: Final = (FieldType.DATETIME, FieldType.DATE)
_ORDER: Final[Schema] = {"enum": ["asc", "desc"]}
_BUCKETS: Final = ("hour", "day", "week", "month", "year")
_ROW_ID: Final = Field("id", FieldType.ID, optional=False, unique=True)
_OFFSET: Final = nullable({"type": "integer", "minimum": 0, "maximum": INT_MAX})


def columns_of(entity: Entity) -> tuple[Field, ...]:
    """Return the fields that a query may name, `id` among them."""
    return (_ROW_ID, *entity.public_fields)


def filter_schemas(entity: Entity, config: Config) -> dict[str, Schema]:
    """Return the schemas `<E>Where`, `<E>Filter`, `<E>Graph`, `<E>Aggregate`, `<E>Search`."""
    name = entity.name
    where = ref(f"{name}Where")
    limit = nullable({"type": "integer", "minimum": 0, "maximum": config.list_limit})
    nested = listed(where, maxItems=limits.FILTER_TERMS)
    conditions = {
        **{field.name: _condition(field) for field in columns_of(entity)},
        "$and": nested,
        "$or": nested,
        "$search": {"type": "string", "maxLength": limits.SEARCH_CHARS},
    }
    position = nullable(_position(entity))
    directives = {
        "$order": nullable(_order(entity)), "$limit": limit, "$offset": _OFFSET,
        "$after": position, "$before": position,
    }
    includes = {relation.name: ref(f"{relation.target}Graph") for relation in entity.relations}
    node = body_schema(GraphNodeBody, {
        "where": nullable(where), "order": nullable(_order(entity)),
        "limit": limit, "offset": _OFFSET, "after": position, "before": position,
        "include": nullable(obj(includes, ())),
    })
    elements = {
        f"^{field.name}\\.": _condition(field)
        for field in entity.public_fields if field.type is FieldType.JSON
    }
    paths: Schema = {"patternProperties": elements} if elements else {}
    out = {
        f"{name}Where": {**obj(conditions, ()), **paths},
        f"{name}Filter": {**obj({**conditions, **directives}, ()), **paths},
        f"{name}Graph": node,
        f"{name}Aggregate": _aggregate(entity),
    }
    if entity.search is not None:
        out[f"{name}Search"] = search_request(entity, entity.search)
    return out


def _order(entity: Entity) -> Schema:
    """Return the schema of an order: columns and their directions, the first one first."""
    return obj({
        field.name: _ORDER for field in columns_of(entity) if field.type is not FieldType.JSON
    }, ())


def _position(entity: Entity) -> Schema:
    """Return the schema of a position: a value for each field of the order, and an id."""
    values = {
        field.name: nullable(_OPERANDS[field.type]) for field in columns_of(entity)
        if field.name != "id"
    }
    return obj({"id": _OPERANDS[_ROW_ID.type], **values}, ("id",))


def _condition(field: Field) -> Schema:
    """Return the schema of a condition: a value that the field equals, or operators."""
    operand = {"enum": list(field.values)} if field.values else _OPERANDS[field.type]
    or_null = nullable(operand)
    members = listed(or_null, maxItems=limits.FILTER_VALUES)
    bound = {"type": "number"} if field.type in _NUMBERS else operand  # of any size
    operators: dict[str, Schema] = {
        "$not": or_null, "$ne": or_null,
        "$gt": bound, "$gte": bound, "$lt": bound, "$lte": bound,
        "$in": members, "$nin": members,
        "$exists": {"type": "boolean"},
    }
    if field.type is FieldType.JSON:
        operators["$contains"] = operand
    if field.type in _TEXTS:
        text = {"type": "string", "maxLength": limits.LIKE_CHARS}
        operators |= {"$like": text, "$startsWith": text}
    return {"anyOf": [or_null, {**obj(operators, ()), "minProperties": 1}]}


def _aggregate(entity: Entity) -> Schema:
    columns = [field.name for field in columns_of(entity)]
    ordered = [field.name for field in columns_of(entity) if field.type is not FieldType.JSON]
    times = [field.name for field in entity.public_fields if field.type in _TIMES]
    summable = [
        field.name for field in entity.public_fields
        if field.type in (*_NUMBERS, FieldType.BOOL, FieldType.DECIMAL)
    ]
    groups: list[Schema] = [{"enum": ordered}]
    if times:
        groups.append(obj({"field": {"enum": times}, "bucket": {"enum": _BUCKETS}}, ("field",)))
    ordered_field = nullable(listed({"enum": ordered}, maxItems=limits.AGGREGATE_TERMS))
    any_field = nullable(listed({"enum": columns}, maxItems=limits.AGGREGATE_TERMS))
    numbers = nullable(listed({"enum": summable} if summable else {"not": {}}, uniqueItems=True))
    return {
        **body_schema(AggregateBody, {
            "count": nullable({"enum": ["*", *columns]}),
            "sum": numbers, "avg": numbers,
            "min": ordered_field, "max": ordered_field, "countDistinct": any_field,
            "groupBy": nullable(listed({"anyOf": groups}, maxItems=limits.AGGREGATE_TERMS)),
            "where": nullable(ref(f"{entity.name}Where")),
        }),
        "minProperties": 1,
    }
