"""Rows by entity: list, cursor page, get, insert, update, delete (spec/http.md §3.2).

The read policy is part of the query, so `limit` is the number of rows that the caller may read. A
row is sent as the JSON text that it is stored with.
"""

from __future__ import annotations

import falcon
import orjson

from pylon import limits
from pylon.api.data import changes
from pylon.api.data.access import entity_named, readable, wait_before_absence
from pylon.api.data.conflicts import submit
from pylon.api.data.query_cache import answer_cached
from pylon.api.http.body import decode_json, read_body
from pylon.api.http.callers import address_of, caller_of, subject_of
from pylon.api.http.idempotency import key_of, mark_replayed
from pylon.api.http.parameters import read_flag, read_number, read_text
from pylon.api.http.responses import join_rows, send_json, send_text
from pylon.api.http.versions import (
    SEQ_HEADER,
    if_match,
    is_known,
    set_etag,
    set_written_version,
)
from pylon.api.services import DataServices
from pylon.errors import InvalidQuery, LimitExceeded, NotFound
from pylon.manifest.model import Entity
from pylon.query.predicate import Predicate
from pylon.query.rows import Query
from pylon.query.shape_text import describe
from pylon.storage.interface import Reader
from pylon.storage.ops import WriteReply
from pylon.values import INT_MAX


class EntityList:
    """``/api/entities/{entity}``: the rows as a whole."""

    def __init__(self, services: DataServices) -> None:
        self._services = services
        self._list_limit = services.app.config.list_limit

    def on_get(self, req: falcon.Request, resp: falcon.Response, entity: str) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "read")
        where = readable(services.app, named, auth)
        if "page" in req.params or "per_page" in req.params:
            self._send_numbered(req, resp, named, where)
            return
        limit = read_number(req, "limit")
        if limit is not None and limit > self._list_limit:
            raise LimitExceeded(
                f"limit {limit} exceeds the most that one list answers, {self._list_limit} "
                "(PYLON_LIST_LIMIT)",
                hint="Use smaller pages, or GET /api/entities/<Entity>/cursor",
            )
        offset = read_number(req, "offset") or 0
        query = Query(
            where=where, limit=self._list_limit if limit is None else limit, offset=offset
        )
        with_total = read_flag(req, "count")

        def read() -> bytes:
            count, rows, total = services.store.scan(
                services.queries.timed(
                    "list", named.name, lambda: f"policy({describe(where)})",
                    lambda reader: _read_list(reader, named.name, query, with_total),
                ),
                caller=subject_of(req, services.requests),
            )
            return b'{"count":%d,"data":%b,"limit":%b,"offset":%d%b}' % (
                count, rows, b"null" if limit is None else b"%d" % limit, offset,
                b"" if total is None else b',"total":%d' % total,
            )

        key = ("list", named.name, where, limit, offset, with_total)
        found = answer_cached(services.query_cache, services.store, key, b"", read)
        services.requests.compression.send(req, resp, found)

    on_head = on_get

    def _send_numbered(
        self, req: falcon.Request, resp: falcon.Response, entity: Entity, where: Predicate
    ) -> None:
        """Send a page by its number, as version 0.11 of the published server does.

        Raises:
            InvalidQuery: a number that is none, or `limit` or `offset` beside them.
            LimitExceeded: `per_page` is above PYLON_LIST_LIMIT.
        """
        services = self._services
        for name in ("limit", "offset", "count"):
            if name in req.params:
                raise InvalidQuery(
                    f"{name} does not go with page and per_page -- use limit and offset, or page "
                    "and per_page"
                )
        number = read_number(req, "page", low=1) or 1
        size = read_number(req, "per_page", low=1) or limits.NUMBERED_PAGE_ROWS
        if size > self._list_limit:
            raise LimitExceeded(
                f"per_page {size} exceeds the most that one list answers, {self._list_limit} "
                "(PYLON_LIST_LIMIT)"
            )
        offset = min((number - 1) * size, INT_MAX)
        query = Query(where=where, limit=size, offset=offset)

        def read() -> bytes:
            _, rows, total = services.store.scan(
                services.queries.timed(
                    "list", entity.name, lambda: f"policy({describe(where)})",
                    lambda reader: _read_list(reader, entity.name, query, with_total=True),
                ),
                caller=subject_of(req, services.requests),
            )
            return b'{"data":%b,"page":%d,"per_page":%d,"total":%d}' % (
                rows, number, size, total or 0,
            )

        key = ("numbered", entity.name, where, number, size)
        found = answer_cached(services.query_cache, services.store, key, b"", read)
        services.requests.compression.send(req, resp, found)

    def on_post(self, req: falcon.Request, resp: falcon.Response, entity: str) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "write")
        raw = read_body(req)
        key = key_of(req, services.requests, auth, raw)
        body = decode_json(req, services.requests, raw)
        op = changes.make_insert(services.app, named, auth, body, key)
        reply = submit(services, auth, lambda: address_of(req, services.requests), op)
        _set_version(req, resp, reply)
        send_json(resp, {"id": reply.row_id or op.row_id}, 201)


