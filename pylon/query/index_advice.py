"""Index advice: names the index that would help a query.

It begins with the fields that equal a value in every row of the answer, those of the read policy
too. The fields of the order follow, or else one field that a range restricts. So the store finds
the rows side by side, in their order.

Invariant: the advice names fields of the entity only, and no value of a caller. Called by the
backends and `pylonctl explain-query`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pylon.query.position import Order
from pylon.query.predicate import (
    Affix,
    And,
    Column,
    Compare,
    CompareTuple,
    Guarded,
    InValues,
    IsNull,
    Like,
    Literal,
    Predicate,
    Value,
)


def advise_index(where: Predicate, order: Order) -> tuple[str, ...]:
    """Return the fields of an index that would help, as a manifest has them; none if none would.

    A descending field has a minus sign.
    """
    equal: dict[str, None] = {}
    ranges: dict[str, None] = {}
    for item in _conditions(where):
        if type(item) is Compare and type(item.right) is Literal:
            name = _field_of(item.left)
            if name is not None and item.sign == "=":
                equal[name] = None
            elif name is not None and item.sign != "<>":
                ranges[name] = None
        elif type(item) is InValues and not item.is_negated:
            equal[item.field] = None
        elif type(item) is IsNull and (name := _field_of(item.operand)) is not None:
            equal[name] = None
        elif type(item) is CompareTuple:
            ranges[item.fields[0]] = None
        elif type(item) is Affix and not item.at_end and type(item.affix) is Literal:
            name = _field_of(item.text)
            if name is not None:
                ranges[name] = None
    if "id" in equal:
        return ()
    fields = list(equal)
    ordered = [(name, desc) for name, desc in order if name not in equal]
    for name, desc in ordered:
        if name == "id":  # every index ends with the id
            break
        fields.append(f"-{name}" if desc else name)
    if not ordered:
        fields += [name for name in ranges if name not in equal and name != "id"][:1]
    return tuple(fields)


def find_patterns(where: Predicate) -> tuple[str, ...]:
    """Return the text fields in which every row of the answer has a pattern."""
    return tuple({
        item.field: None for item in _conditions(where)
        if type(item) is Like and not item.is_hard and not item.notation
    })


def _conditions(where: Predicate) -> Iterator[Predicate]:
    """Yield the conditions that must all hold."""
    if type(where) is Guarded:
        yield from _conditions(where.allowed)
        yield from _conditions(where.wanted)
    elif type(where) is And:
        for item in where.items:
            yield from _conditions(item)
    else:
        yield where


def _field_of(value: Value) -> str | None:
    return value.field if type(value) is Column else None
