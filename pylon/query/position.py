"""Positions: the place in an order of rows where a page begins or ends (`$after`, `$before`).

A position has one value for each field of a total order, which ends with `id`. The rows behind it
are the next page. `runs_of` splits them into *runs*: parts whose rows lie side by side in the
order, one part behind the other. Each run is a condition that an index serves: some fields equal
the position's values, and then one field, or several compared as a tuple (`CompareTuple`), lie
behind them. A backend reads the runs one after the other until the page is full, so a page costs
the same at every depth. An order of one direction is usually one run; each change of direction and
each null adds one.

For `$before` the order is turned around: the runs give the nearest rows first, and the backend
turns the page around again.

Invariants: the runs of a position have no row in common, and together they have the rows behind it
(before it), whatever nulls and ties the rows have: null comes before every value. Bound:
`limits.POSITION_FIELDS` fields. Called by `rows`, `graph`, backends and live windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.errors import SHOWN_CHARS, InvalidQuery, InvalidValue, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.query.conditions import and_, equal, guarded, or_
from pylon.query.evaluate import Evaluator, evaluator_of
from pylon.query.operands import column_of, exact_float, field_of, is_beyond_64_bits, parse_operand
from pylon.query.predicate import Compare, CompareTuple, Guarded, IsNull, Literal, Predicate, Scalar
from pylon.values.notations import KEYS, notation_of

Order = tuple[tuple[str, bool], ...]  # (field, descending) pairs

_EXAMPLE: Final = '{"id": "..."}'


class Position(msgspec.Struct, frozen=True):
    """A place in `order`, which is total: each field's value of one row, or of no row.

    `is_before`: the page has the rows before this place, and not those behind it.
    """

    order: Order
    values: tuple[Scalar, ...]
    is_before: bool = False


class Run(msgspec.Struct, frozen=True):
    """Rows that lie side by side in an order: their condition, and their order among themselves."""

    condition: Predicate
    order: Order


def total_order(order: Order) -> Order:
    """Return an order in which no two rows are equal: the id decides ties, ascending."""
    for place, (field, _) in enumerate(order):
        if field == "id":
            return order[: place + 1]
    return (*order, ("id", False))


def position_of(
    entity: Entity, order: Order, row: Mapping[str, Any], is_before: bool = False
) -> Position:
    """Return the position of a decoded row in an order, which need not be total."""
    whole = total_order(order)
    values = [_comparable(field_of(entity, field), row.get(field)) for field, _ in whole]
    return Position(whole, tuple(values), is_before)


def _comparable(field: Field, value: Any) -> Any:
    """Return a row's value as the store compares it."""
    notation = notation_of(field)
    return KEYS[notation](value) if notation else value


def parse_position(
    entity: Entity, order: Order, after: object, before: object, names: tuple[str, str]
) -> Position | None:
    """Return the position that a request gives; None for two nulls.

    Args:
        order: the order of the request, without ties by id.
        after: the value of `$after`; `before`: that of `$before`.
        names: how the request calls them.

    Raises:
        InvalidQuery: both are given; not an object; a key that is missing or not in the order.
        InvalidColumn: a key that is no field of the entity.
        InvalidValue: a value of another type than its field.
        LimitExceeded: the order has too many fields.
    """
    if after is not None and before is not None:
        raise InvalidQuery(f"A query has {names[0]} or {names[1]}, and not both -- remove one")
    name, body = (names[1], before) if after is None else (names[0], after)
    if body is None:
        return None
    whole = total_order(order)
    if len(whole) > limits.POSITION_FIELDS:
        raise LimitExceeded(
            f"{name} takes an order of {limits.POSITION_FIELDS} fields at most, id counted, and "
            f"this one has {len(whole)}"
        )
    fields = ", ".join(field for field, _ in whole)
    if not isinstance(body, dict):
        raise InvalidQuery(
            f"{name} takes an object with the fields of the order and id ({fields}), "
            f"for example {_EXAMPLE}"
        )
    missing = [field for field, _ in whole if field not in body]
    if missing:
        raise InvalidQuery(
            f"{name} has no {missing[0]} -- it takes the values of {fields}, "
            "as the last row of a page has them"
        )
    for key in body:
        if all(key != field for field, _ in whole):
            field_of(entity, key)
            raise InvalidQuery(
                f"{name} has {key[:SHOWN_CHARS]}, which is not in the order -- it takes the values "
                f"of {fields}"
            )
    values = tuple([_parse_value(entity, name, field, body[field]) for field, _ in whole])
    return Position(whole, values, after is None)


