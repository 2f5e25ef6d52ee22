"""Partial indexes: lets a store use an index with a `where` for queries whose filter implies it.

A store uses a partial index if the query has the index's condition among its own. Queries have
parameters in place of constants, so the store does not see that. So the compiler adds the
condition, with its constants, to the SQL of a query of which it is a part. It changes no result.

Called by `compiler` for entities that have such an index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pylon.manifest.model import Entity, Index
from pylon.query.index_filters import index_filter
from pylon.query.predicate import Guarded, Predicate
from pylon.query.predicate_parts import conjuncts


def has_partial_index(entity: Entity) -> bool:
    """Whether an index of the entity has a `where`."""
    return any(index.where is not None for index in entity.indexes)


class PartialIndexes:
    """The partial indexes of one entity."""

    __slots__ = ("_conditions", "_entity", "_known")

    def __init__(self, entity: Entity, where_text: Callable[[Entity, Index], str]) -> None:
        """Args: `where_text` writes the condition of an index, with constants."""
        self._entity = entity
        self._conditions = [
            (index, frozenset(conjuncts(index_filter(entity, index))), where_text(entity, index))
            for index in entity.indexes if index.where is not None
        ]
        self._known: dict[str, Entity] = {}  # by the implied conditions

    def find_implied(self, predicate: Predicate) -> tuple[Entity, str]:
        """Return the entity with the indexes that serve the predicate, and their conditions as SQL.

        A condition is implied if all of its parts are parts of the predicate.
        """
        found = _conditions_of(predicate)
        implied = [(index, text) for index, needed, text in self._conditions if needed <= found]
        if not implied:
            return self._entity, ""
        text = " AND ".join(dict.fromkeys(text for _, text in implied))
        entity = self._known.get(text)
        if entity is None:
            names = {index.name for index, _ in implied}
            entity = self._known[text] = replace(self._entity, indexes=tuple(
                _whole(index) if index.name in names else index for index in self._entity.indexes
            ))
        return entity, text


def _whole(index: Index) -> Index:
    return replace(index, where=None)


def _conditions_of(predicate: Predicate) -> set[Predicate]:
    if type(predicate) is Guarded:
        return {*conjuncts(predicate.allowed), *_conditions_of(predicate.wanted)}
    return set(conjuncts(predicate))
