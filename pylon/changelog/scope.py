"""Scopes: the part of the data that a replica asks for (docs/sync.md).

A scope names entities, and may have a filter for some of them. Each filter is a condition on single
rows, as of a live query. A scope is a narrower set of read rules (`EntityRules.narrowed`): whoever
judges changes and rows by the rules of the scope gives a client what it may read and asks for. So a
row that leaves a filter arrives as a delete, and one that enters it as an update with the full row.
Cursors keep their meaning: they advance over changes outside the scope too.

Invariants: a scope never shows a row that the caller may not read. Equal scopes are equal values,
so their connections share a group. Bounds: `limits.SCOPE_VALUES` operands in all filters of a
scope; no `$like` and no `$search`, so that a verdict takes constant time. Called by
`pylon.api.sync.pull`, the ws and the sse worker, and `workers.hub.admission`.

The scopes of an API key (`pylon.key_scopes`) are another thing: what the caller may do.
`scope_of_key` leaves the entities out that the key may not read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import SHOWN_CHARS, InvalidQuery, LimitExceeded
from pylon.key_scopes import readable_entities, require_entity
from pylon.manifest.model import Entity, Manifest
from pylon.policy.entity_rules import EntityRules
from pylon.policy.rules import RuleSet
from pylon.query.evaluate import evaluator_of
from pylon.query.matcher import Term, find_terms
from pylon.query.parse import FilterParser
from pylon.query.predicate import TRUE, InValues, Literal, Predicate
from pylon.query.predicate_parts import Cost, cost_of, parts

_EXAMPLE: Final = '{"Message": {"roomId": {"$in": ["..."]}}}'


class Scope:
    """Entities and filters, with the rules that they make. Immutable.

    Attributes:
        entities: their names; None: all of the manifest.
        rules: the read rules of the entities in the scope, narrowed by the filters.
        filters: the condition of each entity that has one.
        terms: by entity with a filter, the values of fields that every row of the scope has.
    """

    __slots__ = ("_hash", "_key", "entities", "filters", "rules", "terms")

    def __init__(
        self, rules: RuleSet, manifest: Manifest, entities: frozenset[str] | None,
        filters: Mapping[str, Predicate],
    ) -> None:
        by_name = manifest.by_name
        self.entities = entities
        self.filters = dict(filters)
        self.terms: dict[str, tuple[Term, ...]] = {
            name: tuple(find_terms(by_name[name], condition))
            for name, condition in filters.items()
        }
        by_entity = {
            name: rules.for_entity(name) for name in by_name if entities is None or name in entities
        }
        for name, condition in filters.items():
            by_entity[name] = by_entity[name].narrowed(condition, evaluator_of(condition))
        self.rules = RuleSet(by_entity, is_part=True)
        self._key = (entities, tuple(sorted(filters.items(), key=lambda item: item[0])))
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Scope) and self._hash == other._hash and self._key == other._key
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"<Scope {self.names} filters={sorted(self.filters)}>"

    @property
    def names(self) -> list[str] | None:
        """The entities, sorted; None: all."""
        return None if self.entities is None else sorted(self.entities)

    def includes(self, entity: str) -> bool:
        """Return whether changes of an entity may be in the scope."""
        return self.entities is None or entity in self.entities

    def find_rules(self, entity: str) -> EntityRules | None:
        """Return the rules of an entity; None if it is outside, or not in the manifest."""
        return self.rules.find(entity)


def parse_entities(rules: RuleSet, manifest: Manifest, text: str | None) -> Scope | None:
    """Return the scope of a parameter ``entities=Room,Member``; None without it.

    Raises:
        InvalidQuery: it is empty, or names an entity that the manifest does not have.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return Scope(rules, manifest, _known(manifest, names), {})


