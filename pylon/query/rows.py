"""Queries of rows: a condition, an order and a window (spec/http.md §3.3).

`parse_filter` reads the filter object of a request: its conditions, and the directives `$order`,
`$limit`, `$offset`, `$after` and `$before`. Rows that a `$search` finds by the full-text index come
in the order of relevance unless there is an `$order` or a position.

Invariants: see `parse`; an answer has at most as many rows as the caller of `parse_filter`
allows, and a request that asks for more gets an error. Called by the API and the benchmark; the
store answers a `Query`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, FieldType
from pylon.query.conditions import guarded
from pylon.query.operands import field_of
from pylon.query.parse import filter_object, parse_where
from pylon.query.position import Order, Position, parse_position
from pylon.query.predicate import TRUE, Match, Predicate
from pylon.query.words import parse_match
from pylon.values import INT_MAX

DIRECTIVES: Final = ("$order", "$limit", "$offset", "$after", "$before")
_KEYS: Final = frozenset((*DIRECTIVES, "$search"))  # keys that may be more than a condition


class Query(msgspec.Struct, frozen=True):
    """Which rows of an entity, in which order.

    Ties in `order`, and no order at all, go by id. Null sorts before every value. `after_id`
    keeps the rows behind that id, for keyset pages in the default order. `relevance` keeps the
    rows that it matches, the most relevant first; it must not be combined with `order`.

    `position` keeps the rows behind (before) a place in the order; its order is `order`, made
    total. `allowed` is the read policy that guards `where`; only a position needs it.
    """

    where: Predicate
    limit: int
    order: Order = ()
    offset: int = 0
    after_id: str | None = None
    relevance: Match | None = None
    position: Position | None = None
    allowed: Predicate = TRUE


def parse_filter(
    entity: Entity, body: object, max_limit: int, allowed: Predicate = TRUE
) -> Query:
    """The query that `body` describes.

    Args:
        body: a decoded JSON object.
        max_limit: most rows to answer (PYLON_LIST_LIMIT); also the default.
        allowed: the rows that the caller may read; no others are answered.

    Raises:
        InvalidQuery: not an object, an unknown operator, a malformed directive.
        InvalidColumn: a field that the entity does not have.
        InvalidValue: an operand of another type than the field.
        LimitExceeded: too many conditions, or `$limit` above `max_limit`.

    The errors of `$after` and `$before` are those of `parse_position`.
    """
    body = filter_object(body)
    if _KEYS.isdisjoint(body):
        return Query(guarded(allowed, parse_where(entity, body, DIRECTIVES)), max_limit)
    order = parse_order(entity, "$order", body.get("$order"))
    position = None
    if "$after" in body or "$before" in body:
        position = parse_position(
            entity, order, body.get("$after"), body.get("$before"), ("$after", "$before")
        )
    offset = parse_count("$offset", body.get("$offset")) or 0
    if position is not None:
        refuse_offset(offset, "$offset")
    text = body.get("$search")
    relevance = None
    if isinstance(text, str) and not order and position is None:
        relevance = parse_match(entity, text)
    directives = DIRECTIVES if relevance is None else (*DIRECTIVES, "$search")
    limit = parse_limit("$limit", body.get("$limit"), max_limit)
    return Query(
        guarded(allowed, parse_where(entity, body, directives)),
        limit=max_limit if limit is None else limit,
        order=order,
        offset=offset,
        relevance=relevance,
        position=position,
        allowed=allowed,
    )


def parse_order(entity: Entity, name: str, order: object) -> Order:
    """(field, descending) pairs of an order object, in its order; none for null.

    Args:
        name: how the request calls it.
    """
    if order is None:
        return ()
    if not isinstance(order, dict):
        raise InvalidQuery(f'{name} takes an object, for example {{"title": "desc"}}')
    if len(order) > limits.FILTER_TERMS:
        raise LimitExceeded(f"{name} may name {limits.FILTER_TERMS} fields at most")
    pairs = []
    for field, direction in order.items():
        if direction not in ("asc", "desc"):
            raise InvalidQuery(f'{name} of {field[:100]} must be "asc" or "desc"')
        found = field_of(entity, field)
        if found.type is FieldType.JSON:
            raise InvalidQuery(f"{name} cannot order by {found.name}, which is json")
        pairs.append((found.name, direction == "desc"))
    return tuple(pairs)


def parse_count(name: str, value: object) -> int | None:
    """A whole number from 0; None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT_MAX:
        raise InvalidQuery(f"{name} must be a whole number from 0")
    return value


def refuse_offset(offset: int, name: str) -> None:
    """Refuse rows to leave out beside a position, which names the place itself.

    Raises:
        InvalidQuery: the offset is not 0.
    """
    if offset:
        raise InvalidQuery(
            f"{name} is {offset}, and the query has a position already -- remove one of them"
        )


def parse_limit(name: str, value: object, max_limit: int) -> int | None:
    """A number of rows; None for null."""
    limit = parse_count(name, value)
    if limit is not None and limit > max_limit:
        raise LimitExceeded(
            f"{name} is {limit}, and at most {max_limit} rows are answered (PYLON_LIST_LIMIT)",
            hint=f"ask for pages with {name} and {name.replace('limit', 'offset')}",
        )
    return limit
