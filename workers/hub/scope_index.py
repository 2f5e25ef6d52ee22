"""Scope index: finds the groups whose scope may include a change.

A group without a filter for the entity is found by the entity alone. A filter that fixes a field to
some values, such as ``{"roomId": {"$in": […]}}``, is found by these values in the row before and
after the change. So a change of one room costs nothing for the replicas of other rooms. All other
filters are *scanned*: they are judged for each change of their entity.

Invariant: every group that may see a change is found; whether it sees it, its rules say. Bound:
`limits.SCOPE_VALUES` entries for a group, and `limits.SCOPES_SCANNED` scanned filters of an entity
(`check`). Called by `groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from pylon import limits
from pylon.changelog.change import Change
from pylon.changelog.scope import Scope
from pylon.errors import LimitExceeded
from pylon.query.matcher import Term


class _Scoped(Protocol):
    """A group with a scope."""

    scope: Scope | None


G = TypeVar("G", bound=_Scoped)


class ScopeIndex(Generic[G]):
    """The groups of a hub that have a scope."""

    __slots__ = ("_by_entity", "_everything", "_filtered", "_groups")

    def __init__(self) -> None:
        self._groups: set[G] = set()
        self._everything: set[G] = set()  # their scopes name no entities
        self._by_entity: dict[str, set[G]] = {}
        self._filtered: dict[str, _Filtered[G]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, group: G, scope: Scope) -> None:
        """Add a group."""
        self._groups.add(group)
        if scope.entities is None:
            self._everything.add(group)
        for entity in scope.entities or ():
            if entity not in scope.filters:
                self._by_entity.setdefault(entity, set()).add(group)
        for entity, terms in scope.terms.items():
            self._filtered.setdefault(entity, _Filtered()).add(group, terms)

    def remove(self, group: G, scope: Scope) -> None:
        """Remove a group."""
        self._groups.discard(group)
        self._everything.discard(group)
        for entity in scope.entities or ():
            if entity not in scope.filters:
                self._by_entity[entity].discard(group)
        for entity, terms in scope.terms.items():
            self._filtered[entity].remove(group, terms)

    def check(self, scope: Scope) -> None:
        """Check that a group of this scope may be added.

        Raises:
            LimitExceeded: an entity has too many scanned filters.
        """
        for entity, terms in scope.terms.items():
            filtered = self._filtered.get(entity)
            if terms or filtered is None or filtered.scanned < limits.SCOPES_SCANNED:
                continue
            raise LimitExceeded(
                f"There are {limits.SCOPES_SCANNED} different scopes with a filter of {entity} "
                "without an equality already",
                hint='compare a field with a value, for example {"roomId": {"$in": ["x"]}}',
            )

    def find(self, change: Change) -> Iterator[G]:
        """Yield each group whose scope may include the row before the change or after it, once."""
        if not self._groups:
            return
        entity = change.event.entity
        yield from self._by_entity.get(entity, ())
        for group in self._everything:
            if group.scope is not None and entity not in group.scope.filters:
                yield group
        filtered = self._filtered.get(entity)
        if filtered is not None:
            yield from filtered.find(change)


class _Filtered(Generic[G]):
    """The groups with a filter for one entity."""

    __slots__ = ("_by_field", "_rest")

    def __init__(self) -> None:
        self._by_field: dict[str, dict[object, set[G]]] = {}
        self._rest: set[G] = set()

    @property
    def scanned(self) -> int:
        """The number of filters that no value finds."""
        return len(self._rest)

    def add(self, group: G, terms: tuple[Term, ...]) -> None:
        term = _narrowest(terms)
        if term is None:
            self._rest.add(group)
            return
        by_value = self._by_field.setdefault(term.field.name, {})
        for value in term.values:
            by_value.setdefault(value, set()).add(group)

    def remove(self, group: G, terms: tuple[Term, ...]) -> None:
        term = _narrowest(terms)
        if term is None:
            self._rest.discard(group)
            return
        by_value = self._by_field.get(term.field.name, {})
        for value in term.values:
            by_value[value].discard(group)
            if not by_value[value]:
                del by_value[value]
        if not by_value:
            self._by_field.pop(term.field.name, None)

    def find(self, change: Change) -> Iterator[G]:
        yield from self._rest
        found: set[G] = set()
        for field, by_value in self._by_field.items():
            for row in (change.row, change.prev_row):
                if row is None:
                    continue
                try:
                    found |= by_value.get(row.get(field), set())
                except TypeError:  # a list or an object, from elsewhere, equals no term
                    continue
        yield from found


def _narrowest(terms: tuple[Term, ...]) -> Term | None:
    return min(terms, key=lambda term: len(term.values), default=None)