def parse_scope(
    rules: RuleSet, manifest: Manifest, entities: object, filters: object,
    names: tuple[str, str] = ("entities", "scope"),
) -> Scope | None:
    """Return the scope of decoded JSON; None for two nulls.

    Args:
        entities: a list of names, or null for all entities.
        filters: an object with a filter for each entity that has one, or null.
        names: how the request calls them.

    Raises:
        InvalidQuery: a wrong type, an unknown entity, a filter with directives or `$search`, a
            filter of an entity that `entities` does not name.
        InvalidColumn, InvalidValue, LimitExceeded: as `pylon.query.parse.parse_where`.
    """
    if entities is None and filters is None:
        return None
    if entities is not None and not (
        isinstance(entities, list) and all(isinstance(name, str) for name in entities)
    ):
        raise InvalidQuery(f'{names[0]} takes a list of entities, for example ["Room", "Member"]')
    if filters is not None and not isinstance(filters, dict):
        raise InvalidQuery(
            f"{names[1]} takes an object with a filter for each entity, for example {_EXAMPLE}"
        )
    chosen = None if entities is None else _known(manifest, entities)
    conditions: dict[str, Predicate] = {}
    for name, body in (filters or {}).items():
        _known(manifest, [name])
        if chosen is not None and name not in chosen:
            raise InvalidQuery(
                f"{names[1]} has a filter of {name}, which {names[0]} does not name -- "
                f"add it there, or leave {names[0]} out for all entities"
            )
        condition = _parse_filter(manifest.by_name[name], body, f"{names[1]} of {name}")
        if condition is not None:
            conditions[name] = condition
    if sum(map(_count_values, conditions.values())) > limits.SCOPE_VALUES:
        raise LimitExceeded(
            f"The filters of a scope have {limits.SCOPE_VALUES} values at most, all together",
            hint="open another replica for the rest, or use a live query",
        )
    return Scope(rules, manifest, chosen, conditions)


def scope_of_key(
    rules: RuleSet, manifest: Manifest, auth: AuthContext, scope: Scope | None
) -> Scope | None:
    """Return a scope without the entities that the caller's API key may not read.

    Args:
        scope: what the caller asks for; None: everything.

    Raises:
        ScopeDenied: the key may read no entity, or not one that the scope names.
    """
    if auth.api_key_scopes is None:
        return scope
    if scope is not None:
        for name in scope.entities or scope.filters:
            require_entity(auth, name, "read")
        if scope.entities is not None:
            return scope
    allowed = readable_entities(auth, manifest.by_name)
    if allowed is None:
        return scope
    return Scope(rules, manifest, allowed, {} if scope is None else scope.filters)


def _known(manifest: Manifest, names: Iterable[str]) -> frozenset[str]:
    """Return the names, if the manifest has them all."""
    found: set[str] = set()
    by_name = manifest.by_name
    for name in names:
        if name in by_name:
            found.add(name)
            continue
        shown = name[:SHOWN_CHARS]
        if not name:
            raise InvalidQuery(
                f"entities has an empty name -- known entities: {', '.join(sorted(by_name))}"
            )
        lower = {known.lower(): known for known in by_name}
        near = difflib.get_close_matches(shown.lower(), lower, n=1)
        raise InvalidQuery(
            f'Unknown entity "{shown}" in the scope'
            + (f', did you mean "{lower[near[0]]}"?' if near else "")
            + f" -- known entities: {', '.join(sorted(by_name))}"
        )
    if not found:
        raise InvalidQuery(
            f"entities is empty: name some, or leave it out -- known entities: "
            f"{', '.join(sorted(by_name))}"
        )
    return frozenset(found)


def _parse_filter(entity: Entity, body: Any, name: str) -> Predicate | None:
    """Return the condition of a filter; None if every row meets it."""
    parser = FilterParser(entity)
    condition = parser.parse(body)
    if parser.has_search or cost_of(condition) is not Cost.PLAIN:
        raise InvalidQuery(
            f"{name} takes conditions on fields, $or and $and, and neither $like nor $search -- "
            "use $startsWith, or ask by a live query"
        )
    return None if condition is TRUE else condition


def _count_values(node: Any) -> int:
    if type(node) is InValues:
        return len(node.values)
    if type(node) is Literal:
        return 1
    return sum(_count_values(part) for part in parts(node))
