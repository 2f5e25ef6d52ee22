"""Names: finds names of a manifest that a database would treat as equal, or that are
reserved. Called by `plan`.
"""

from __future__ import annotations

from pylon.manifest.model import Entity, Manifest
from pylon.schema.columns import (
    JSON_COLUMN,
    SEQ_COLUMN,
    fold_column,
    fold_fields,
    fold_index,
    index_name,
    unique_name,
)
from pylon.schema.database import Database


def name_clashes(manifest: Manifest, database: Database) -> list[str]:
    """Return a line for each clash. Case makes no difference, on any backend."""
    found = []
    entities: set[str] = set()
    indexes: set[str] = set()
    reserved = database.reserved_prefixes
    for entity in manifest.entities:
        lower = entity.name.lower()
        if lower.startswith(reserved):
            words = " or ".join(reserved)
            found.append(f"{entity.name}: names that start with {words} are reserved")
        if lower in entities:
            found.append(f"{entity.name}: another entity has this name in other case")
        entities.add(lower)
        columns = {"id", JSON_COLUMN, SEQ_COLUMN}
        for field in entity.fields:
            if field.name.lower() in columns:
                found.append(f"{entity.name}.{field.name}: the name is taken (SQLite has no case)")
            columns.add(field.name.lower())
        for index in entity.indexes:
            name = index_name(entity, index).lower()
            if name in indexes:
                found.append(f"{index_name(entity, index)}: two indexes have this name")
            indexes.add(name)
        found += _long_names(entity, database)
        found += _unique_clashes(entity) if database.adds_uniqueness else []
        for field in fold_fields(entity):
            name = fold_index(entity, field).name
            if name.lower() in indexes:
                found.append(f"{name}: this name is needed for an index that keeps {field.name} "
                             "unique without regard to case")
    return found


def _long_names(entity: Entity, database: Database) -> list[str]:
    """Return a line for each name that the database would cut."""
    longest = database.name_bytes
    if longest is None:
        return []
    names = {entity.name: entity.name}
    names |= {field.name: f"{entity.name}.{field.name}" for field in entity.fields}
    names |= {fold_column(f): f"{entity.name}.{f.name}" for f in fold_fields(entity)}
    return [
        f"{place}: {name} has {len(name.encode())} bytes, and {database.title} takes {longest}"
        for name, place in names.items() if len(name.encode()) > longest
    ]


def _unique_clashes(entity: Entity) -> list[str]:
    """Return a line for each other index with the name of one that keeps a field unique."""
    needed = {unique_name(entity, f).lower(): f.name for f in entity.fields if f.unique}
    return [
        f"{entity.name}.{index.name}: this name is needed for an index that keeps "
        f"{needed[name]} unique"
        for index in entity.indexes
        if (name := index_name(entity, index).lower()) in needed
        and not (index.unique and index.fields == (needed[name],) and index.where is None)
    ]
