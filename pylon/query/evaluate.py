"""Evaluator: evaluates a predicate for a decoded row, in Python.

`evaluator_of` turns a tree into closures once. They return True for a row if and only if a backend
selects the stored row by the same tree (docs/query-semantics.md). A live query evaluates its filter
for the row before and after every change, so the usual shapes have faster closures of their own.

Invariants: an evaluator treats an absent field as null and costs time linear in the row's texts.
It never raises for a row whose values are of their fields' types, and comparisons do not raise
for any other row. `Match` has no evaluator: no single row can answer it.
tests/test_matching.py, tests/test_policy_equivalence.py and tests/test_query_semantics.py compare
the verdicts with the store's. Called by `matcher`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from pylon.query.patterns import LikePattern
from pylon.query.predicate import (
    Affix,
    And,
    Arithmetic,
    Column,
    Compare,
    CompareTuple,
    Constant,
    Element,
    Guarded,
    HasMember,
    InValues,
    IsNull,
    Like,
    Literal,
    Not,
    OneOf,
    Or,
    Predicate,
    Sign,
    Value,
)
from pylon.values.json_values import element_at, element_of_kind, has_member, parse_json
from pylon.values.notations import KEYS, Notation

Row = Mapping[str, Any]
Evaluator = Callable[[Row], bool]
_Reader = Callable[[Row], Any]

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_COMPARE: Final[dict[Sign, Callable[[Any, Any], bool]]] = {
    "=": operator.eq, "<>": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}


def evaluator_of(predicate: Predicate) -> Evaluator:
    """The function that says whether the predicate holds for a row.

    Raises:
        ValueError: the predicate has a `Match`.
    """
    make = _MAKERS.get(type(predicate))
    if make is None:
        raise ValueError(f"no single row can answer {type(predicate).__name__}")
    return make(predicate)


# --- Logic --------------------------------------------------------------------------------------


def _constant(node: Constant) -> Evaluator:
    if node.holds:
        return lambda row: True
    return lambda row: False


def _negated(node: Not) -> Evaluator:
    if type(node.operand) is IsNull and type(node.operand.operand) is Column:
        name = node.operand.operand.field
        return lambda row: row.get(name) is not None
    holds = evaluator_of(node.operand)
    return lambda row: not holds(row)


def _both(node: And) -> Evaluator:
    every = tuple([evaluator_of(item) for item in node.items])
    if len(every) == 2:
        first, second = every
        return lambda row: first(row) and second(row)

    def holds(row: Row) -> bool:
        for verdict in every:  # noqa: SIM110  PERF: twice as fast as all() of a generator
            if not verdict(row):
                return False
        return True

    return holds


def _either(node: Or) -> Evaluator:
    some = tuple([evaluator_of(item) for item in node.items])

    def holds(row: Row) -> bool:
        for verdict in some:  # noqa: SIM110
            if verdict(row):
                return True
        return False

    return holds


def _guarded(node: Guarded) -> Evaluator:
    first, second = evaluator_of(node.allowed), evaluator_of(node.wanted)
    return lambda row: first(row) and second(row)


# --- Conditions ---------------------------------------------------------------------------------


def _compared(node: Compare) -> Evaluator:
    if type(node.left) is not Column or type(node.right) is not Literal or node.left.notation:
        return _compared_values(node)
    name, value = node.left.field, node.right.value
    if node.sign == "=":
        return lambda row: bool(row.get(name) == value)
    if node.sign == "<>":

        def is_unequal(row: Row) -> bool:
            found = row.get(name)
            return found is not None and found != value

        return is_unequal
    compare, text_passes = _COMPARE[node.sign], node.sign[0] == ">"

    def holds(row: Row) -> bool:
        found = row.get(name)
        if found is None:
            return False
        try:
            return compare(found, value)
        except TypeError:  # text in a column of numbers, from elsewhere, sorts behind them
            return text_passes

    return holds


def _compared_values(node: Compare) -> Evaluator:
    left, right, compare = _reader_of(node.left), _reader_of(node.right), _COMPARE[node.sign]

    passes_behind = node.sign[0] == ">"

    def holds(row: Row) -> bool:
        first, second = left(row), right(row)
        if first is None or second is None:
            return False
        try:
            return compare(first, second)
        except TypeError:  # text in a column of numbers sorts behind them
            return passes_behind is isinstance(first, str)

    return holds


def _compared_tuple(node: CompareTuple) -> Evaluator:
    plain: Notation = ""
    notations = node.notations or (plain,) * len(node.fields)
    pairs: tuple[tuple[_Reader, Any], ...] = tuple([
        (_reader_of(Column(field, notation)), value)
        for field, notation, value in zip(node.fields, notations, node.values, strict=True)
    ])
    if node.values == (None,):
        name = node.fields[0]
        return lambda row: row.get(name) is not None
    compare = operator.lt if node.is_below else operator.gt

    def holds(row: Row) -> bool:
        for read, value in pairs:
            found = read(row)
            if found == value:
                continue
            if found is None:
                return False
            try:
                return bool(compare(found, value))
            except TypeError:  # text in a column of numbers sorts behind them
                return not node.is_below
        return False

    return holds


def _is_null(node: IsNull) -> Evaluator:
    if type(node.operand) is Column:
        name = node.operand.field
        return lambda row: row.get(name) is None
    read = _reader_of(node.operand)
    return lambda row: read(row) is None


def _one_of(node: OneOf) -> Evaluator:
    item = _reader_of(node.item)
    options = tuple([_reader_of(option) for option in node.options])

    def holds(row: Row) -> bool:
        found = item(row)
        return found is not None and any(found == option(row) for option in options)

    return holds


def _in_values(node: InValues) -> Evaluator:
    if node.notation:
        return _in_texts(node)
    name = node.field
    members: frozenset[object] = frozenset(node.values)
    if node.is_negated:

        def is_none_of(row: Row) -> bool:
            found = row.get(name)
            try:
                return found is not None and found not in members
            except TypeError:  # a list or an object, from elsewhere
                return True

        return is_none_of
    if node.has_null:
        members |= {None}

    def holds(row: Row) -> bool:
        try:
            return row.get(name) in members
        except TypeError:
            return False

    return holds


def _in_texts(node: InValues) -> Evaluator:
    read, members = _reader_of(Column(node.field, node.notation)), frozenset(node.values)
    has_null, is_negated = node.has_null, node.is_negated

    def holds(row: Row) -> bool:
        found = read(row)
        if found is None:
            return has_null
        return (isinstance(found, str) and found in members) is not is_negated

    return holds


def _affixed(node: Affix) -> Evaluator:
    if type(node.text) is Column and type(node.affix) is Literal and not node.text.notation:
        name, part = node.text.field, str(node.affix.value)
        test = str.endswith if node.at_end else str.startswith

        def has_part(row: Row) -> bool:
            found = row.get(name)
            return isinstance(found, str) and test(found, part)

        return has_part
    read_text, read_part = _reader_of(node.text), _reader_of(node.affix)

    def holds(row: Row) -> bool:
        text, affix = read_text(row), read_part(row)
        if text is None or affix is None:
            return False
        return bool(text.endswith(affix) if node.at_end else text.startswith(affix))

    return holds


def _like(node: Like) -> Evaluator:
    read = _reader_of(Column(node.field, node.notation))
    matches = LikePattern(node.pattern, node.has_wildcards).matches

    def holds(row: Row) -> bool:
        found = read(row)
        return isinstance(found, str) and matches(found)

    return holds


def _has_member(node: HasMember) -> Evaluator:
    read, path, member = _json_reader(node.field, node.is_text), node.path, node.member
    return lambda row: has_member(element_at(read(row), path), member)


_MAKERS: Final[dict[type, Callable[[Any], Evaluator]]] = {
    Constant: _constant, Compare: _compared, CompareTuple: _compared_tuple, IsNull: _is_null,
    OneOf: _one_of, InValues: _in_values, Affix: _affixed, Like: _like, Not: _negated,
    And: _both, Or: _either, Guarded: _guarded, HasMember: _has_member,
}


# --- Values -------------------------------------------------------------------------------------


def _reader_of(value: Value) -> _Reader:
    """The function that gives a value for a row; None for null."""
    if type(value) is Column:
        name = value.field
        if value.notation:
            key = KEYS[value.notation]
            return lambda row: key(row.get(name))
        return lambda row: row.get(name)
    if type(value) is Element:
        read, path, kind = _json_reader(value.field, value.is_text), value.path, value.kind
        return lambda row: element_of_kind(element_at(read(row), path), kind)
    if type(value) is Literal:
        constant = value.value
        return lambda row: constant
    if type(value) is Arithmetic:
        left, right, apply = _reader_of(value.left), _reader_of(value.right), ARITHMETIC[value.op]
        return lambda row: apply(left(row), right(row))
    assert isinstance(value, Predicate)
    return evaluator_of(value)


def _json_reader(name: str, is_text: bool) -> _Reader:
    """The function that gives the value of a JSON field."""
    if not is_text:
        return lambda row: row.get(name)

    def read(row: Row) -> Any:
        text = row.get(name)
        try:
            return parse_json(text) if isinstance(text, str) else None
        except ValueError:  # in a table that another program filled
            return None

    return read


def _calculator(apply: Callable[[float, float], float]) -> Callable[[Any, Any], float | None]:
    """Arithmetic in doubles, with null for null and for NaN."""

    def calculate(left: Any, right: Any) -> float | None:
        if left is None or right is None:
            return None
        result = apply(float(left), float(right))
        return result if result == result else None

    return calculate


def _divide(left: Any, right: Any) -> float | None:
    return None if right is None or right == 0 else _quotient(left, right)


def _remainder(left: Any, right: Any) -> int | None:
    if left is None or right is None:
        return None
    dividend, divisor = _whole(left), _whole(right)
    if divisor == 0:
        return None
    size = abs(dividend) % abs(divisor)
    return -size if dividend < 0 else size


def _whole(number: float) -> int:
    """The whole part, kept within 64 bits."""
    if isinstance(number, int):
        return number
    if number >= 2.0**63:
        return _INT64_MAX
    return _INT64_MIN if number <= -(2.0**63) else int(number)


_quotient = _calculator(operator.truediv)
# The operators of `Arithmetic`, which `pylon.policy.compile` calls too.
ARITHMETIC: Final[dict[str, Callable[[Any, Any], float | None]]] = {
    "+": _calculator(operator.add),
    "-": _calculator(operator.sub),
    "*": _calculator(operator.mul),
    "/": _divide,
    "%": _remainder,
}
