"""Constructors of conditions: each makes a node of `pylon.query.predicate`, or folds it.

Whatever is true or false for every row becomes `TRUE` or `FALSE`, and disappears from the node
around it. A comparison with null becomes `FALSE`, a list without values too. So evaluators and
compilers never meet these cases.

Invariant: a folded tree selects the same rows as the tree that it stands for. Parsers, policies and
backends call these functions wherever an operand may be a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from pylon.query.patterns import is_hard_pattern, is_plain_text
from pylon.query.predicate import (
    FALSE,
    TRUE,
    Affix,
    And,
    Column,
    Compare,
    Constant,
    Exists,
    Guarded,
    InValues,
    IsNull,
    Like,
    Literal,
    Not,
    OneOf,
    Or,
    Outer,
    Predicate,
    Scalar,
    Sign,
    Value,
)
from pylon.query.predicate_parts import asks_rows, conjuncts
from pylon.values.notations import Notation

_OPPOSITE: Final[dict[Sign, Sign]] = {
    "=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<=",
}


def and_(*items: Predicate) -> Predicate:
    """The condition that holds where all of `items` hold; `TRUE` for none."""
    kept: list[Predicate] = []
    for item in items:
        if type(item) is Constant:
            if not item.holds:
                return FALSE
        elif type(item) is And:
            kept += item.items
        else:
            kept.append(item)
    if len(kept) == 1:
        return kept[0]
    return And(tuple(kept)) if kept else TRUE


def or_(*items: Predicate) -> Predicate:
    """The condition that holds where one of `items` holds; `FALSE` for none."""
    kept: list[Predicate] = []
    for item in items:
        if type(item) is Constant:
            if item.holds:
                return TRUE
        elif type(item) is Or:
            kept += item.items
        else:
            kept.append(item)
    if len(kept) == 1:
        return kept[0]
    return Or(tuple(kept)) if kept else FALSE


def not_(item: Predicate) -> Predicate:
    """The condition that holds exactly where `item` does not."""
    if type(item) is Constant:
        return FALSE if item.holds else TRUE
    return item.operand if type(item) is Not else Not(item)


def guarded(allowed: Predicate, wanted: Predicate) -> Predicate:
    """The rows of `allowed` for which `wanted` holds; see `Guarded`."""
    if type(allowed) is Constant:
        return wanted if allowed.holds else FALSE
    if type(wanted) is Constant:
        return allowed if wanted.holds else FALSE
    if asks_rows(allowed):
        # So that what other rows decide need not be asked for each row (`find_closed_checks`).
        values = {
            item.left.field: item.right for item in conjuncts(wanted)
            if type(item) is Compare and item.sign == "="
            and type(item.left) is Column and type(item.right) is Literal
        }
        if values:
            allowed = _with_values(allowed, values, 0)
    return Guarded(allowed, wanted)


def _with_values(node: Predicate, values: Mapping[str, Literal], depth: int) -> Predicate:
    """Return a condition in which `Exists` compare with known values of the judged row's fields.

    Args:
        depth: how many `Exists` are around the node.
    """
    if type(node) is Exists:
        return Exists(node.entity, _with_values(node.where, values, depth + 1), node.is_listable)
    changes: dict[str, object] = {}
    for name in node.__struct_fields__:
        value = getattr(node, name)
        if type(value) is Outer:
            if value.depth == depth and value.field in values:
                changes[name] = values[value.field]
        elif isinstance(value, tuple):
            changes[name] = tuple([
                _with_values(part, values, depth) if isinstance(part, Predicate) else part
                for part in value
            ])
        elif isinstance(value, Predicate):
            changes[name] = _with_values(value, values, depth)
    return msgspec.structs.replace(node, **changes) if changes else node


def compare(sign: Sign, left: Value, right: Value) -> Predicate:
    """A comparison; a column stands to the left of a literal."""
    if type(right) is Literal:
        if right.value is None:
            return FALSE
    elif type(left) is Literal:
        if left.value is None:
            return FALSE
        sign, left, right = _OPPOSITE[sign], right, left
    return Compare(sign, left, right)


def equal(field: str, value: Scalar, notation: Notation = "") -> Predicate:
    """Whether the field has this value, or is null for None."""
    column = Column(field, notation)
    return IsNull(column) if value is None else Compare("=", column, Literal(value))


def is_null(operand: Value) -> Predicate:
    """Whether the value is null."""
    if type(operand) is Literal:
        return TRUE if operand.value is None else FALSE
    if isinstance(operand, Predicate):
        return FALSE
    return IsNull(operand)


def one_of(item: Value, options: tuple[Value, ...]) -> Predicate:
    """Whether the item equals one of `options`, of which a null equals nothing."""
    kept = tuple([o for o in options if type(o) is not Literal or o.value is not None])
    if not kept or (type(item) is Literal and item.value is None):
        return FALSE
    return OneOf(item, kept)


def in_values(
    field: str, values: tuple[str | int | float | bool, ...], has_null: bool,
    notation: Notation = "",
) -> Predicate:
    """Whether the field has one of `values`, or null if `has_null`."""
    if values:
        return InValues(field, values, has_null, False, notation)
    return IsNull(Column(field, notation)) if has_null else FALSE


def affix(at_end: bool, text: Value, part: Value) -> Predicate:
    """Whether `text` begins or ends with `part`; every text has an empty one."""
    for value in (text, part):
        if type(value) is Literal and value.value is None:
            return FALSE
    if type(part) is Literal and part.value == "":
        return not_(is_null(text))
    return Affix(at_end, text, part)


def like(field: str, pattern: str, notation: Notation = "") -> Predicate:
    """Whether the field's text has `pattern` somewhere; ``%`` and ``_`` are wildcards."""
    if "\0" in pattern:  # no pattern of a client has it, and no row that a client wrote
        return FALSE
    has_wildcards = not is_plain_text(pattern)
    return Like(field, pattern, has_wildcards, is_hard_pattern(pattern, has_wildcards), notation)


def contains(field: str, text: str) -> Predicate:
    """Whether the field's text has `text` somewhere, as it stands but for the case of ASCII
    letters.

    Args:
        text: without NUL.
    """
    return Like(field, text, False, is_hard_pattern(text, False))


def exists_row(entity: str, where: Predicate, is_listable: bool = False) -> Predicate:
    """Whether a row of the entity fulfils `where`."""
    return FALSE if where is FALSE else Exists(entity, where, is_listable)
