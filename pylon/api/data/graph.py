"""Graph queries: rows of several entities, with related rows inside them (spec/http.md §3.5).

``POST /api/query`` with `{entity: {"where", "order", "limit", "offset", "include"}}`; `include`
has the same members for each relation. A to-one relation is the row that the relation's field
names; a to-many one is the rows of the target whose column of that name holds this row's id.

Invariants: every level has its own read policy in its SQL, so a row that the caller may not
read is neither shown nor counted nor looked through; at most `limits.GRAPH_DEPTH` levels of
includes and `limits.GRAPH_NODES` entities and includes; a misspelt key or relation is refused.
"""

from __future__ import annotations

from typing import Any, Final

import falcon

from pylon import limits
from pylon.api.data.access import entity_named, readable
from pylon.api.data.query_cache import answered
from pylon.api.data.relations import relation_of
from pylon.api.http.body import decoded, read_body
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.http.responses import send_raw
from pylon.api.services import DataServices
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity
from pylon.storage.interface import GraphInclude, GraphNode
from pylon.storage.sqlite.conditions import parse_where
from pylon.storage.sqlite.filters import parse_count, parse_limit, parse_order
from pylon.values import decode_query

_KEYS: Final = ("where", "order", "limit", "offset", "include")
_EXAMPLE: Final = '{"Ticket": {"where": {"open": true}, "include": {"owner": {}}}}'


class GraphQuery:
    """``POST /api/query``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        raw = read_body(req)

        def read() -> bytes:
            body = decoded(req, services.requests, raw, decode_query)
            nodes = parse_graph(services.app, auth, body)
            return services.store.scan(
                lambda reader: reader.graph(nodes), caller=subject_of(req, services.requests)
            )

        send_raw(resp, answered(services.query_cache, services.store, auth, raw, read))


def parse_graph(app: App, auth: AuthContext, body: object) -> list[GraphNode]:
    """The nodes that `body` asks for, limited to what `auth` may read.

    Raises:
        InvalidQuery: the wrong shape, an unknown key; also from `parse_where`.
        RelationNotFound: an include that the entity does not have; lists those it has.
        PolicyDenied, EntityNotFound: as `entity_named` and `readable`; an included entity that
            the caller may not read is empty and no error.
        LimitExceeded: too deep, too many includes, a limit above PYLON_LIST_LIMIT.
    """
    if not isinstance(body, dict):
        raise InvalidQuery(f"A graph query must be a JSON object, for example {_EXAMPLE}")
    parsing = _Parsing(app, auth)
    return [parsing.entity(name, wanted) for name, wanted in body.items()]


class _Parsing:
    """Reads one query, and counts its nodes."""

    __slots__ = ("_app", "_auth", "_nodes")

    def __init__(self, app: App, auth: AuthContext) -> None:
        self._app = app
        self._auth = auth
        self._nodes = 0

    def entity(self, name: str, wanted: object) -> GraphNode:
        named = entity_named(self._app, name, self._auth)
        readable(self._app, named, self._auth)
        return self._node(named, wanted, name, 0)

    def _node(self, entity: Entity, wanted: object, path: str, depth: int) -> GraphNode:
        self._nodes += 1
        if self._nodes > limits.GRAPH_NODES:
            raise LimitExceeded(
                f"A graph query may name {limits.GRAPH_NODES} entities and includes at most"
            )
        members = _members(wanted, path)
        most = self._app.config.list_limit
        where = members.get("where")
        allowed = self._app.rules.of(entity.name).read_clause(self._auth)
        limit = parse_limit(f"limit of {path}", members.get("limit"), most)
        return GraphNode(
            entity,
            parse_where(entity, {} if where is None else where, (), allowed, is_led=depth > 0),
            parse_order(entity, f"order of {path}", members.get("order")),
            most if limit is None and depth == 0 else limit,
            parse_count(f"offset of {path}", members.get("offset")) or 0,
            self._includes(entity, members.get("include"), path, depth),
        )

    def _includes(
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
            target = self._app.manifest.by_name[relation.target]
            node = self._node(target, wanted, f"{path}.{name}", depth + 1)
            includes.append(GraphInclude(relation, node))
        return tuple(includes)


def _members(wanted: object, path: str) -> dict[str, Any]:
    if not isinstance(wanted, dict):
        raise InvalidQuery(f"{path} takes an object, for example {_EXAMPLE}")
    for key in wanted:
        if key not in _KEYS:
            raise InvalidQuery(
                f'Unknown key "{key[:100]}" of {path[:200]} -- known keys: {", ".join(_KEYS)}'
            )
    return wanted
