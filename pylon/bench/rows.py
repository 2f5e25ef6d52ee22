"""Fixture: a built-in manifest, and generated rows for any manifest.

Called by `pylon.bench.run`, `pylon.bench.writes` and `workers.ws.bench`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import orjson

from pylon.manifest.model import Entity, Field, FieldType, Manifest, Relation
from pylon.manifest_loader import parse_manifest

_GROUPS: Final = 100  # distinct values of a field that is not unique: 10 rows of 1,000 match


def fixture() -> Manifest:
    """Return a manifest with three entities.

    They have three fields, four fields, and four fields of which one is unique and one indexed.
    """

    def field(name: str, kind: str, unique: bool = False) -> dict[str, Any]:
        return {"name": name, "type": kind, "optional": False, "unique": unique}

    document = {
        "manifest_version": 1, "name": "bench", "version": "1", "routes": [],
        "entities": [
            {
                "name": "Three", "indexes": [], "crdt": False,
                "fields": [field("title", "string"), field("count", "int"), field("done", "bool")],
            },
            {
                "name": "Four", "indexes": [], "crdt": False,
                "relations": [{"name": "keeper", "target": "Keyed", "field": "owner"}],
                "fields": [
                    field("title", "string"), field("owner", "string"), field("score", "float"),
                    field("done", "bool"),
                ],
            },
            {
                "name": "Keyed", "crdt": False,
                "indexes": [{"name": "by_owner", "fields": ["owner"], "unique": False}],
                "fields": [
                    field("email", "string", unique=True), field("score", "float"),
                    field("owner", "string"), field("at", "datetime"),
                ],
            },
        ],
        "policies": [
            {"name": "three", "entity": "Three", "allow": "true"},
            {"name": "four", "entity": "Four", "allow": "true"},
            {"name": "keyed", "entity": "Keyed", "allow": "true"},
        ],
    }
    return parse_manifest(orjson.dumps(document).decode(), "the built-in fixture")


def without_references(manifest: Manifest) -> Manifest:
    """Return the manifest without checked references: generated rows name rows that do not exist.
    """
    return replace(manifest, entities=tuple(
        replace(entity, fields=tuple(
            replace(field, references="none", on_delete=None) if field.target else field
            for field in entity.fields
        ))
        for entity in manifest.entities
    ))


def body_maker(entity: Entity) -> Callable[[int], dict[str, Any]]:
    """Return a function that makes row n of an entity: valid, with distinct unique fields.

    The work that depends only on the entity happens once, so that it is not measured.
    """
    indexed = {name for index in entity.indexes if index.unique for name in index.fields}
    makers = [
        (field.name, value_maker(field, distinct=field.unique or field.name in indexed))
        for field in entity.fields
    ]

    def make(number: int) -> dict[str, Any]:
        return {name: value(number) for name, value in makers}

    return make


def value_maker(field: Field, distinct: bool) -> Callable[[int], Any]:
    """Return a function that makes value n of the field's type; one of 100 unless `distinct`."""
    modulus = sys.maxsize if distinct else _GROUPS
    match field.type:
        case FieldType.INT:
            return lambda number: number % modulus
        case FieldType.FLOAT:
            return lambda number: number % modulus + 0.5
        case FieldType.BOOL:
            return lambda number: number % 2 == 0
        case FieldType.DATETIME:
            return lambda number: f"{number % modulus}Z"
        case FieldType.DATE:
            return lambda number: f"{1 + number % min(modulus, 9_000):04}-01-01"
        case FieldType.DECIMAL:
            return lambda number: f"{number % modulus}.25"
        case FieldType.ENUM:
            values = field.values
            return lambda number: values[number % len(values)]
        case FieldType.JSON:
            if field.is_json_text:
                return lambda number: f'{{"n":{number % modulus}}}'
            return lambda number: {"n": number % modulus, "tags": ["a", "b"]}
        case FieldType.ID:
            return lambda number: f"{number % modulus:040x}"
        case FieldType.STRING | FieldType.RICHTEXT:
            pattern = field.name.replace("%", "%%") + " %08d"
            return lambda number: pattern % (number % modulus)


def to_one_relation(entity: Entity) -> Relation | None:
    """Return a to-one relation whose field may hold the id of any row of its target."""
    taken = {name for index in entity.indexes if index.unique for name in index.fields}
    kinds = (FieldType.STRING, FieldType.ID)
    free = {f.name for f in entity.fields if f.type in kinds and not f.unique} - taken
    return next((r for r in entity.relations if not r.many and r.field in free), None)


def text_field(entity: Entity) -> Field | None:
    """Return a field for `$like`."""
    kinds = (FieldType.STRING, FieldType.RICHTEXT)
    return next((field for field in entity.fields if field.type in kinds), None)


def unique_field(entity: Entity) -> Field | None:
    """Return a field that is unique by itself."""
    alone = {index.fields[0] for index in entity.indexes if index.unique and len(index.fields) == 1}
    return next((f for f in entity.fields if f.unique or f.name in alone), None)


def grouped_field(entity: Entity) -> Field | None:
    """Return a field for equality, if possible an indexed one: 10 of 1,000 rows have each value."""
    kinds = (FieldType.STRING, FieldType.INT, FieldType.ID, FieldType.DATETIME)
    fields = [f for f in entity.fields if f.type in kinds and not f.unique]
    first_of_index = {index.fields[0] for index in entity.indexes if not index.unique}
    return next((f for f in fields if f.name in first_of_index), fields[0] if fields else None)
