"""Aggregates over the rows that the caller may read (spec/http.md §3.6).

Invariants: the read policy is part of the condition, so that no number depends on a row that the
caller may not read. A caller with a tenant gets the numbers of that tenant only, if the rows have
an `orgId`. `pylon.query.aggregate` parses the body.
"""

from __future__ import annotations

from typing import Final

import falcon

from pylon.api.data.access import entity_named, readable
from pylon.api.http.body import decode_raw, read_body
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.http.responses import send_json
from pylon.api.services import DataServices
from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity
from pylon.query.aggregate import parse_aggregate
from pylon.query.conditions import and_, equal
from pylon.query.predicate import TRUE, Predicate
from pylon.query.shape_text import describe
from pylon.values import decode_query

TENANT_FIELD: Final = "orgId"


class EntityAggregate:
    """``POST /api/aggregate/{entity}``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response, entity: str) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "read")
        allowed = and_(readable(services.app, named, auth), match_tenant(named, auth))
        body = decode_raw(req, services.requests, read_body(req), decode_query)
        aggregate = parse_aggregate(named, body, allowed)
        rows = services.store.scan(
            services.queries.timed(
                "aggregate", named.name, lambda: describe(aggregate.where),
                lambda reader: reader.aggregate(named.name, aggregate),
            ),
            caller=subject_of(req, services.requests),
        )
        send_json(resp, {"rows": rows})


def match_tenant(entity: Entity, auth: AuthContext) -> Predicate:
    """Return the condition of the caller's tenant; all rows if either has no tenant."""
    if auth.tenant_id is None or TENANT_FIELD not in entity.by_name:
        return TRUE
    return equal(TENANT_FIELD, auth.tenant_id)
