"""Client fields: which fields of an entity a client receives, may insert and may update.

Called by the writers of `pylon.codegen`.
"""

from __future__ import annotations

from pylon.manifest.model import Entity, Field


def is_writable(entity: Entity, field: Field) -> bool:
    """Whether a client may send the field."""
    return not (field.is_set_by_server or field.name in entity.read_only)


def written_fields(entity: Entity) -> list[Field]:
    """Return the fields that a client may send, in manifest order."""
    return [field for field in entity.fields if is_writable(entity, field)]


def is_required(field: Field) -> bool:
    """Whether an insert needs the field."""
    return not field.optional and field.insert_default is None