def _read_list(
    reader: Reader, entity: str, query: Query, with_total: bool
) -> tuple[int, bytes, int | None]:
    """Return the number of rows, the rows, and the number without limit and offset if wanted."""
    if not with_total:
        return *reader.page(entity, query), None
    return reader.at_one_commit(
        lambda: (*reader.page(entity, query), reader.count(entity, query.where))
    )


class EntityPage:
    """``/api/entities/{entity}/cursor``: keyset pages in id order.

    A row with the id ``cursor`` can be read by lookup or query; `routing` leads its PATCH and
    DELETE to `EntityRow`.
    """

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response, entity: str) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "read")
        where = readable(services.app, named, auth)
        asked = read_number(req, "limit", low=1)
        limit = min(asked or limits.CURSOR_PAGE_DEFAULT, limits.CURSOR_PAGE_MAX)
        query = Query(where=where, limit=limit + 1, after_id=read_text(req, "after") or None)
        rows, is_cut = services.store.scan(
            services.queries.timed(
                "page", named.name, lambda: f"policy({describe(where)})",
                lambda reader: reader.rows_within(named.name, query, limits.LIST_BYTES),
            ),
            caller=subject_of(req, services.requests),
        )
        page = rows[:limit]
        has_more = len(rows) > limit or is_cut  # limits.LIST_BYTES cuts a page of large rows
        cursor = orjson.dumps(orjson.loads(page[-1])["id"]) if page else b"null"
        services.requests.compression.send(
            req, resp,
            b'{"data":%b,"has_more":%b,"next_cursor":%b}'
            % (join_rows(page), b"true" if has_more else b"false", cursor),
        )

    on_head = on_get


class EntityRow:
    """``/api/entities/{entity}/{row_id}``: one row."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_get(
        self, req: falcon.Request, resp: falcon.Response, entity: str, row_id: str
    ) -> None:
        services = self._services
        started_s = services.app.clock.monotonic_s()
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "read")
        allowed = readable(services.app, named, auth)
        found = services.store.point(
            lambda reader: reader.get_version(named.name, row_id, allowed)
        )
        if found is None:
            wait_before_absence(services.app, named, auth, started_s)
            raise NotFound(f'{named.name} with id "{row_id}" not found')
        row, seq = found
        if seq is not None:
            set_etag(resp, seq)
            if is_known(req, seq):
                resp.status = 304
                return
        send_text(resp, row)

    on_head = on_get

    def on_patch(
        self, req: falcon.Request, resp: falcon.Response, entity: str, row_id: str
    ) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "write")
        raw = read_body(req)
        key = key_of(req, services.requests, auth, raw)
        body = decode_json(req, services.requests, raw)
        op = changes.make_update(services.app, named, auth, row_id, body, key, if_match(req))
        reply = submit(services, auth, lambda: address_of(req, services.requests), op)
        _set_version(req, resp, reply)
        send_json(resp, {"updated": True})

    def on_delete(
        self, req: falcon.Request, resp: falcon.Response, entity: str, row_id: str
    ) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth, "delete")
        key = key_of(req, services.requests, auth, b"")
        op = changes.make_delete(named, auth, row_id, key, if_match(req))
        reply = submit(services, auth, lambda: address_of(req, services.requests), op)
        resp.set_header(SEQ_HEADER, str(reply.seq))
        if reply.replayed:
            mark_replayed(resp)
        send_json(resp, {"deleted": True})


def _set_version(req: falcon.Request, resp: falcon.Response, reply: WriteReply) -> None:
    set_written_version(req, resp, reply.seq)
    if reply.replayed:
        mark_replayed(resp)
