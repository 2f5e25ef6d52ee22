"""Faceted full-text search: ``POST /api/search/{entity}`` (spec/http.md §3.7).

The caller's read policy is part of the condition of hits, total and facet counts alike, so none of
them tells of a row that the caller may not read, and a policy may depend on the row. A row is
compared with the request's filters only after policy has passed it. What the
original ignores (a filter on a field that is no facet, a sort on one that is not sortable, an
unknown member) is refused: it would make a search answer something else than was asked for.

Without a `sort`, hits of a query come by relevance (bm25) and those of an empty one by id, that
is as the rows were made. Facet values are text, as in the rows' JSON; null is no value. All of
an answer is of one commit.
"""

from __future__ import annotations

import falcon
import orjson

from pylon import limits
from pylon.api.data.access import entity_named, readable
from pylon.api.http.body import decoded, read_body
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.http.responses import joined, send_raw
from pylon.api.services import DataServices
from pylon.errors import SearchNotConfigured
from pylon.manifest.model import Entity, FieldType, Search
from pylon.query.parse import NUMBERS
from pylon.query.predicate import Predicate, guarded
from pylon.query.rows import Query
from pylon.query.search import FacetedSearch, parse_search
from pylon.query.words import text_of
from pylon.storage.interface import FacetCounts, Reader
from pylon.values import decode_query


class EntitySearch:
    """``POST /api/search/{entity}``."""

    def __init__(self, services: DataServices) -> None:
        self._services = services

    def on_post(self, req: falcon.Request, resp: falcon.Response, entity: str) -> None:
        services = self._services
        clock = services.app.clock
        started_s = clock.monotonic_s()
        auth = caller_of(req, services.requests).auth
        named = entity_named(services.app, entity, auth)
        allowed = readable(services.app, named, auth)
        asked = decoded(req, services.requests, read_body(req), decode_query)
        wanted = parse_search(named, _search_of(named), asked)
        rows, facet_counts = services.store.scan(
            lambda reader: _find(reader, named, wanted, allowed), inline=not wanted.has_words,
            caller=subject_of(req, services.requests),
        )
        took_ms = round((clock.monotonic_s() - started_s) * 1000)
        send_raw(
            resp,
            b'{"facetCounts":%b,"hits":%b,"total":%d,"tookMs":%d}'
            % (_facet_counts(named, facet_counts), joined(rows), facet_counts.total, took_ms),
        )


def _find(
    reader: Reader, entity: Entity, wanted: FacetedSearch, allowed: Predicate
) -> tuple[list[bytes], FacetCounts]:
    everything = wanted.rows_of(allowed)
    query = Query(
        everything if wanted.relevance is None else guarded(allowed, wanted.filters),
        wanted.size, wanted.order, wanted.offset, relevance=wanted.relevance,
    )

    def read() -> tuple[list[bytes], FacetCounts]:
        rows = reader.rows(entity.name, query)
        is_last = len(rows) < wanted.size and (rows or not wanted.offset)
        if is_last and not wanted.facets:
            return rows, FacetCounts(wanted.offset + len(rows), {})
        counts = reader.facet_counts(
            entity.name, everything, wanted.facets, limits.FACET_VALUES
        )
        return rows, counts

    return reader.at_one_commit(read)


def _facet_counts(entity: Entity, facet_counts: FacetCounts) -> bytes:
    counts = {
        name: {str(text_of(entity.by_name.get(name), value)): count for value, count in values}
        for name, values in facet_counts.by_field.items()
    }
    return orjson.dumps(counts, option=orjson.OPT_SORT_KEYS)


def _search_of(entity: Entity) -> Search:
    if entity.search is not None:
        return entity.search
    example = {
        "text": [f.name for f in entity.fields
                 if f.type in (FieldType.STRING, FieldType.RICHTEXT)],
        "facets": [f.name for f in entity.fields if f.type is FieldType.BOOL],
        "sortable": [f.name for f in entity.fields
                     if f.type in (*NUMBERS, FieldType.DATETIME)],
    }
    raise SearchNotConfigured(
        f"{entity.name} has no search config",
        hint=f'Add to the entity {entity.name} in the manifest: "search": '
        + orjson.dumps(example).decode(),
        entity=entity.name,
    )
