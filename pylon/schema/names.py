"""Names: finds names of a manifest that a database would treat as equal, or that are
reserved. Called by `plan`.
"""

from __future__ import annotations

from pylon.manifest.model import Manifest
from pylon.schema.columns import (
    JSON_COLUMN,
    SEQ_COLUMN,
    fold_fields,
    fold_index,
    index_name,
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
        for field in fold_fields(entity):
            name = fold_index(entity, field).name
            if name.lower() in indexes:
                found.append(f"{name}: this name is needed for an index that keeps {field.name} "
                             "unique without regard to case")
    return found
