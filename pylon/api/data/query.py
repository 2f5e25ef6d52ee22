"""Filtered queries and lookups by a field (spec/http.md §3.3, §3.4).

The caller's read policy guards the filter (`pylon.query.predicate.Guarded`). A lookup gives the
same 404 for a row that the caller may not read as for one that does not exist.
"""

from __future__ import annotations

from typing import Final

import falcon

from pylon.api.data.access import entity_named, readable, wait_before_absence
from pylon.api.data.query_cache import answer_cached
from pylon.api.http.body import decode_raw, read_body
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.http.responses import send_text
from pylon.api.services import DataServices
from pylon.errors import NotFound
from pylon.query.conditions import equal, guarded
from pylon.query.rows import parse_filter
from pylon.query.shape_text import describe
from pylon.values import decode_query

_SHOWN_CHARS: Final = 200


class EntityQuery:
    """``POST /api/query/{entity}``: a bare array of the rows that match a filter."""

    def __init__(self, services: DataServices) -> None:
        self._services = services
        self._list_limit = services.app.config.list_limit

    def on_post(self, req: falcon.Request, resp: falcon.Response, entity: str) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "read")
        allowed = readable(services.app, named, auth)
        raw = read_body(req)

        def read() -> bytes:
            body = decode_raw(req, services.requests, raw, decode_query)
            query = parse_filter(named, body, self._list_limit, allowed)
            return services.store.scan(
                services.queries.timed(
                    "query", named.name, lambda: describe(query.where, query.order),
                    lambda reader: reader.page(named.name, query),
                ),
                caller=subject_of(req, services.requests),
            )[1]

        key = ("query", named.name, allowed)
        found = answer_cached(services.query_cache, services.store, key, raw, read)
        services.requests.compression.send(req, resp, found)


class Lookup:
    """``GET /api/lookup/{entity}/{field}/{value}``: the first row whose field has the value."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_get(
        self, req: falcon.Request, resp: falcon.Response, entity: str, field: str, value: str
    ) -> None:
        services = self._services
        started_s = services.app.clock.monotonic_s()
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "read")
        allowed = readable(services.app, named, auth)
        row = services.store.scan(
            services.queries.timed(
                "lookup", named.name,
                lambda: describe(guarded(allowed, equal(field, value))),
                lambda reader: reader.lookup(named.name, field, value, allowed),
            ),
            caller=subject_of(req, services.requests),
        )
        if row is None:
            wait_before_absence(services.app, named, auth, started_s)
            raise NotFound(f"{named.name}.{field} = {value[:_SHOWN_CHARS]} not found")
        send_text(resp, row)

    on_head = on_get
