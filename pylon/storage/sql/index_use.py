"""Index use: finds the conditions of a filter that an index can serve beside a read policy.

A store evaluates a filter only for rows that pass the read policy (`predicate_sql`). Without an
exception each query would scan the table. So an equality or a range that an index serves is written
beside the policy. The duration of a query may show how many rows that range of the index has, and
nothing else about a hidden row.

Called by `predicate_sql`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from pylon.manifest.model import Entity
from pylon.query.predicate import (
    Affix,
    And,
    Column,
    Compare,
    CompareTuple,
    Exists,
    InValues,
    IsNull,
    Literal,
    Match,
    Or,
    Predicate,
)
from pylon.query.predicate_parts import conjuncts

_RANGES: Final = ("<", "<=", ">", ">=")


def find_served(
    entity: Entity, wanted: Sequence[Predicate], fixed: Collection[str]
) -> list[int]:
    """Return the positions of the conditions that an index can serve.

    These are equalities with its first columns, then a range; and full-text matches. An index ends
    with the id, which is the table's key. The duration of a query shows how many rows the range of
    the index has. So the SQL searches each range once: of an `Or`, only different values of first
    columns. A unique index serves no range: a client could otherwise find a token of a hidden row
    character by character. A comparison of several fields is a range if all of them are the next
    columns of the index.

    Args:
        fixed: columns that the read policy compares with a value. The policy does not hide the
            rows with that value.
    """
    equal: dict[str, int] = {}
    ranges: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    served: dict[int, None] = {}
    for place, item in enumerate(wanted):
        name = field_of_equality(item)
        if name is not None:
            equal.setdefault(name, place)
        elif fields := _fields_of_range(item):
            ranges.setdefault(fields[0], []).append((place, fields))
    for columns in entity.index_columns:
        serves_ranges = columns in entity.range_columns
        whole = columns if "id" in columns else (*columns, "id")
        for depth, column in enumerate(whole):
            if column in equal:
                served[equal[column]] = None
            elif column in fixed:
                serves_ranges = True  # among rows that the caller may read
            else:
                if serves_ranges:
                    for place, fields in ranges.get(column, ()):
                        if whole[depth : depth + len(fields)] == fields:
                            served[place] = None
                break
    served.update({n: None for n, item in enumerate(wanted) if type(item) is Match})
    return list(served)


def field_of_equality(item: Predicate) -> str | None:
    """Return the field that an equality or a list of values restricts, or None."""
    if type(item) is Compare:
        if item.sign == "=" and type(item.left) is Column and type(item.right) is Literal:
            return item.left.field
    elif type(item) is InValues and not item.is_negated:
        return item.field
    elif type(item) is IsNull and type(item.operand) is Column:
        return item.operand.field
    return None


def _fields_of_range(item: Predicate) -> tuple[str, ...]:
    """Return the fields that a range restricts; none if the condition is no range."""
    if type(item) is CompareTuple:
        return item.fields
    if type(item) is Compare and item.sign in _RANGES:
        column, value = item.left, item.right
    elif type(item) is Affix and not item.at_end:
        column, value = item.text, item.affix
    else:
        return ()
    return (column.field,) if type(column) is Column and type(value) is Literal else ()


def columns_fixed_by(allowed: Predicate) -> frozenset[str]:
    """Return the columns that equal a value in every row that a read policy passes."""
    return frozenset([
        item.left.field for item in conjuncts(allowed)
        if _is_equality(item) and isinstance(item, Compare) and isinstance(item.left, Column)
    ])


def has_equality(allowed: Predicate) -> bool:
    """Whether an index may serve a read policy: it compares a column with a value somewhere, or
    with a list of the rows that it asks.
    """
    if isinstance(allowed, (And, Or)):
        return any(has_equality(item) for item in allowed.items)
    if isinstance(allowed, Exists):
        return allowed.is_listable
    return _is_equality(allowed)


def _is_equality(item: Predicate) -> bool:
    """Whether it compares a field with a value that is not just true or false."""
    return (
        type(item) is Compare and item.sign == "=" and type(item.left) is Column
        and type(item.right) is Literal and not isinstance(item.right.value, bool)
    )
