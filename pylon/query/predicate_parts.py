"""The parts of a condition: its conjuncts and operands, the `Exists` in it, and its cost.

These functions walk a tree of `pylon.query.predicate` and never change it. Readers ask them before
they run a statement: whether other rows decide, whether the result is known to be empty, and how
much work one row may cause. Called by backends, policies and `conditions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from pylon.query.predicate import (
    TRUE,
    And,
    Column,
    Compare,
    Constant,
    Element,
    Exists,
    Guarded,
    HasMember,
    InValues,
    Like,
    Literal,
    Match,
    Or,
    Outer,
    Predicate,
    Value,
)

_LEAVES: Final = frozenset({Column, Outer, Literal, Constant, InValues, Like, Match})


class Cost(IntEnum):
    """The largest piece of work that one row may cause; it decides where a read may run."""

    PLAIN = 0  # comparisons of values
    PATTERN = 1  # a search through a text, or a look into a JSON value
    MATCH = 2  # a search through the full-text index


def conjuncts(predicate: Predicate) -> tuple[Predicate, ...]:
    """The conditions that must all hold; none for `TRUE`."""
    if type(predicate) is And:
        return predicate.items
    return () if predicate is TRUE else (predicate,)


def parts(node: Value) -> Iterator[Value]:
    """The direct operands of a node."""
    for name in node.__struct_fields__:
        value = getattr(node, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Value):
                yield part


def find_closed_checks(where: Predicate) -> tuple[Exists, ...]:
    """Return those `Exists` without which no row is selected, and that depend on no row."""
    allowed = where.allowed if type(where) is Guarded else where
    return tuple([
        item for item in conjuncts(allowed) if type(item) is Exists and not _reads_outer(item.where)
    ])


def _reads_outer(node: Value) -> bool:
    return type(node) is Outer or any(_reads_outer(part) for part in parts(node))


def asks_rows(node: Value) -> bool:
    """Whether it has an `Exists`, so that other rows decide too."""
    # PERF: each query asks it of its read policy. 0.4 us for two comparisons; by `parts` alone,
    # a list took 20 us in place of 4 to be compiled.
    if type(node) is Compare:
        left, right = node.left, node.right
        return (type(left) not in _LEAVES and asks_rows(left)) or (
            type(right) not in _LEAVES and asks_rows(right)
        )
    if type(node) is And or type(node) is Or:
        for item in node.items:  # noqa: SIM110
            if asks_rows(item):
                return True
        return False
    if type(node) in _LEAVES:
        return False
    return type(node) is Exists or any(asks_rows(part) for part in parts(node))


def cost_of(predicate: Predicate) -> Cost:
    """The largest piece of work for one row."""
    kind = type(predicate)
    if kind is Match:
        return Cost.MATCH
    if kind is Like or kind is HasMember:
        return Cost.PATTERN
    costs = [Cost.PLAIN]
    for part in parts(predicate):
        if isinstance(part, Predicate):
            costs.append(cost_of(part))
        elif type(part) is Element:  # it decodes a JSON text
            costs.append(Cost.PATTERN)
    return max(costs)
