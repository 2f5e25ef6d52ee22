"""Graph queries: ``POST /api/query`` (spec/http.md §3.5).

`pylon.query.graph` parses the body. Invariant: each level has the read policy of its entity as a
guard, so that a row which the caller may not read is neither returned, nor counted, nor followed.
"""

from __future__ import annotations

from functools import partial

import falcon

from pylon.api.data.access import entity_named, readable
from pylon.api.data.query_cache import answer_cached
from pylon.api.data.query_watch import NO_ENTITY
from pylon.api.http.body import decode_raw, read_body
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.services import DataServices
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.key_scopes import require_entity
from pylon.manifest.model import Entity
from pylon.query.graph import GraphNode, GraphScope, parse_graph
from pylon.query.predicate import Predicate
from pylon.query.shape_text import describe
from pylon.values import decode_query


class GraphQuery:
    """``POST /api/query``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        raw = read_body(req)

        def read() -> bytes:
            body = decode_raw(req, services.requests, raw, decode_query)
            nodes = parse_request(services.app, auth, body)
            return services.store.scan(
                services.queries.timed(
                    "graph", nodes[0].entity.name if nodes else NO_ENTITY,
                    partial(_describe, nodes), lambda reader: reader.graph(nodes),
                ),
                caller=subject_of(req, services.requests),
            )

        found = answer_cached(services.query_cache, services.store, auth, raw, read)
        services.requests.compression.send(req, resp, found)


def parse_request(app: App, auth: AuthContext, body: object) -> list[GraphNode]:
    """Return the nodes of a request, limited to the rows that `auth` may read.

    Raises:
        PolicyDenied, EntityNotFound: as `entity_named` and `readable`; an included entity that
            the caller may not read is empty and no error.
        ScopeDenied: the caller's API key does not reach an entity, included ones too.
        InvalidQuery, RelationNotFound, LimitExceeded: as `pylon.query.graph.parse_graph`.
    """

    def find_entity(name: str) -> Entity:
        named = entity_named(app, name, auth, "read")
        readable(app, named, auth)
        return named

    def allowed_of(entity: Entity) -> Predicate:
        require_entity(auth, entity.name, "read")
        return app.rules.for_entity(entity.name).readable_by(auth)

    scope = GraphScope(find_entity, app.manifest.by_name, allowed_of, app.config.list_limit)
    return parse_graph(scope, body)


def _describe(nodes: list[GraphNode]) -> str:
    """Return the shape of a graph: its nodes, with their included nodes."""
    texts = []
    for node in nodes:
        included = _describe([include.node for include in node.includes])
        shape = describe(node.where, node.order)
        texts.append(f"{node.entity.name}: {shape}" + (f" ({included})" if included else ""))
    return "; ".join(texts)
