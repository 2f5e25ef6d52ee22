"""Carried fields: the fields whose value is the id of a user, by which rows follow a guest.

These are the fields of type `id(<user entity>)` of every entity but the user entity, and those of
`auth.guest.carry`, for example `Todo.authorId`. Called by the flows of identity.
"""

from __future__ import annotations

from pylon.manifest.model import Entity, FieldType, Manifest


def carried_fields(manifest: Manifest) -> list[tuple[Entity, tuple[str, ...]]]:
    """Return the entities with such fields, and the names of these, in manifest order."""
    users = manifest.auth.user_entity
    named = set(manifest.auth.guest_carry)
    found = []
    for entity in manifest.entities:
        names = tuple(
            field.name
            for field in entity.fields
            if (
                field.type is FieldType.ID and field.target == users and entity.name != users
            ) or f"{entity.name}.{field.name}" in named
        )
        if names:
            found.append((entity, names))
    return found
