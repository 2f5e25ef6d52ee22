"""Judges single rows by a filter, in Python: the verdict of `conditions`, without the database.

Live queries ask for every change whether the row before and the row after are in their result.
A filter is compiled once to a closure over decoded JSON rows. It holds for a row if and only if
SQLite would select the stored row by the clause that `conditions.parse_where` makes of the same
filter: a null fulfils nothing but what asks for null, LIKE folds ASCII letters only, texts are
ordered by code point, integers and floats are compared exactly. There is no NOT in the grammar,
so SQL's third truth value never matters: it counts as false at once.

Invariants: what `parse_where` refuses is refused here with the same error; judging a row never
raises and costs time linear in its texts (see `patterns`). tests/test_matching.py compares
verdicts with SQL's. Called by `workers.ws.live_queries`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import ge, gt, le, lt
from typing import Any, Final

from pylon.errors import InvalidQuery
from pylon.manifest.model import Entity, Field, FieldType
from pylon.storage.clause import SqlClause
from pylon.storage.sqlite.conditions import exact_float, field_of, filter_object, parse_where
from pylon.storage.sqlite.filters import DIRECTIVES
from pylon.storage.sqlite.patterns import LikePattern, weigh_pattern
from pylon.storage.where import ALL

Row = Mapping[str, Any]
Verdict = Callable[[Row], bool]

_SUPPORTED: Final = "conditions on fields, $or and $and"


@dataclass(frozen=True, slots=True)
class Term:
    """A row that is selected has one of `values` in `field`. Equal numbers are one value,
    whatever their type; booleans are numbers here; null is None."""

    field: Field
    values: frozenset[object]


@dataclass(frozen=True, slots=True)
class Matcher:
    """A compiled filter: the same condition for a row and as SQL. All of `terms` are fulfilled
    by every row that it passes. `where` has the caller's read policy in it, `holds` has not.
    `weight` says what its patterns may take for a character of a row's texts; 0: it has none."""

    holds: Verdict
    where: SqlClause
    terms: tuple[Term, ...]
    weight: int


def matcher_of(entity: Entity, body: object, allowed: SqlClause = ALL) -> Matcher:
    """Compile a filter (spec/http.md §3.3) that has no directives and no `$search`.

    Args:
        allowed: the rows that the caller may read.

    Raises:
        InvalidQuery: also for a directive or `$search`, which no single row can answer.
        InvalidColumn, InvalidValue: as `parse_where`.
        LimitExceeded: as `parse_where`.
    """
    for key in filter_object(body):
        if key in DIRECTIVES:
            raise _unsupported(key)
    where = parse_where(entity, body, allowed=allowed)
    terms: list[Term] = []
    holds = _all_of(entity, filter_object(body), terms)
    return Matcher(holds, where, tuple(terms), _weigh_patterns(body))


def _weigh_patterns(body: Any) -> int:
    """Of a filter, a part of one, or the condition on a field."""
    if isinstance(body, list):
        return sum(map(_weigh_patterns, body))
    if not isinstance(body, dict):
        return 0
    return sum(
        weigh_pattern(operand) if key == "$like" else _weigh_patterns(operand)
        for key, operand in body.items()
    )


def _unsupported(key: str) -> InvalidQuery:
    return InvalidQuery(f"A live query has no {key} -- it takes {_SUPPORTED}", operator=key)


def _all_of(entity: Entity, body: Mapping[str, Any], terms: list[Term]) -> Verdict:
    """A filter object's verdict. Its terms are added to `terms`."""
    verdicts: list[Verdict] = []
    for key, operand in body.items():
        if key == "$and":
            verdicts += [_all_of(entity, part, terms) for part in operand]
        elif key == "$or":
            verdicts.append(_either([_all_of(entity, part, []) for part in operand]))
        elif key.startswith("$"):
            raise _unsupported(key)
        else:
            field = field_of(entity, key)
            given = operand if isinstance(operand, dict) else {_EQUAL: operand}
            for operator, value in given.items():
                verdicts.append(_OPERATORS[operator](field, value))
                values = _possible(field, operator, value)
                if values is not None:
                    terms.append(Term(field, values))
    return _both(verdicts)


