"""Searches with facets: parses the body of a request into a `FacetedSearch` (spec/http.md §3.7).

Facet counts name each value as a text; a filter takes such a text as well as the value itself.

Invariant: the parser refuses a filter on a field that is no facet, a sort on a field that is not
sortable, and an unknown member. Called by the search resource, which passes the trees to the store.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, field

from pylon import limits
from pylon.body_types import BodyType, Refusal
from pylon.errors import SHOWN_CHARS, InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType, Search
from pylon.query.conditions import and_, equal, guarded, in_values
from pylon.query.operands import ID, NUMBERS, exact_float, is_beyond_64_bits, text_operand
from pylon.query.predicate import TRUE, Constant, Match, Predicate
from pylon.query.words import parse_match, parse_words
from pylon.values import INT_MAX, INT_MIN, invalid_value
from pylon.values.notations import notation_of

_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_SORT_EXPECTED: Final = 'a field and "asc" or "desc", for example ["field","asc"]'


_Size = Annotated[
    int | None,
    Meta(description=f"Cut to 1..{limits.SEARCH_PAGE_MAX}", extra_json_schema={"minimum": 0}),
    Refusal(wrong=InvalidQuery, expected="a whole number"),
]


class SearchBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Words and facet values that the hits have, their order, and the page of them."""

    query: Annotated[
        str | None,
        Meta(
            description=f"At most {limits.SEARCH_WORDS} words, all of which a hit has. The last "
            "one also finds words that begin with it, from its second letter on and unless "
            "white space follows it",
            extra_json_schema={"maxLength": limits.SEARCH_CHARS},
        ),
        Refusal(wrong=InvalidQuery, expected="a text"),
    ] = None
    filters: Annotated[
        dict[str, Any] | None,
        Refusal(wrong=InvalidQuery, expected='an object, for example {"field": "value"}'),
    ] = None
    facets: Annotated[
        list[Any] | None,
        Refusal(wrong=InvalidQuery, expected='a list of fields, for example ["field"]'),
    ] = None
    sort: Annotated[
        list[Any] | None,
        Refusal(wrong=InvalidQuery, expected=_SORT_EXPECTED),
    ] = None
    page: Annotated[
        int | None,
        Meta(
            description="The first page is 0",
            extra_json_schema={"minimum": 0, "maximum": INT_MAX // limits.SEARCH_PAGE_MAX},
        ),
        Refusal(wrong=InvalidQuery, expected="a whole number"),
    ] = None
    page_size: _Size = None
    page_size_alias: _Size = field(default=None, name="pageSize")


SEARCH: Final = BodyType(SearchBody, '{"query": "word"}', noun="A search", error=InvalidQuery)


class FacetedSearch(msgspec.Struct, frozen=True):
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
    typed = SEARCH.convert(body)
    order = _parse_order(search, typed.sort)
    match = parse_match(entity, typed.query) if typed.query else None
    size = _parse_page_size(typed)
    return FacetedSearch(
        words=parse_words(entity, typed.query or ""),
        filters=_parse_filters(entity, search, typed.filters),
        relevance=None if order else match,
        facets=_parse_facets(search, typed.facets),
        order=order,
        size=size,
        offset=_parse_page(typed, size) * size,
    )


def _parse_filters(
    entity: Entity, search: Search, filters: dict[str, Any] | None
) -> Predicate:
    """A condition for each field that the request names."""
    if filters is None:
        return TRUE
    found: list[Predicate] = []
    for name, value in filters.items():
        if name not in search.facets:
            raise _not_among("filters", name, "facets", search.facets)
        field = entity.by_name.get(name, ID)
        if isinstance(value, list):
            found.append(_parse_any_of(entity, field, value))
        elif value is None:
            found.append(equal(name, None, notation_of(field)))
        else:
            operand = _parse_operand(entity, field, value)
            found.append(equal(name, operand, notation_of(field)))
    return and_(*found)


def _parse_any_of(entity: Entity, field: Field, values: list[Any]) -> Predicate:
    if len(values) > limits.FILTER_TERMS:
        raise LimitExceeded(
            f"A filter may list {limits.FILTER_TERMS} values at most (field {field.name})"
        )
    members = [_parse_operand(entity, field, value) for value in values if value is not None]
    if field.type is FieldType.FLOAT:
        members = [member for member in map(exact_float, members) if member is not None]
    return in_values(field.name, tuple(members), None in values, notation_of(field))


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
    elif isinstance(value, str) or field.type is FieldType.DECIMAL:
        text = text_operand(field, value)
        if text is not None:
            return text
    raise invalid_value(entity, field, value)


def _parse_number(text: str) -> int | float | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    if found[1] is None and found[2] is None:
        return int(text)
    number = float(text)
    return number if abs(number) != float("inf") else None


def _parse_facets(search: Search, facets: list[Any] | None) -> tuple[str, ...]:
    if facets is None:
        return ()
    for name in facets:
        if name not in search.facets:
            raise _not_among("facets", name, "facets", search.facets)
    return tuple(dict.fromkeys(facets))


def _parse_order(search: Search, sort: list[Any] | None) -> tuple[tuple[str, bool], ...]:
    if not sort:
        return ()
    if len(sort) != 2 or sort[1] not in ("asc", "desc"):
        raise InvalidQuery(f"sort must be {_SORT_EXPECTED}")
    if sort[0] not in search.sortable:
        raise _not_among("sort", sort[0], "sortable fields", search.sortable)
    return ((sort[0], sort[1] == "desc"),)


def _not_among(where: str, name: object, what: str, known: tuple[str, ...]) -> InvalidQuery:
    shown = name[:SHOWN_CHARS] if isinstance(name, str) else "(not text)"
    listed = ", ".join(known) or "none"
    return InvalidQuery(f'{where}: "{shown}" is not one of the {what} -- {what}: {listed}')


def _parse_page_size(body: SearchBody) -> int:
    size = body.page_size if body.page_size is not None else body.page_size_alias
    if size is None:
        return limits.SEARCH_PAGE_DEFAULT
    return min(max(size, 1), limits.SEARCH_PAGE_MAX)


def _parse_page(body: SearchBody, size: int) -> int:
    page = body.page or 0
    if not 0 <= page <= INT_MAX // size:
        raise InvalidQuery(f"page must be a whole number from 0, and is {page}")
    return page
