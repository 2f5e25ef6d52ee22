"""Filtered queries and look-ups by a field (spec/http.md §3.3, §3.4).

The caller's read policy is ANDed to the filter in SQL. A look-up never tells a row that the
caller may not read from one that is not there.
"""

from __future__ import annotations

from typing import Final

import falcon

from pylon.api.access import entity_named, may_see, readable
from pylon.api.answers import send_raw
from pylon.api.body import decoded, read_body
from pylon.api.callers import caller_of, subject_of
from pylon.api.remembered import answered, scope_of
from pylon.api.services import Services
from pylon.errors import NotFound
from pylon.manifest.model import Entity, FieldType
from pylon.storage.clause import SqlClause
from pylon.storage.contract import Query
from pylon.storage.names import quote
from pylon.storage.sqlite.filters import parse_filter
from pylon.storage.where import and_
from pylon.values import decode_query

_SHOWN_CHARS: Final = 200
_BOOL_TEXT: Final[dict[str, str | int]] = {"true": 1, "false": 0}


class EntityQuery:
    """``POST /api/query/{entity}``: a bare array of the rows that match a filter."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._list_limit = services.app.config.list_limit

    def on_post(self, req: falcon.Request, resp: falcon.Response, entity: str) -> None:
        services = self._services
        auth = caller_of(req, services).auth
        named = entity_named(services.app, entity, auth)
        allowed = readable(services.app, named, auth)
        raw = read_body(req)

        def read() -> bytes:
            asked = decoded(req, services, raw, decode_query)
            query = parse_filter(named, asked, self._list_limit, allowed)
            return services.store.scan(
                lambda reader: reader.page(named.name, query), caller=subject_of(req, services)
            )[1]

        key = ("query", named.name, scope_of(allowed, auth))
        send_raw(resp, answered(services.answers, services.store, key, raw, read))


class Lookup:
    """``GET /api/lookup/{entity}/{field}/{value}``: the first row whose field has the value."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_get(
        self, req: falcon.Request, resp: falcon.Response, entity: str, field: str, value: str
    ) -> None:
        services = self._services
        auth = caller_of(req, services).auth
        named = entity_named(services.app, entity, auth)
        allowed = readable(services.app, named, auth)
        who = subject_of(req, services)
        row = services.store.scan(
            lambda reader: reader.lookup(named.name, field, value), caller=who
        )
        if row is not None and not may_see(services.app, named, auth, row):
            # The first one is hidden from this caller: is there another?
            query = Query(where=and_(_equals(named, field, value), allowed), limit=1)
            rows = services.store.scan(lambda reader: reader.rows(named.name, query), caller=who)
            row = rows[0] if rows else None
        if row is None:
            raise NotFound(f"{named.name}.{field} = {value[:_SHOWN_CHARS]} not found")
        send_raw(resp, row)

    on_head = on_get


def _equals(entity: Entity, name: str, value: str) -> SqlClause:
    """The same comparison as `Reader.lookup`: text from a URL against a field of any type."""
    field = entity.by_name.get(name)
    is_bool = field is not None and field.type is FieldType.BOOL
    param = _BOOL_TEXT.get(value, value) if is_bool else value
    return SqlClause(f"{quote(name)} = ?", (param,))
