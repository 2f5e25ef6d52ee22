"""Columns and indexes that Pylon makes for an entity, by name; the same for all backends.

Behind the manifest's columns each table has `_json`, the row's JSON text, which reads return
without decoding; and `_seq`, the seq of the row's last change, which is its version (null: not
known). A field that is unique without regard to case has a column with its folded values.

Called by the schema code and the readers of the backends.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import orjson

from pylon.manifest.model import Entity, Field, Index
from pylon.query.index_filters import index_filter
from pylon.query.predicate import Column, InValues, Not
from pylon.query.predicate_parts import conjuncts, parts
from pylon.values import EntityCodec

JSON_COLUMN: Final = "_json"
SEQ_COLUMN: Final = "_seq"
FOLD_PREFIX: Final = "_fold_"  # of a column with folded values


def index_name(entity: Entity, index: Index) -> str:
    """Return `<Entity>_<index>`."""
    return f"{entity.name}_{index.name}"


def unique_name(entity: Entity, field: Field) -> str:
    """Return the name of the index that keeps a field unique, where no constraint of the table
    does."""
    return f"{entity.name}_{field.name}_unique"


def sort_index_name(entity: Entity, field: str) -> str:
    """Return the name of the index of a sortable field of search, `<Entity>_sort_<field>`."""
    return f"{entity.name}_sort_{field}"


def fold_column(field: Field) -> str:
    """Return the name of the column with the folded values of a field that is unique without
    regard to case."""
    return f"{FOLD_PREFIX}{field.name}"


def fold_fields(entity: Entity) -> list[Field]:
    """Return the fields that have a fold column."""
    return [field for field in entity.fields if field.nocase]


def fold_index(entity: Entity, field: Field) -> Index:
    """Return the unique index over a fold column, under its whole name."""
    return Index(f"{entity.name}_{field.name}_nocase", (fold_column(field),), True)


def where_fields(entity: Entity, index: Index) -> set[str]:
    """Return the fields that the condition of a partial index names."""
    found: set[str] = set()
    for item in conjuncts(index_filter(entity, index)):
        operand = item.operand if isinstance(item, Not) else item
        if isinstance(operand, InValues):
            found.add(operand.field)
        found |= {part.field for part in parts(operand) if isinstance(part, Column)}
    return found


def constant_of(field: Field) -> object:
    """Return the column's value of the field's constant default, or None if it has none."""
    if field.default is None or field.default.kind != "constant":
        return None
    probe = Entity("Default", (replace(field, optional=False, unique=False),))
    body = {field.name: orjson.loads(field.default.argument)}
    (value,) = EntityCodec(probe).insert(body, "").values
    return value
