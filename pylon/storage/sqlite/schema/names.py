"""Name clashes: finds names of a manifest that SQLite would treat as equal, or that are reserved.

Called by `plan`.
"""

from __future__ import annotations

from pylon.manifest.model import Manifest
from pylon.storage.sqlite.schema import ddl


def name_clashes(manifest: Manifest) -> list[str]:
    """Return a line for each clash. SQLite ignores case; it and Pylon reserve some names."""
    found = []
    entities: set[str] = set()
    indexes: set[str] = set()
    for entity in manifest.entities:
        lower = entity.name.lower()
        if lower.startswith(("sqlite_", "_pylon_")):
            found.append(f"{entity.name}: names that start with sqlite_ or _pylon_ are reserved")
        if lower in entities:
            found.append(f"{entity.name}: another entity has this name in other case")
        entities.add(lower)
        columns = {"id", ddl.JSON_COLUMN, ddl.SEQ_COLUMN}
        for field in entity.fields:
            if field.name.lower() in columns:
                found.append(f"{entity.name}.{field.name}: the name is taken (SQLite has no case)")
            columns.add(field.name.lower())
        for index in entity.indexes:
            name = ddl.index_name(entity, index).lower()
            if name in indexes:
                found.append(f"{ddl.index_name(entity, index)}: two indexes have this name")
            indexes.add(name)
        for field in ddl.fold_fields(entity):
            name = ddl.fold_index(entity, field)[0]
            if name.lower() in indexes:
                found.append(f"{name}: this name is needed for an index that keeps {field.name} "
                             "unique without regard to case")
    return found