def _both(verdicts: list[Verdict]) -> Verdict:
    if not verdicts:
        return lambda row: True
    if len(verdicts) == 1:
        return verdicts[0]
    if len(verdicts) == 2:
        first, second = verdicts
        return lambda row: first(row) and second(row)
    every = tuple(verdicts)

    def holds(row: Row) -> bool:
        for verdict in every:  # noqa: SIM110  (twice as fast as all() of a generator)
            if not verdict(row):
                return False
        return True

    return holds


def _either(verdicts: list[Verdict]) -> Verdict:
    if len(verdicts) == 1:
        return verdicts[0]
    some = tuple(verdicts)

    def holds(row: Row) -> bool:
        for verdict in some:  # noqa: SIM110
            if verdict(row):
                return True
        return False

    return holds


# --- Operators ---------------------------------------------------------------------------------


def _equal(field: Field, value: Any) -> Verdict:
    name = field.name
    if value is None:
        return lambda row: row.get(name) is None
    return lambda row: bool(row.get(name) == value)


def _unequal(field: Field, value: Any) -> Verdict:
    name = field.name
    if value is None:
        return lambda row: row.get(name) is not None

    def holds(row: Row) -> bool:
        found = row.get(name)
        return found is not None and found != value

    return holds


def _compared(
    compare: Callable[[Any, Any], bool], text_passes: bool, field: Field, value: Any
) -> Verdict:
    name = field.name

    def holds(row: Row) -> bool:
        found = row.get(name)
        if found is None:
            return False
        try:
            return compare(found, value)
        except TypeError:  # text in a column of numbers, from elsewhere: SQL sorts it behind
            return text_passes

    return holds


def _like(field: Field, value: str) -> Verdict:
    if "\0" in value:
        return lambda row: False
    name, matches = field.name, LikePattern(value).matches

    def holds(row: Row) -> bool:
        found = row.get(name)
        return isinstance(found, str) and matches(found)

    return holds


def _starts_with(field: Field, value: str) -> Verdict:
    name = field.name

    def holds(row: Row) -> bool:
        found = row.get(name)
        return isinstance(found, str) and found.startswith(value)

    return holds


def _members(field: Field, value: list[Any]) -> frozenset[object]:
    if field.type is not FieldType.FLOAT:
        return frozenset(value)
    # SQLite gives a list the type of the column.
    floats = {member: None if member is None else exact_float(member) for member in value}
    return frozenset(f for member, f in floats.items() if f is not None or member is None)


def _in(field: Field, value: list[Any]) -> Verdict:
    name, members = field.name, _members(field, value)

    def holds(row: Row) -> bool:
        try:
            return row.get(name) in members
        except TypeError:  # a list or an object, from elsewhere
            return False

    return holds


def _not_in(field: Field, value: list[Any]) -> Verdict:
    if not value:
        return lambda row: True
    name, members = field.name, _members(field, value)

    def holds(row: Row) -> bool:
        found = row.get(name)
        try:
            return found is not None and found not in members
        except TypeError:
            return True

    return holds


def _exists(field: Field, value: bool) -> Verdict:
    name = field.name
    if value:
        return lambda row: row.get(name) is not None
    return lambda row: row.get(name) is None


def _possible(field: Field, operator: str, value: Any) -> frozenset[object] | None:
    """The only values that the condition lets through; None when they cannot be listed."""
    if operator == _EQUAL:
        return frozenset((value,))
    if operator == "$in":
        return _members(field, value)
    if operator == "$exists" and not value:
        return frozenset((None,))
    return None


_EQUAL: Final = "="
_OPERATORS: Final[dict[str, Callable[[Field, Any], Verdict]]] = {
    _EQUAL: _equal,
    "$not": _unequal,
    "$ne": _unequal,
    "$gt": partial(_compared, gt, True),
    "$gte": partial(_compared, ge, True),
    "$lt": partial(_compared, lt, False),
    "$lte": partial(_compared, le, False),
    "$like": _like,
    "$startsWith": _starts_with,
    "$in": _in,
    "$nin": _not_in,
    "$exists": _exists,
}
