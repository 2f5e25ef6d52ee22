"""Graph queries: rows of several entities, with related rows inside them (spec/http.md §3.5).

The body is `{entity: {"where", "order", "limit", "offset", "include"}}`; `include` has the same
members for each relation. A to-one relation is the row that the relation's field names; a to-many
one is the rows of the target whose column of that name holds this row's id.

Invariants: every level has the caller's read policy as a guard of its condition; at most
`limits.GRAPH_DEPTH` levels of includes and `limits.GRAPH_NODES` entities and includes; the parser
refuses a misspelt key or relation. Called by the graph resource; the store answers the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.body_types import BodyType
from pylon.errors import SHOWN_CHARS, InvalidQuery, LimitExceeded, RelationNotFound
from pylon.manifest.model import Entity, Relation
from pylon.query.parse import parse_where
from pylon.query.predicate import Predicate, guarded
from pylon.query.rows import Order, parse_count, parse_limit, parse_order

_EXAMPLE: Final = '{"Ticket": {"where": {"open": true}, "include": {"owner": {}}}}'


class GraphNodeBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition on the rows of an entity, their order, a window, and related rows to include."""

    where: Any = None
    order: Any = None
    limit: Any = None
    offset: Any = None
    include: Any = None


_NODE: Final = BodyType(
    GraphNodeBody, _EXAMPLE, error=InvalidQuery,
    not_object="{noun} takes an object, for example {example}",
    unknown='Unknown key "{name}" of {noun} -- known keys: {known}',
)


@dataclass(frozen=True, slots=True)
class GraphNode:
    """Rows of an entity with related rows inside them.

    `limit` and `offset` of an included node count for each row that it belongs to; None: all of
    them.
    """

    entity: Entity
    where: Predicate
    order: Order = ()
    limit: int | None = None
    offset: int = 0
    includes: tuple[GraphInclude, ...] = ()


@dataclass(frozen=True, slots=True)
class GraphInclude:
    """A relation of a node's entity, and the rows of its target that the query asks for."""

    relation: Relation
    node: GraphNode


@dataclass(frozen=True, slots=True)
class GraphScope:
    """The rows that a query may name.

    `find_entity` checks the name of an outermost entity and the caller's right to it, and may
    raise. `entity_by_name` has the targets of relations. `allowed_of` is the condition for the
    rows of an entity that the caller may read. `max_limit` bounds every limit.
    """

    find_entity: Callable[[str], Entity]
    entity_by_name: dict[str, Entity]
    allowed_of: Callable[[Entity], Predicate]
    max_limit: int


def parse_graph(scope: GraphScope, body: object) -> list[GraphNode]:
    """The nodes that `body` asks for, limited to the rows that the caller may read.

    Raises:
        InvalidQuery: the wrong shape, an unknown key; also from `parse_where`.
        RelationNotFound: an include that the entity does not have; lists those it has.
        LimitExceeded: too deep, too many includes, a limit above `max_limit`.
        PylonError: from `find_entity`.
    """
    if not isinstance(body, dict):
        raise InvalidQuery(f"A graph query must be a JSON object, for example {_EXAMPLE}")
    parser = _Parser(scope)
    return [parser.parse(scope.find_entity(name), asked, name, 0) for name, asked in body.items()]


def relation_of(entity: Entity, name: str) -> Relation:
    """The relation of that name.

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

    def parse(self, entity: Entity, asked: object, path: str, depth: int) -> GraphNode:
        self._nodes += 1
        if self._nodes > limits.GRAPH_NODES:
            raise LimitExceeded(
                f"A graph query may name {limits.GRAPH_NODES} entities and includes at most"
            )
        node = _NODE.convert(asked, path)
        most = self._scope.max_limit
        limit = parse_limit(f"limit of {path}", node.limit, most)
        wanted = parse_where(entity, {} if node.where is None else node.where)
        return GraphNode(
            entity,
            guarded(self._scope.allowed_of(entity), wanted),
            parse_order(entity, f"order of {path}", node.order),
            most if limit is None and depth == 0 else limit,
            parse_count(f"offset of {path}", node.offset) or 0,
            self._parse_includes(entity, node.include, path, depth),
        )

    def _parse_includes(
        self, entity: Entity, asked: object, path: str, depth: int
    ) -> tuple[GraphInclude, ...]:
        if asked is None:
            return ()
        if not isinstance(asked, dict):
            raise InvalidQuery(f'include of {path} takes an object, for example {{"owner": {{}}}}')
        if asked and depth == limits.GRAPH_DEPTH:
            raise LimitExceeded(
                f"{path} includes more than {limits.GRAPH_DEPTH} levels of relations"
            )
        includes = []
        for name, wanted in asked.items():
            relation = relation_of(entity, name)
            target = self._scope.entity_by_name[relation.target]
            node = self.parse(target, wanted, f"{path}.{name}", depth + 1)
            includes.append(GraphInclude(relation, node))
        return tuple(includes)
