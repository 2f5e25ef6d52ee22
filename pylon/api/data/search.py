"""Faceted full-text search: ``POST /api/search/{entity}`` (spec/http.md §3.7).

The caller's read policy is part of the SQL of hits, total and facet counts alike, so none of
them tells of a row that the caller may not read, and a policy may depend on the row. A row is
compared with the request's filters only after policy has passed it. What the
original ignores (a filter on a field that is no facet, a sort on one that is not sortable, an
unknown member) is refused: it would make a search answer something else than was asked for.

Without a `sort`, hits of a query come by relevance (bm25) and those of an empty one by id, that
is as the rows were made. Facet values are text, as in the rows' JSON; null is no value. All of
an answer is of one commit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import falcon
import orjson

from pylon import limits
from pylon.api.data.access import entity_named, readable
from pylon.api.http.body import decoded, read_body
from pylon.api.http.callers import caller_of, subject_of
from pylon.api.http.responses import joined, send_raw
from pylon.api.services import DataServices
from pylon.errors import InvalidQuery, LimitExceeded, SearchNotConfigured
from pylon.manifest.model import Entity, Field, FieldType, Search
from pylon.storage.clause import SqlClause, Work
from pylon.storage.interface import FacetCounts, Query, Reader
from pylon.storage.names import quote
from pylon.storage.sqlite.conditions import exact_float, is_beyond_64_bits
from pylon.storage.sqlite.search import match_of, search_clause, text_fields, text_of
from pylon.storage.where import NOTHING, and_, judged_first
from pylon.values import INT_MAX, INT_MIN, decode_query, invalid_value

_MEMBERS: Final = ("query", "filters", "facets", "sort", "page", "page_size", "pageSize")
_ID: Final = Field("id", FieldType.ID, optional=False, unique=True)
_NUMBERS: Final = (FieldType.INT, FieldType.FLOAT)
_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_SHOWN_CHARS: Final = 100


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request, understood. `relevance`: see `Query`; it finds the same rows as `words`. `path`:
    what of `filters` an index may serve."""

    words: SqlClause
    filters: SqlClause
    path: SqlClause
    relevance: str | None
    facets: tuple[str, ...]
    order: tuple[tuple[str, bool], ...]
    size: int
    offset: int


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
        wanted = _wanted(named, _search_of(named), asked)
        rows, facet_counts = services.store.scan(
            lambda reader: _find(reader, named, wanted, allowed), inline=not wanted.words.params,
            caller=subject_of(req, services.requests),
        )
        took_ms = round((clock.monotonic_s() - started_s) * 1000)
        send_raw(
            resp,
            b'{"facetCounts":%b,"hits":%b,"total":%d,"tookMs":%d}'
            % (_facet_counts(named, facet_counts), joined(rows), facet_counts.total, took_ms),
        )


