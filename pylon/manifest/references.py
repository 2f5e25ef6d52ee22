"""References: which ``id(Entity)`` fields a store checks, and what happens at a delete.

A field is checked if it says so itself, if it has `onDelete`, if the manifest says so for all
fields, or if the database checks by default: one that this server has made does. The rules stand in
docs/manifest.md. Called by `pylon.storage.core.references`, and by backends for their indexes.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from pylon.manifest.model import Index, Manifest, OnDelete

FACT = "references"  # of the database; "check": it checks references by default
INDEX_PREFIX = "ref_"  # of an index that the server makes for a reference


class Reference(msgspec.Struct, frozen=True):
    """A field of `entity` that must hold the id of a row of `target`, or null."""

    entity: str
    field: str
    target: str
    on_delete: OnDelete


def checked_references(manifest: Manifest, *, by_default: bool) -> list[Reference]:
    """Return the references that a store checks.

    Args:
        by_default: whether the database checks the fields about which the manifest says nothing.
    """
    found = []
    for entity in manifest.entities:
        for field in entity.fields:
            if field.target is None or field.target not in manifest.by_name:
                continue
            word = field.references or ("check" if field.on_delete else manifest.references)
            if word == "check" or (word is None and by_default):
                found.append(
                    Reference(entity.name, field.name, field.target, field.on_delete or "restrict")
                )
    return found


def with_reference_indexes(manifest: Manifest, *, by_default: bool) -> Manifest:
    """Return the manifest with an index for each checked reference that has none.

    A delete looks for the rows that refer to the deleted one.
    """
    missing: dict[str, list[Index]] = {}
    for reference in checked_references(manifest, by_default=by_default):
        entity = manifest.by_name[reference.entity]
        firsts = {i.fields[0] for i in entity.indexes if i.fields and i.where is None}
        if reference.field not in firsts and not entity.by_name[reference.field].unique:
            index = Index(INDEX_PREFIX + reference.field, (reference.field,), False)
            missing.setdefault(entity.name, []).append(index)
    if not missing:
        return manifest
    return replace(manifest, entities=tuple(
        replace(entity, indexes=(*entity.indexes, *missing.get(entity.name, ())))
        for entity in manifest.entities
    ))