def _parse_value(entity: Entity, name: str, field_name: str, value: object) -> Scalar:
    field = field_of(entity, field_name)
    if value is None:
        if field_name == "id":
            raise InvalidValue(
                f"The id in {name} is null -- give the id of the last row of a page",
                entity=entity.name, field="id", value=None,
            )
        return None
    operand: Any = parse_operand(entity, field, value)
    if field.type is FieldType.FLOAT and is_beyond_64_bits(operand):
        operand = exact_float(operand)
        if operand is None:
            raise InvalidValue(
                f"{field_name} in {name} is a whole number that no float equals -- "
                "give the value of a row",
                entity=entity.name, field=field_name,
            )
    return operand  # type: ignore[no-any-return]


def runs_of(entity: Entity, position: Position) -> tuple[Run, ...]:
    """Return the runs of the rows behind a position, in their order.

    For `is_before` these are the rows before it, the nearest first.
    """
    order = position.order
    if position.is_before:
        order = tuple([(field, not desc) for field, desc in order])
    values = position.values
    runs: list[Run] = []
    tuple_end = 0  # the last run compares the fields up to here as a tuple; 0: it does not
    for depth in reversed(range(len(order))):
        field, desc = order[depth]
        value, column = values[depth], column_of(field_of(entity, field))
        same = [
            equal(f, v, notation_of(field_of(entity, f)))
            for (f, _), v in zip(order[:depth], values[:depth], strict=True)
        ]
        if value is None:
            if not desc:  # all values lie behind a null, in descending order none does
                above = CompareTuple((field,), False, (None,))
                runs.append(Run(and_(*same, above), order[depth:]))
            tuple_end = 0
            continue
        if tuple_end and order[depth + 1][1] is desc:
            runs.pop()
        else:
            tuple_end = depth + 1
        names = tuple([f for f, _ in order[depth:tuple_end]])
        behind = _compare_all(entity, names, desc, values[depth:tuple_end])
        runs.append(Run(and_(*same, behind), order[depth:]))
        if desc and field != "id" and entity.by_name[field].optional:
            runs.append(Run(and_(*same, IsNull(column)), order[depth + 1 :]))
            tuple_end = 0
    return tuple(runs)


def _compare_all(
    entity: Entity, names: tuple[str, ...], desc: bool, values: tuple[Any, ...]
) -> Predicate:
    fields = [field_of(entity, name) for name in names]
    if len(names) > 1:
        return CompareTuple(names, desc, values, tuple([notation_of(field) for field in fields]))
    return Compare("<" if desc else ">", column_of(fields[0]), Literal(values[0]))


def condition_of(entity: Entity, position: Position) -> Predicate:
    """Return the condition that a row lies behind a position (before it, for `is_before`)."""
    return or_(*[run.condition for run in runs_of(entity, position)])


def judge_position(entity: Entity, position: Position) -> Evaluator:
    """Return a function that tells whether a decoded row fulfils `condition_of`."""
    return evaluator_of(condition_of(entity, position))


def narrowed(where: Predicate, allowed: Predicate, condition: Predicate) -> Predicate:
    """Return `where` and a further condition of the caller, behind the same guard.

    Args:
        where: what `guarded` made of `allowed` and a filter.
    """
    if type(where) is Guarded:
        return Guarded(where.allowed, and_(where.wanted, condition))
    if where is allowed:
        return guarded(allowed, condition)
    return and_(where, condition)