def _find(
    reader: Reader, entity: Entity, wanted: _Wanted, allowed: SqlClause
) -> tuple[list[bytes], FacetCounts]:
    where = judged_first(allowed, wanted.filters)
    if wanted.words.work is Work.MATCH:
        everything = and_(wanted.words, where)  # the index leads
    else:
        asked = and_(wanted.words, wanted.filters)
        everything = judged_first(allowed, asked, wanted.path)
    query = Query(
        everything if wanted.relevance is None else where,
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


# --- What a request asks for --------------------------------------------------------------------


def _search_of(entity: Entity) -> Search:
    if entity.search is not None:
        return entity.search
    example = {
        "text": [f.name for f in entity.fields
                 if f.type in (FieldType.STRING, FieldType.RICHTEXT)],
        "facets": [f.name for f in entity.fields if f.type is FieldType.BOOL],
        "sortable": [f.name for f in entity.fields
                     if f.type in (*_NUMBERS, FieldType.DATETIME)],
    }
    raise SearchNotConfigured(
        f"{entity.name} has no search config",
        hint=f'Add to the entity {entity.name} in the manifest: "search": '
        + orjson.dumps(example).decode(),
        entity=entity.name,
    )


def _wanted(entity: Entity, search: Search, body: object) -> _Wanted:
    """
    Raises:
        InvalidQuery, InvalidValue, LimitExceeded: the request cannot be understood.
    """
    if not isinstance(body, dict):
        raise InvalidQuery('A search must be a JSON object, for example {"query": "word"}')
    for name in body:
        if name not in _MEMBERS:
            raise InvalidQuery(
                f'A search has no "{name[:_SHOWN_CHARS]}" -- it may have: {", ".join(_MEMBERS)}'
            )
    query = body.get("query")
    if query is not None and not isinstance(query, str):
        raise InvalidQuery("query must be a text")
    order = _order(search, body.get("sort"))
    match = match_of(entity, query) if query and text_fields(entity) else None
    size = _page_size(body)
    filters = _filters(entity, search, body.get("filters"))
    first = {columns[0] for columns in entity.index_columns}
    return _Wanted(
        words=search_clause(entity, query or ""),
        filters=and_(*filters.values()),
        path=and_(*[clause for name, clause in filters.items() if name in first]),
        relevance=None if order else match,
        facets=_facets(search, body.get("facets")),
        order=order,
        size=size,
        offset=_page(body, size) * size,
    )


def _filters(entity: Entity, search: Search, filters: object) -> dict[str, SqlClause]:
    """A condition for each field that the request names."""
    if filters is None:
        return {}
    if not isinstance(filters, dict):
        raise InvalidQuery('filters must be an object, for example {"field": "value"}')
    clauses: dict[str, SqlClause] = {}
    for name, value in filters.items():
        if name not in search.facets:
            raise _not_among("filters", name, "facets", search.facets)
        field = entity.by_name.get(name, _ID)
        if isinstance(value, list):
            clauses[name] = _any_of(entity, field, value)
        elif value is None:
            clauses[name] = SqlClause(f"{quote(name)} IS NULL")
        else:
            operand = _operand(entity, field, value)
            clauses[name] = SqlClause(f"{quote(name)} = ?", (operand,))
    return clauses


def _any_of(entity: Entity, field: Field, values: list[Any]) -> SqlClause:
    if len(values) > limits.FILTER_TERMS:
        raise LimitExceeded(
            f"A filter may list {limits.FILTER_TERMS} values at most (field {field.name})"
        )
    column = quote(field.name)
    members = [_operand(entity, field, value) for value in values if value is not None]
    clauses = [
        *([f"{column} IN (SELECT value FROM json_each(?))"] if members else []),
        *([f"{column} IS NULL"] if None in values else []),
    ]
    if not clauses:
        return NOTHING
    params = (orjson.dumps(members).decode(),) if members else ()
    return SqlClause(" OR ".join(clauses), params)


def _operand(entity: Entity, field: Field, value: object) -> object:
    """A filter's value, which may be given as the text that facet counts have, as in SQL."""
    if field.type is FieldType.BOOL:
        if isinstance(value, bool):
            return int(value)
        if value in ("true", "false"):
            return int(value == "true")
    elif field.type in _NUMBERS:
        number: Any = _number(value) if isinstance(value, str) else value
        if is_beyond_64_bits(number) and field.type is FieldType.FLOAT:
            number = exact_float(number)
        if isinstance(number, float) or (
            isinstance(number, int) and not isinstance(number, bool)
            and INT_MIN <= number <= INT_MAX
        ):
            return number
    elif isinstance(value, str):
        return value
    raise invalid_value(entity, field, value)


def _number(text: str) -> int | float | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    if found[1] is None and found[2] is None:
        return int(text)
    number = float(text)
    return number if abs(number) != float("inf") else None


def _facets(search: Search, facets: object) -> tuple[str, ...]:
    if facets is None:
        return ()
    if not isinstance(facets, list):
        raise InvalidQuery('facets must be a list of fields, for example ["field"]')
    for name in facets:
        if name not in search.facets:
            raise _not_among("facets", name, "facets", search.facets)
    return tuple(dict.fromkeys(facets))


def _order(search: Search, sort: object) -> tuple[tuple[str, bool], ...]:
    if sort is None or sort == []:
        return ()
    if not isinstance(sort, list) or len(sort) != 2 or sort[1] not in ("asc", "desc"):
        raise InvalidQuery('sort must be a field and "asc" or "desc", for example ["field","asc"]')
    if sort[0] not in search.sortable:
        raise _not_among("sort", sort[0], "sortable fields", search.sortable)
    return ((sort[0], sort[1] == "desc"),)


def _not_among(where: str, name: object, what: str, known: tuple[str, ...]) -> InvalidQuery:
    shown = name[:_SHOWN_CHARS] if isinstance(name, str) else "(not text)"
    listed = ", ".join(known) or "none"
    return InvalidQuery(f'{where}: "{shown}" is not one of the {what} -- {what}: {listed}')


def _page_size(body: Mapping[str, Any]) -> int:
    for name in ("page_size", "pageSize"):
        if body.get(name) is not None:
            return min(max(_whole(name, body[name]), 1), limits.SEARCH_PAGE_MAX)
    return limits.SEARCH_PAGE_DEFAULT


def _page(body: Mapping[str, Any], size: int) -> int:
    page = 0 if body.get("page") is None else _whole("page", body["page"])
    if not 0 <= page <= INT_MAX // size:
        raise InvalidQuery(f"page must be a whole number from 0, and is {page}")
    return page


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidQuery(f"{name} must be a whole number")
    return value
