"""Searches with facets (spec/http.md §3.7): the body of a request becomes a `FacetedSearch`.

A filter's value may be the text that facet counts have. The parser refuses a filter on a field
that is no facet, a sort on a field that is not sortable, and an unknown member.

Called by the search resource, which gives the trees to the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType, Search
from pylon.query.parse import ID, NUMBERS, exact_float, is_beyond_64_bits
from pylon.query.predicate import (
    TRUE,
    Constant,
    Match,
    Predicate,
    and_,
    equal,
    guarded,
    in_values,
)
from pylon.query.words import parse_match, parse_words
from pylon.values import INT_MAX, INT_MIN, invalid_value

_MEMBERS: Final = ("query", "filters", "facets", "sort", "page", "page_size", "pageSize")
_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_SHOWN_CHARS: Final = 100


@dataclass(frozen=True, slots=True)
class FacetedSearch:
    """A search: the rows of `words` and `filters`, and counts of the values of `facets`.

    `relevance` finds the same rows as `words`, and gives them an order; it is None where the
    request has an order of its own.
    """

    words: Predicate
    filters: Predicate
    relevance: Match | None
    facets: tuple[str, ...]
    order: tuple[tuple[str, bool], ...]
    size: int
    offset: int

    @property
    def has_words(self) -> bool:
        """Whether the search looks into texts."""
        return not isinstance(self.words, Constant)

    def rows_of(self, allowed: Predicate) -> Predicate:
        """The rows of `allowed` that the search finds."""
        if isinstance(self.words, Match):
            return and_(self.words, guarded(allowed, self.filters))
        return guarded(allowed, and_(self.words, self.filters))


def parse_search(entity: Entity, search: Search, body: object) -> FacetedSearch:
    """The search that the body of a request asks for.

    Raises:
        InvalidQuery, InvalidValue, LimitExceeded: the request is malformed.
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
    order = _parse_order(search, body.get("sort"))
    match = parse_match(entity, query) if query else None
    size = _parse_page_size(body)
    filters = _parse_filters(entity, search, body.get("filters"))
    return FacetedSearch(
        words=parse_words(entity, query or ""),
        filters=filters,
        relevance=None if order else match,
        facets=_parse_facets(search, body.get("facets")),
        order=order,
        size=size,
        offset=_parse_page(body, size) * size,
    )


def _parse_filters(entity: Entity, search: Search, filters: object) -> Predicate:
    """A condition for each field that the request names."""
    if filters is None:
        return TRUE
    if not isinstance(filters, dict):
        raise InvalidQuery('filters must be an object, for example {"field": "value"}')
    found: list[Predicate] = []
    for name, value in filters.items():
        if name not in search.facets:
            raise _not_among("filters", name, "facets", search.facets)
        field = entity.by_name.get(name, ID)
        if isinstance(value, list):
            found.append(_parse_any_of(entity, field, value))
        elif value is None:
            found.append(equal(name, None))
        else:
            found.append(equal(name, _parse_operand(entity, field, value)))
    return and_(*found)


def _parse_any_of(entity: Entity, field: Field, values: list[Any]) -> Predicate:
    if len(values) > limits.FILTER_TERMS:
        raise LimitExceeded(
            f"A filter may list {limits.FILTER_TERMS} values at most (field {field.name})"
        )
    members = [_parse_operand(entity, field, value) for value in values if value is not None]
    if field.type is FieldType.FLOAT:
        members = [member for member in map(exact_float, members) if member is not None]
    return in_values(field.name, tuple(members), None in values)


def _parse_operand(entity: Entity, field: Field, value: object) -> Any:
    """The value of a filter, which may be the text that facet counts have."""
    if field.type is FieldType.BOOL:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
    elif field.type in NUMBERS:
        number: Any = _parse_number(value) if isinstance(value, str) else value
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


def _parse_number(text: str) -> int | float | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    if found[1] is None and found[2] is None:
        return int(text)
    number = float(text)
    return number if abs(number) != float("inf") else None


def _parse_facets(search: Search, facets: object) -> tuple[str, ...]:
    if facets is None:
        return ()
    if not isinstance(facets, list):
        raise InvalidQuery('facets must be a list of fields, for example ["field"]')
    for name in facets:
        if name not in search.facets:
            raise _not_among("facets", name, "facets", search.facets)
    return tuple(dict.fromkeys(facets))


def _parse_order(search: Search, sort: object) -> tuple[tuple[str, bool], ...]:
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


def _parse_page_size(body: Mapping[str, Any]) -> int:
    for name in ("page_size", "pageSize"):
        if body.get(name) is not None:
            return min(max(_parse_whole(name, body[name]), 1), limits.SEARCH_PAGE_MAX)
    return limits.SEARCH_PAGE_DEFAULT


def _parse_page(body: Mapping[str, Any], size: int) -> int:
    page = 0 if body.get("page") is None else _parse_whole("page", body["page"])
    if not 0 <= page <= INT_MAX // size:
        raise InvalidQuery(f"page must be a whole number from 0, and is {page}")
    return page


def _parse_whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidQuery(f"{name} must be a whole number")
    return value
