"""Index specs: the indexes that a command gives a running server, as those of its manifest.

The running server keeps its manifest, so it can make only indexes over fields of that manifest.
Called by the `indexes` modules of the backends, for `pylonctl schema apply --indexes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pylon.errors import SchemaRefused
from pylon.manifest.model import Index, Manifest
from pylon.storage.records import IndexSpec


def with_indexes(manifest: Manifest, wanted: Sequence[IndexSpec]) -> Manifest:
    """Return the manifest with the `wanted` indexes in place of its own.

    Raises:
        SchemaRefused: an index has an unknown entity or field.
    """
    by_entity: dict[str, list[Index]] = {e.name: [] for e in manifest.entities}
    for entity, name, fields, unique, descending, where in wanted:
        known = manifest.by_name.get(entity)
        if known is None or not fields or not set(fields) <= set(known.columns):
            raise SchemaRefused(
                f"{entity}.{name}: the running server does not know {entity} "
                f"or one of {', '.join(fields) or 'no fields'}",
                hint="restart it with the new manifest, which makes the index too",
            )
        by_entity[entity].append(Index(name, fields, unique, descending, where))
    return replace(manifest, entities=tuple(
        replace(e, indexes=tuple(by_entity[e.name])) for e in manifest.entities
    ))
