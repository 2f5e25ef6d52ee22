"""Owned fields: the fields whose value is the id of a user, and what becomes of their rows when the
account ends.

These are the fields of type `id(<user entity>)` of every entity but the user entity, the fields
that `auth.on_delete` names, and the members of organisations. A field without a word leaves its
rows to the references (`onDelete` of the field). Of organisations they are the fields that
`auth.org.on_delete` names. Called by the flows of accounts and organisations.
"""

from __future__ import annotations

import msgspec

from pylon.manifest.model import DeleteWord, Entity, FieldType, Manifest
from pylon.manifest.org_entities import org_entities


class OwnedField(msgspec.Struct, frozen=True):
    """A field that refers to users or organisations. `word`: `delete`, `null` or `keep`; None:
    nobody says it."""

    entity: Entity
    name: str
    word: DeleteWord | None


def owned_fields(manifest: Manifest) -> list[OwnedField]:
    """Return the fields that refer to users, in manifest order."""
    orgs = org_entities(manifest)
    found = []
    for entity in manifest.entities:
        for field in entity.fields:
            word = manifest.auth.on_delete.get(f"{entity.name}.{field.name}")
            if orgs is not None and entity is orgs.member and field.name == "userId":
                word = "delete"
            refers = (
                field.type is FieldType.ID and field.target == manifest.auth.user_entity
                and entity.name != manifest.auth.user_entity
            )
            if refers or word is not None:
                found.append(OwnedField(entity, field.name, word))
    return found


def org_fields(manifest: Manifest) -> list[OwnedField]:
    """Return the fields that refer to organisations, as `auth.org.on_delete` names them."""
    words = {} if manifest.auth.org is None else manifest.auth.org.on_delete
    found = []
    for key, word in words.items():
        entity, _, name = key.partition(".")
        found.append(OwnedField(manifest.by_name[entity], name, word))
    return found
