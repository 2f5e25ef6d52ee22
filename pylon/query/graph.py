"""Graph queries: rows of several entities, with related rows inside them (spec/http.md §3.5).

The body is `{entity: {"where", "order", "limit", "offset", "include"}}`. `include` is an object
with the same members for each relation. `after` and `before` of an entity name a position; an
include has none, since its rows have an order for each row that they belong to. `parse_graph`
makes a tree of `GraphNode` from the body, and the store evaluates it.

A relation has a field. A to-one relation leads to the one row whose id is in that field of this
row. A to-many relation leads to the rows of its target that have this row's id in that field.

Invariants: every node has the caller's read policy as a guard of its condition (`guarded`). The
parser refuses an unknown key or relation. Bounds: `limits.GRAPH_DEPTH` levels of includes,
`limits.GRAPH_NODES` entities and includes. Called by `pylon.api.data.graph`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.body_types import BodyType
from pylon.errors import SHOWN_CHARS, InvalidQuery, LimitExceeded, RelationNotFound
from pylon.manifest.model import Entity, Relation
from pylon.query.conditions import guarded
from pylon.query.parse import parse_where
from pylon.query.position import Order, Position, parse_position
from pylon.query.predicate import TRUE, Predicate
from pylon.query.rows import parse_count, parse_limit, parse_order, refuse_offset

_EXAMPLE: Final = '{"Ticket": {"where": {"open": true}, "include": {"owner": {}}}}'


class GraphNodeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition on the rows of an entity, their order, a window, and related rows to include."""

    where: Any = None
    order: Any = None
    limit: Any = None
    offset: Any = None
    after: Any = None
    before: Any = None
    include: Any = None


_NODE: Final = BodyType(
    GraphNodeBody, _EXAMPLE, error=InvalidQuery,
    not_object="{noun} takes an object, for example {example}",
    unknown='Unknown key "{name}" of {noun} -- known keys: {known}',
)


class GraphNode(msgspec.Struct, frozen=True):
    """Rows of an entity with related rows inside them.

    `limit` and `offset` of an included node apply to the related rows of each row separately.
    `limit` None means all rows. `position` and `allowed` are as in `pylon.query.rows.Query`.
    """

    entity: Entity
    where: Predicate
    order: Order = ()
    limit: int | None = None
    offset: int = 0
    position: Position | None = None
    allowed: Predicate = TRUE
    includes: tuple[GraphInclude, ...] = ()


class GraphInclude(msgspec.Struct, frozen=True):
    """A relation of a node's entity, and the rows of its target that the query asks for."""

    relation: Relation
    node: GraphNode


class GraphScope(msgspec.Struct, frozen=True):
    """The entities and rows that a caller may query.

    `find_entity` returns an outermost entity by its name; it raises if the caller has no right to
    it. `entity_by_name` has the targets of relations. `read_policy_of` returns the condition for
    the rows of an entity that the caller may read. `max_limit` bounds every limit.
    """

    find_entity: Callable[[str], Entity]
    entity_by_name: dict[str, Entity]
    read_policy_of: Callable[[Entity], Predicate]
    max_limit: int


def parse_graph(scope: GraphScope, body: object) -> list[GraphNode]:
    """Return a node for each entity in `body`, guarded by the caller's read policies.

    Raises:
        InvalidQuery: the body has the wrong shape or an unknown key; also from `parse_where`.
        RelationNotFound: an include names no relation of its entity; the text lists those it has.
        LimitExceeded: too deep, too many includes, a limit above `max_limit`.
        PylonError: from `find_entity`.
    """
    if not isinstance(body, dict):
        raise InvalidQuery(f"A graph query must be a JSON object, for example {_EXAMPLE}")
    parser = _Parser(scope)
    return [parser.parse(scope.find_entity(name), part, name, 0) for name, part in body.items()]


def relation_of(entity: Entity, name: str) -> Relation:
    """Return the relation of that name.

    Raises:
        RelationNotFound: the entity has none of that name.
    """
    for relation in entity.relations:
        if relation.name == name:
            return relation
    known = ", ".join(relation.name for relation in entity.relations) or "none"
    raise RelationNotFound(
        f'{entity.name} has no relation "{name[:SHOWN_CHARS]}" -- known relations: {known}',
        entity=entity.name,
    )


class _Parser:
    """Parses one query and counts its nodes."""

    __slots__ = ("_nodes", "_scope")

    def __init__(self, scope: GraphScope) -> None:
        self._scope = scope
        self._nodes = 0

    def parse(self, entity: Entity, body: object, path: str, depth: int) -> GraphNode:
        """Return the node of an entity or include. `path` names it in errors."""
        self._nodes += 1
        if self._nodes > limits.GRAPH_NODES:
            raise LimitExceeded(
                f"A graph query may name {limits.GRAPH_NODES} entities and includes at most"
            )
        node = _NODE.convert(body, path)
        max_limit = self._scope.max_limit
        limit = parse_limit(f"limit of {path}", node.limit, max_limit)
        condition = parse_where(entity, {} if node.where is None else node.where)
        allowed = self._scope.read_policy_of(entity)
        order = parse_order(entity, f"order of {path}", node.order)
        offset = parse_count(f"offset of {path}", node.offset) or 0
        return GraphNode(
            entity,
            guarded(allowed, condition),
            order,
            max_limit if limit is None and depth == 0 else limit,
            offset,
            self._parse_position(entity, order, node, path, depth, offset),
            allowed,
            self._parse_includes(entity, node.include, path, depth),
        )

    def _parse_position(
        self, entity: Entity, order: Order, node: GraphNodeBody, path: str, depth: int, offset: int
    ) -> Position | None:
        names = f"after of {path}", f"before of {path}"
        if depth and (node.after is not None or node.before is not None):
            raise InvalidQuery(
                f"{names[node.after is None]}: an include has no position -- ask for "
                f"{entity.name} as an entity of its own, or use offset"
            )
        position = parse_position(entity, order, node.after, node.before, names)
        if position is not None:
            refuse_offset(offset, f"offset of {path}")
        return position

    def _parse_includes(
        self, entity: Entity, body: object, path: str, depth: int
    ) -> tuple[GraphInclude, ...]:
        if body is None:
            return ()
        if not isinstance(body, dict):
            raise InvalidQuery(f'include of {path} takes an object, for example {{"owner": {{}}}}')
        if body and depth == limits.GRAPH_DEPTH:
            raise LimitExceeded(
                f"{path} includes more than {limits.GRAPH_DEPTH} levels of relations"
            )
        includes = []
        for name, part in body.items():
            relation = relation_of(entity, name)
            target = self._scope.entity_by_name[relation.target]
            node = self.parse(target, part, f"{path}.{name}", depth + 1)
            includes.append(GraphInclude(relation, node))
        return tuple(includes)
