"""Faceted full-text search: ``POST /api/search/{entity}`` (spec/http.md §3.7).

`pylon.query.search` parses the body. The caller's read policy is part of the condition of hits,
total and facet counts, so that none of them depends on a row that the caller may not read. The
store compares a row with the filters only after the policy has passed it. The original server
ignores a filter on a field that is no facet, a sort on one that is not sortable, and an unknown
member; this one refuses them, because the result would be that of another search.

Without a `sort`, the hits of a query come by relevance (bm25), and those of an empty query by id,
in the order in which the rows were made. Facet values are texts, as in the JSON of rows; null is
not counted.

Invariant: all of a response is of one commit.
"""

from __future__ import annotations

import falcon
import orjson

from pylon import limits
from pylon.api.data.access import entity_named, readable
from pylon.api.http.body import decode_raw, read_body
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.http.responses import join_rows
from pylon.api.services import DataServices
from pylon.errors import SearchNotConfigured
from pylon.manifest.model import Entity, FieldType, Search
from pylon.query.conditions import guarded
from pylon.query.operands import NUMBERS
from pylon.query.predicate import Predicate
from pylon.query.rows import Query
from pylon.query.search import FacetedSearch, parse_search
from pylon.query.shape_text import describe
from pylon.query.words import text_of
from pylon.storage.interface import Reader
from pylon.storage.records import FacetCounts
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
        named = entity_named(services.app, entity, auth, "read")
        allowed = readable(services.app, named, auth)
        body = decode_raw(req, services.requests, read_body(req), decode_query)
        wanted = parse_search(named, _require_search(named), body)
        rows, facet_counts = services.store.scan(
            services.queries.timed(
                "search", named.name, lambda: describe(wanted.rows_of(allowed), wanted.order),
                lambda reader: _find(reader, named, wanted, allowed),
            ),
            inline=not wanted.has_words,
            caller=subject_of(req, services.requests),
        )
        took_ms = round((clock.monotonic_s() - started_s) * 1000)
        services.requests.compression.send(
            req, resp,
            b'{"facetCounts":%b,"hits":%b,"total":%d,"tookMs":%d}'
            % (
                _encode_facet_counts(named, facet_counts), join_rows(rows), facet_counts.total,
                took_ms,
            ),
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


def _encode_facet_counts(entity: Entity, facet_counts: FacetCounts) -> bytes:
    counts = {
        name: {str(text_of(entity.by_name.get(name), value)): count for value, count in values}
        for name, values in facet_counts.by_field.items()
    }
    return orjson.dumps(counts, option=orjson.OPT_SORT_KEYS)


def _require_search(entity: Entity) -> Search:
    """Return the search config of an entity.

    Raises:
        SearchNotConfigured: it has none; the hint is a config for its fields.
    """
    if entity.search is not None:
        return entity.search
    example = {
        "text": [f.name for f in entity.fields
                 if f.type in (FieldType.STRING, FieldType.RICHTEXT)],
        "facets": [f.name for f in entity.fields if f.type in (FieldType.BOOL, FieldType.ENUM)],
        "sortable": [f.name for f in entity.fields
                     if f.type in (
                         *NUMBERS, FieldType.DECIMAL, FieldType.DATETIME, FieldType.DATE
                     )],
    }
    raise SearchNotConfigured(
        f"{entity.name} has no search config",
        hint=f'Add to the entity {entity.name} in the manifest: "search": '
        + orjson.dumps(example).decode(),
        entity=entity.name,
    )
