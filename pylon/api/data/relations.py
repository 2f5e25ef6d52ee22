"""A relation that a request names. Called by `graph` and `link`."""

from __future__ import annotations

from typing import Final

from pylon.errors import RelationNotFound
from pylon.manifest.model import Entity, Relation

_SHOWN_CHARS: Final = 100


def relation_of(entity: Entity, name: str) -> Relation:
    """
    Raises:
        RelationNotFound: there is none of that name.
    """
    for relation in entity.relations:
        if relation.name == name:
            return relation
    known = ", ".join(relation.name for relation in entity.relations) or "none"
    raise RelationNotFound(
        f'{entity.name} has no relation "{name[:_SHOWN_CHARS]}" -- known relations: {known}',
        entity=entity.name,
    )
