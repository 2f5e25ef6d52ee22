"""Export of all rows, for admins (spec/http.md §3.16): one JSON document, or JSON lines.

The document is the wire's. With ``Accept: application/x-ndjson`` each line is
``{"entity", "row"}``, which `/api/import` accepts. Both are read in pages by id and streamed, so
an export of any size needs the memory of one page. An export is the one answer with hidden fields,
since an import has to bring them back. Each page is of one commit, but not all pages
are of the same one; a backup is a copy of one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Final

import falcon
import orjson

from pylon import limits
from pylon.api.data.access import entity_named
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.http.responses import join_rows
from pylon.api.services import DataServices
from pylon.changelog.pull import read_page
from pylon.errors import Forbidden
from pylon.manifest.model import Entity
from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from pylon.storage.public_rows import whole_store

JSON_LINES: Final = "application/x-ndjson"


class Export:
    """``GET /api/export`` and ``GET /api/export/{entity}``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_get(
        self, req: falcon.Request, resp: falcon.Response, entity: str | None = None
    ) -> None:
        services = self._services
        auth = caller_of(req, services.requests).auth
        if not auth.is_admin:
            raise Forbidden("Admin access required for data export")
        entities: tuple[Entity, ...] = services.app.manifest.entities
        if entity is not None:
            entities = (entity_named(services.app, entity, auth, "read"),)
        turns, caller = services.turns, subject_of(req, services.requests)
        if JSON_LINES in req.env.get("HTTP_ACCEPT", ""):
            resp.content_type = JSON_LINES
            pieces = self._lines(entities, caller)
        else:
            pieces = self._document(entities, caller)
        services.requests.compression.stream(req, resp, turns.paced(pieces, caller))

    def _lines(self, entities: Iterable[Entity], caller: str) -> Iterator[bytes]:
        for entity in entities:
            head = b'{"entity":%b,"row":' % orjson.dumps(entity.name)
            for page in self._pages(entity, caller):
                yield b"".join([b"%b%b}\n" % (head, row) for row in page])

    def _document(self, entities: Iterable[Entity], caller: str) -> Iterator[bytes]:
        counts: dict[str, int] = {}
        now = datetime.fromtimestamp(self._services.app.clock.wall_ns() / 1e9, UTC)
        stamp = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        piece = b'{"entities":{'
        for entity in entities:
            piece += b"%b%b:[" % (b"," if counts else b"", orjson.dumps(entity.name))
            counts[entity.name] = 0
            for page in self._pages(entity, caller):
                piece += b"," if counts[entity.name] else b""
                counts[entity.name] += len(page)
                yield piece + join_rows(page)[1:-1]
                piece = b""
            piece += b"]"
        yield piece + b'},"counts":%b,"exported_at":"%b"}' % (
            orjson.dumps(counts), stamp.encode(),
        )

    def _pages(self, entity: Entity, caller: str) -> Iterator[list[bytes]]:
        after_id: str | None = None
        while True:
            query = Query(TRUE, limit=limits.SNAPSHOT_PAGE_ROWS, after_id=after_id)
            page, has_more = whole_store(self._services.store).scan(
                partial(read_page, entity=entity.name, query=query), caller=caller
            )
            if page:
                yield page
            if not has_more:
                return
            after_id = orjson.loads(page[-1])["id"]
