"""A live query's filter: a verdict for single rows, and the same condition for the store.

A *term* is a field that has one of a few values in every row of the result. The index of
`workers.ws.live_index` finds live queries by a term.

Invariant: `matcher_of` refuses what `parse_where` refuses, with the same error, and all that no
single row can answer. Called by `workers.ws.live_queries`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import msgspec

from pylon.errors import InvalidQuery
from pylon.manifest.model import Entity, Field
from pylon.query.conditions import guarded
from pylon.query.evaluate import Evaluator, evaluator_of
from pylon.query.operands import ID, field_of
from pylon.query.parse import FilterParser, filter_object
from pylon.query.patterns import weigh_pattern
from pylon.query.predicate import FALSE, TRUE, Column, Compare, InValues, IsNull, Literal, Predicate
from pylon.query.predicate_parts import conjuncts
from pylon.query.rows import DIRECTIVES

_SUPPORTED: Final = "conditions on fields, $or, $and, $order, $limit, $after and $before"


class Term(msgspec.Struct, frozen=True):
    """Every selected row has one of `values` in `field`. Equal numbers are one value,
    whatever their type; null is None."""

    field: Field
    values: frozenset[object]


class Matcher(msgspec.Struct, frozen=True):
    """A filter, ready to judge rows.

    `where` has the caller's read policy `allowed` as a guard, `holds` and `wanted` have not. Every
    row that the filter passes fulfils all of `terms`. `weight` is the work of its patterns for a
    character of a row's texts; 0: it has none.
    """

    holds: Evaluator
    where: Predicate
    wanted: Predicate
    allowed: Predicate
    terms: tuple[Term, ...]
    weight: int


def matcher_of(
    entity: Entity, body: object, allowed: Predicate = TRUE, directives: Collection[str] = ()
) -> Matcher:
    """The matcher of a filter (spec/http.md §3.3) that has no `$search`.

    Args:
        allowed: the rows that the caller may read.
        directives: keys that the filter may have besides conditions; the matcher skips them.

    Raises:
        InvalidQuery: also for another directive or `$search`, which no single row can answer.
        InvalidColumn, InvalidValue: as `parse_where`.
        LimitExceeded: as `parse_where`.
    """
    for key in filter_object(body):
        if key in DIRECTIVES and key not in directives:
            raise _unsupported(key)
    parser = FilterParser(entity, directives)
    wanted = parser.parse(body)
    if parser.has_search:
        raise _unsupported("$search")
    return Matcher(
        evaluator_of(wanted), guarded(allowed, wanted), wanted, allowed,
        tuple(find_terms(entity, wanted)), sum(map(weigh_pattern, parser.patterns)),
    )


def _unsupported(key: str) -> InvalidQuery:
    return InvalidQuery(f"A live query has no {key} -- it takes {_SUPPORTED}", operator=key)


def _has_notation(item: Predicate) -> bool:
    if type(item) is Compare:
        return type(item.left) is Column and item.left.notation != ""
    return type(item) is InValues and item.notation != ""


def find_terms(entity: Entity, wanted: Predicate) -> Iterator[Term]:
    """Yield the terms of a filter. A condition that no row fulfils has a term without values."""
    if wanted is FALSE:
        yield Term(ID, frozenset())
    for item in conjuncts(wanted):
        if _has_notation(item):
            continue  # a row of an earlier version has its value in another text
        if type(item) is InValues and not item.is_negated:
            values: frozenset[object] = frozenset(item.values)
            yield Term(field_of(entity, item.field), values | {None} if item.has_null else values)
        elif type(item) is IsNull and type(item.operand) is Column:
            yield Term(field_of(entity, item.operand.field), frozenset({None}))
        elif (
            type(item) is Compare and item.sign == "="
            and type(item.left) is Column and type(item.right) is Literal
        ):
            yield Term(field_of(entity, item.left.field), frozenset({item.right.value}))
