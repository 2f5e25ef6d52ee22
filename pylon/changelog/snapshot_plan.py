"""Snapshot plans: in which parts and in which order a snapshot reads the rows of an entity.

A whole entity is one part in the order of ids. A scope whose filter fixes a field to some values,
with an index that begins with this field, has a part for each value, in the order of the rest of
the index. So each page of a replica of 30 rooms is one search of the index, and costs the same in a
table of any size.

Invariant: the parts of an entity have no row in common, and together they have all rows that meet
`EntityRules.readable_by`. Bound: `limits.SCOPE_VALUES` parts. Called by `pull`.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import orjson

from pylon.auth_context import AuthContext
from pylon.changelog.scope import Scope
from pylon.manifest.model import Entity, Manifest
from pylon.policy.rules import RuleSet
from pylon.query.conditions import and_, equal, guarded
from pylon.query.matcher import Term, find_terms
from pylon.query.position import Order, position_of
from pylon.query.predicate import TRUE, Predicate
from pylon.query.predicate_parts import conjuncts
from pylon.query.rows import Query


class SnapshotPart(msgspec.Struct, frozen=True):
    """Rows of an entity, read page by page. `allowed` is the read policy that guards `where`."""

    entity: Entity
    where: Predicate
    allowed: Predicate = TRUE
    order: Order = ()

    def query(self, limit: int, last_row: bytes | None) -> Query:
        """Return the query of a page.

        Args:
            last_row: the last row of the page before it, as JSON; None: the first page.
        """
        if last_row is None:
            return Query(self.where, limit, order=self.order, allowed=self.allowed)
        row = orjson.loads(last_row)
        if not self.order:
            return Query(self.where, limit, after_id=row["id"])
        return Query(
            self.where, limit, order=self.order, allowed=self.allowed,
            position=position_of(self.entity, self.order, row),
        )


def plan_snapshot(
    manifest: Manifest, rules: RuleSet, auth: AuthContext, scope: Scope | None
) -> list[SnapshotPart]:
    """Return the parts of all entities that a caller may read, in a scope if there is one."""
    parts: list[SnapshotPart] = []
    for entity in manifest.entities:
        if scope is None:
            parts.append(SnapshotPart(entity, rules.for_entity(entity.name).readable_by(auth)))
        elif scope.includes(entity.name):
            parts += _scoped_parts(entity, rules, auth, scope)
    return parts


def _scoped_parts(
    entity: Entity, rules: RuleSet, auth: AuthContext, scope: Scope
) -> Iterator[SnapshotPart]:
    allowed = rules.for_entity(entity.name).readable_by(auth)
    items = conjuncts(scope.filters.get(entity.name, TRUE))
    for item in items:
        for term in find_terms(entity, item):
            columns = _index_behind(entity, term)
            if columns is None:
                continue
            rest = [other for other in items if other is not item]  # `item` names the values
            order = tuple([(column, False) for column in columns])
            for value in sorted(term.values, key=lambda value: (value is not None, value)):
                same = equal(term.field.name, value)  # type: ignore[arg-type]
                where = guarded(allowed, and_(same, *rest))
                yield SnapshotPart(entity, where, allowed, order)
            return
    yield SnapshotPart(entity, scope.rules.for_entity(entity.name).readable_by(auth))


def _index_behind(entity: Entity, term: Term) -> tuple[str, ...] | None:
    """Return the other columns of an index that begins with the term's field; None without one."""
    name = term.field.name
    for columns in (*sorted(entity.range_columns), *entity.index_columns):
        if columns[0] == name:
            return columns[1:]
    return None
