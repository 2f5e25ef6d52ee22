"""The filter object of queries becomes a `Query` (spec/http.md §3.3): its conditions, and the
directives `$order`, `$limit` and `$offset`. What `$search` finds with an index comes in the order
of relevance unless there is an `$order`.

Invariants: see `conditions`; an answer has at most as many rows as the caller of `parse_filter`
allows, and who explicitly asks for more is told so. Called by the API.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity
from pylon.storage.clause import SqlClause
from pylon.storage.interface import Query
from pylon.storage.sqlite.conditions import field_of, filter_object, parse_where
from pylon.storage.sqlite.search import match_of, text_fields
from pylon.storage.where import ALL
from pylon.values import INT_MAX

DIRECTIVES: Final = ("$order", "$limit", "$offset")
_KEYS: Final = frozenset((*DIRECTIVES, "$search"))  # what may have a meaning besides a condition


def parse_filter(
    entity: Entity, body: object, max_limit: int, allowed: SqlClause = ALL
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
    """
    body = filter_object(body)
    if _KEYS.isdisjoint(body):
        return Query(parse_where(entity, body, DIRECTIVES, allowed), max_limit)
    order = parse_order(entity, "$order", body.get("$order"))
    text = body.get("$search")
    relevance = None
    if isinstance(text, str) and not order and text_fields(entity):
        relevance = match_of(entity, text)
    directives = DIRECTIVES if relevance is None else (*DIRECTIVES, "$search")
    limit = parse_limit("$limit", body.get("$limit"), max_limit)
    return Query(
        parse_where(entity, body, directives, allowed),
        limit=max_limit if limit is None else limit,
        order=order,
        offset=parse_count("$offset", body.get("$offset")) or 0,
        relevance=relevance,
    )


def parse_order(entity: Entity, name: str, order: object) -> tuple[tuple[str, bool], ...]:
    """(field, descending) pairs of an order object, in its order; none for null.

    Args:
        name: what the request calls it.
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
        pairs.append((field_of(entity, field).name, direction == "desc"))
    return tuple(pairs)


def parse_count(name: str, value: object) -> int | None:
    """A whole number from 0; None for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT_MAX:
        raise InvalidQuery(f"{name} must be a whole number from 0")
    return value


def parse_limit(name: str, value: object, max_limit: int) -> int | None:
    """A number of rows; None for null."""
    limit = parse_count(name, value)
    if limit is not None and limit > max_limit:
        raise LimitExceeded(
            f"{name} is {limit}, and at most {max_limit} rows are answered (PYLON_LIST_LIMIT)",
            hint=f"ask for pages with {name} and {name.replace('limit', 'offset')}",
        )
    return limit
