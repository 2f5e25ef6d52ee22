"""Conditions on the row of an entity, as frozen trees that compare by structure.

Wire filters (`pylon.query.parse`) and read policies (`pylon.policy.bind`) make them.
`pylon.query.evaluate` judges a decoded row by them; a backend compiles them. The meaning of
each node stands in docs/query-semantics.md and does not depend on a backend.

Invariants: logic is two-valued, so a condition holds or does not. A comparison is false for a null
operand, and so is every search in a text. The functions below fold constants: `TRUE` and `FALSE`
never stand inside another node, and no null literal stands in a comparison. The parsers bound
the size of a tree. Other modules make trees with these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Final
from typing import Literal as OneWord

import msgspec

from pylon.query.patterns import is_hard_pattern, is_plain_text
from pylon.values.json_values import ElementKind
from pylon.values.notations import Notation

Scalar = str | int | float | bool | None
ArithmeticSign = OneWord["+", "-", "*", "/", "%"]
Sign = OneWord["=", "<>", "<", "<=", ">", ">="]
_OPPOSITE: Final[dict[Sign, Sign]] = {
    "=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<=",
}


class Cost(IntEnum):
    """The largest piece of work that one row may cause; it decides where a read may run."""

    PLAIN = 0  # comparisons of values
    PATTERN = 1  # a search through a text, or a look into a JSON value
    MATCH = 2  # a search through the full-text index


# PERF: a Struct is made in a fifth of the time of a frozen dataclass (0.09 us, 0.45 us), and
# `gc=False` keeps trees, which have no cycles, out of the garbage collector's walks.


class Column(msgspec.Struct, frozen=True, gc=False):
    """The value of a field of the row; an absent field is null.

    With a `notation` it is the text that the store compares. A backend has that text in the column,
    so only evaluators in Python convert the value of a row.
    """

    field: str
    notation: Notation = ""


class Literal(msgspec.Struct, frozen=True, gc=False):
    """A value; a bool for boolean fields and for conditions."""

    value: Scalar


class Outer(msgspec.Struct, frozen=True, gc=False):
    """The value of a field of a row outside the `Exists` that it stands in: of the row that this
    `Exists` is a condition of (`depth` 1), or of the row outside that one (2)."""

    field: str
    depth: int


class Element(msgspec.Struct, frozen=True, gc=False):
    """The value at a path of a JSON field, if it is of the kind; null otherwise.

    Of the kind `any` it is true for every value but null. `is_text`: a row has the JSON as text.
    """

    field: str
    path: tuple[str, ...]
    kind: ElementKind
    is_text: bool = False


class Arithmetic(msgspec.Struct, frozen=True, gc=False):
    """``+ - * /`` in double precision, ``%`` of whole-number parts in 64 bits.

    Null for a null operand, for a divisor of 0 and for NaN.
    """

    op: ArithmeticSign
    left: Value
    right: Value


class Constant(msgspec.Struct, frozen=True, gc=False):
    """A condition that holds for every row, or for none: `TRUE` and `FALSE`."""

    holds: bool


class Compare(msgspec.Struct, frozen=True, gc=False):
    """A comparison of two values of one kind; false when one is null, also for ``<>``."""

    sign: Sign
    left: Value
    right: Value


class CompareTuple(msgspec.Struct, frozen=True, gc=False):
    """Whether the fields, one after the other, lie above the values, or below them if `is_below`.

    The first field that differs from its value decides. False if that field is null, and if all
    are equal. There are as many values as fields, and none is null, with one exception: a single
    field lies above null if it has a value.
    """

    fields: tuple[str, ...]
    is_below: bool
    values: tuple[Scalar, ...]
    notations: tuple[Notation, ...] = ()  # of the fields; empty: all are empty


class IsNull(msgspec.Struct, frozen=True, gc=False):
    """Whether the value is null."""

    operand: Value


class OneOf(msgspec.Struct, frozen=True, gc=False):
    """Whether the item equals one of a few values, which may be columns."""

    item: Value
    options: tuple[Value, ...]


class InValues(msgspec.Struct, frozen=True, gc=False):
    """Whether the field has one of many values, or null if `has_null`.

    Negated: whether the field has a value, and none of these. The list of a float field has
    floats only. A list of any length has the same shape.
    """

    field: str
    values: tuple[str | int | float | bool, ...]
    has_null: bool = False
    is_negated: bool = False
    notation: Notation = ""


class Affix(msgspec.Struct, frozen=True, gc=False):
    """Whether the text begins, or `at_end` ends, with another text, code point by code point."""

    at_end: bool
    text: Value
    affix: Value


class Like(msgspec.Struct, frozen=True, gc=False):
    """Whether the field's text has `pattern` somewhere; ASCII letters have no case.

    With `has_wildcards`, ``%`` is any text and ``_`` any one character. `is_hard`: the time of a
    usual matcher grows with the text's size times the pattern's (`pylon.query.patterns`).
    """

    field: str
    pattern: str
    has_wildcards: bool
    is_hard: bool
    notation: Notation = ""


class HasMember(msgspec.Struct, frozen=True, gc=False):
    """Whether the value at a path of a JSON field is a list with this member."""

    field: str
    path: tuple[str, ...]
    member: str | int | float | bool
    is_text: bool = False


class Match(msgspec.Struct, frozen=True, gc=False):
    """Whether the entity's full-text index finds all words in the row; see `pylon.query.search`.

    `is_open`: words that begin with the last one are found too.
    """

    words: tuple[str, ...]
    is_open: bool


class Exists(msgspec.Struct, frozen=True, gc=False):
    """Whether an entity has a row for which `where` holds; its columns are those of that row.

    Policies make it, and it looks at all rows, whatever the caller may read. `is_listable`: an
    index finds the rows by those parts of `where` that have no `Outer`.
    """

    entity: str
    where: Predicate
    is_listable: bool = False


class Not(msgspec.Struct, frozen=True, gc=False):
    """Whether the operand does not hold."""

    operand: Predicate


class And(msgspec.Struct, frozen=True, gc=False):
    """Whether all items hold; there are two or more."""

    items: tuple[Predicate, ...]


class Or(msgspec.Struct, frozen=True, gc=False):
    """Whether one of the items holds; there are two or more."""

    items: tuple[Predicate, ...]


class Guarded(msgspec.Struct, frozen=True, gc=False):
    """Whether both hold, where `wanted` must never meet a row for which `allowed` does not hold.

    `allowed` is a caller's read policy and `wanted` the caller's filter. The time of a query
    must not tell what a hidden row has in it. A backend may look for rows by an equality or a
    range of `wanted` that an index serves, and by a `Match`, before it judges `allowed`.
    """

    allowed: Predicate
    wanted: Predicate


Predicate = (
    Constant | Compare | CompareTuple | IsNull | OneOf | InValues | Affix | Like | HasMember
    | Match | Not | And | Or | Guarded | Exists
)
Value = Column | Outer | Literal | Element | Arithmetic | Predicate

TRUE: Final = Constant(True)
FALSE: Final = Constant(False)


# --- Construction -------------------------------------------------------------------------------


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


_LEAVES: Final = frozenset({Column, Outer, Literal, Constant, InValues, Like, Match})


# --- Questions ----------------------------------------------------------------------------------


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
