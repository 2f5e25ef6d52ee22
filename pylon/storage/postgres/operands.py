"""Operands: brings the values of a predicate into the types of the columns that they meet.

PostgreSQL gives each parameter one type, compares whole numbers with doubles as doubles, and takes
no text with a NUL character or half a surrogate pair. So `Operands.fit` turns a predicate into one
that means the same for every row that can be stored, and in which a comparison has sides of one
type:

- A number becomes one of its column's type, or the next one, with another sign where needed.
- A column of whole numbers and one of doubles meet as exact numbers (`Converted`).
- An impossible text becomes the text next to it, or the condition becomes a constant.

Invariants: no row that the writer accepts fulfils only one of the two predicates. The types of
fields are the manifest's. Called by `dialect`, for each predicate that is compiled. PERF: a tree
whose values have the types of their columns is returned as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from math import ceil, floor, isinf, isnan
from typing import Any, Final, cast
from typing import Literal as OneWord

import msgspec

from pylon.manifest.model import Entity, FieldType, Manifest
from pylon.query.conditions import (
    affix,
    and_,
    compare,
    exists_row,
    guarded,
    in_values,
    is_null,
    not_,
    one_of,
    or_,
)
from pylon.query.evaluate import evaluator_of
from pylon.query.predicate import (
    FALSE,
    TRUE,
    Affix,
    And,
    Arithmetic,
    Column,
    Compare,
    CompareTuple,
    Constant,
    Element,
    Exists,
    Guarded,
    HasMember,
    InValues,
    IsNull,
    Like,
    Literal,
    Match,
    Not,
    OneOf,
    Or,
    Outer,
    Predicate,
    Scalar,
    Sign,
    Value,
)
from pylon.values import INT_MAX, INT_MIN

SqlType = OneWord["text", "bigint", "double precision", "boolean", "numeric"]
Types = Mapping[str, SqlType]  # by field

_TYPES: Final[dict[FieldType, SqlType]] = {
    FieldType.INT: "bigint", FieldType.FLOAT: "double precision", FieldType.BOOL: "boolean",
}
_TEXT: Final[SqlType] = "text"
_OF_VALUE: Final[dict[type, SqlType]] = {
    str: "text", bool: "boolean", int: "bigint", float: "double precision",
}
_OF_KIND: Final[dict[str, SqlType]] = {
    "any": "boolean", "text": "text", "number": "numeric", "boolean": "boolean",
}
_FAR: Final = 2.0**63
_LAST: Final = "\ue000"  # the first character behind the surrogates


class Converted(msgspec.Struct, frozen=True, gc=False):
    """A value in another type."""

    operand: Any
    source: SqlType
    target: SqlType


class Number(msgspec.Struct, frozen=True, gc=False):
    """An exact number, as its digits."""

    digits: str


def types_of(entity: Entity) -> dict[str, SqlType]:
    """Return the types of an entity's columns."""
    types = {field.name: _TYPES.get(field.type, _TEXT) for field in entity.fields}
    return {**types, "id": _TEXT}


def exact_digits(value: float) -> str:
    """Return the digits of a number as the function `_pylon_exact` has them."""
    if isinstance(value, int):
        return str(value)
    if isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if -_FAR <= value < _FAR and abs(value) >= 2.0**53:
        return str(int(value))
    return str(Decimal(repr(value)))


def is_storable(text: str) -> bool:
    """Whether a row can have the text."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Operands:
    """Fits the predicates on the entities of a manifest."""

    __slots__ = ("_types",)

    def __init__(self, manifest: Manifest) -> None:
        self._types = {entity.name: types_of(entity) for entity in manifest.entities}

    def fit(self, entity: Entity, predicate: Predicate) -> Predicate:
        """Return the predicate with values of the columns' types."""
        types = self._types.get(entity.name)
        if types is None:
            types = types_of(entity)
        return _Fit(self._types, (types,)).condition(predicate)


class _Fit:
    """One row's conditions: `scopes` has the types of its fields, then of the rows around it."""

    __slots__ = ("_all", "_scopes", "_types")

    def __init__(self, every: Mapping[str, Types], scopes: tuple[Types, ...]) -> None:
        self._all = every
        self._scopes = scopes
        self._types = scopes[0]

    def condition(self, node: Predicate) -> Predicate:
        """Return the condition in the types of its columns."""
        return _FITS[type(node)](self, node)

    # --- Logic ---------------------------------------------------------------------------------

    def _items(self, node: And | Or) -> Predicate:
        items = [self.condition(item) for item in node.items]
        if all(map(operator.is_, items, node.items)):
            return node
        return and_(*items) if type(node) is And else or_(*items)

    def _not(self, node: Not) -> Predicate:
        operand = self.condition(node.operand)
        return node if operand is node.operand else not_(operand)

    def _guarded(self, node: Guarded) -> Predicate:
        allowed, wanted = self.condition(node.allowed), self.condition(node.wanted)
        if allowed is node.allowed and wanted is node.wanted:
            return node
        return guarded(allowed, wanted)

    def _exists(self, node: Exists) -> Predicate:
        inner = _Fit(self._all, (self._all[node.entity], *self._scopes))
        where = inner.condition(node.where)
        return node if where is node.where else exists_row(node.entity, where, node.is_listable)

    def _same(self, node: Predicate) -> Predicate:
        return node

    # --- Comparisons ---------------------------------------------------------------------------

    def _compare(self, node: Compare) -> Predicate:
        left, right = node.left, node.right
        if (
            type(left) is Column and type(right) is Literal
            and _fits(self._types.get(left.field, _TEXT), right.value)
        ):
            return node  # PERF: the usual comparison
        first, first_type = self._value(left)
        second, second_type = self._value(right)
        if type(first) is Literal:
            if first.value is None or type(second) is Literal:
                found = compare(node.sign, first, second)
                return TRUE if evaluator_of(found)({}) else FALSE
            return self.condition(compare(node.sign, first, right))  # `second` is fitted already
        if type(second) is Literal:
            return _with_operand(node.sign, first, first_type, second.value)
        if first_type == second_type:
            return Compare(node.sign, first, second)
        if {first_type, second_type} <= {"bigint", "double precision", "numeric"}:
            return Compare(node.sign, _exact(first, first_type), _exact(second, second_type))
        return _of_two_kinds(node.sign, first, second, first_type == "text")

    def _compare_tuple(self, node: CompareTuple) -> Predicate:
        """Up to the first value that is none of its column's type, the comparison is as it was."""
        if node.values == (None,):
            return node
        for place, (field, value) in enumerate(zip(node.fields, node.values, strict=True)):
            if _fits(self._types.get(field, _TEXT), value):
                continue
            fields, values = node.fields, node.values
            same = [self._equal(f, v) for f, v in zip(fields[:place], values[:place], strict=True)]
            sign: Sign = "<" if node.is_below else ">"
            options = [and_(*same, self._compare(Compare(sign, Column(field), Literal(value))))]
            if place:
                options.append(self._tuple(fields[:place], node.is_below, values[:place]))
            if place + 1 < len(fields):
                rest = self._compare_tuple(
                    CompareTuple(fields[place + 1 :], node.is_below, values[place + 1 :])
                )
                options.append(and_(*same, self._equal(field, value), rest))
            return or_(*options)
        return node

    def _tuple(
        self, fields: tuple[str, ...], is_below: bool, values: tuple[Scalar, ...]
    ) -> Predicate:
        if len(fields) == 1:
            return Compare("<" if is_below else ">", Column(fields[0]), Literal(values[0]))
        return CompareTuple(fields, is_below, values)

    def _equal(self, field: str, value: Scalar) -> Predicate:
        return self._compare(Compare("=", Column(field), Literal(value)))

    def _is_null(self, node: IsNull) -> Predicate:
        if type(node.operand) is Column:
            return node
        operand, _ = self._value(node.operand)
        return node if operand is node.operand else is_null(operand)

    def _one_of(self, node: OneOf) -> Predicate:
        item, kind = self._value(node.item)
        if type(item) is not Literal and all(type(option) is Literal for option in node.options):
            found = [
                _with_operand("=", item, kind, cast(Literal, option).value)
                for option in node.options
            ]
            same = tuple([part.right for part in found if type(part) is Compare])
            return one_of(item, same) if same else FALSE
        return or_(*[
            self.condition(compare("=", node.item, option)) for option in node.options
        ])

    def _in_values(self, node: InValues) -> Predicate:
        kind = self._types.get(node.field, _TEXT)
        if kind == "text":
            kept = tuple([
                value for value in node.values if type(value) is str and is_storable(value)
            ])
        else:
            column = Column(node.field)
            found = [_with_operand("=", column, kind, value) for value in node.values]
            kept = tuple([
                cast(Any, part.right).value for part in found if type(part) is Compare
            ])
        if len(kept) == len(node.values):
            return node if kept == node.values and all(
                map(operator.is_, map(type, kept), map(type, node.values))
            ) else msgspec.structs.replace(node, values=kept)
        if not node.is_negated:
            return in_values(node.field, kept, node.has_null, node.notation)
        if kept:
            return msgspec.structs.replace(node, values=kept)
        return Not(IsNull(Column(node.field, node.notation)))

    # --- Texts ---------------------------------------------------------------------------------

    def _affix(self, node: Affix) -> Predicate:
        text, _ = self._value(node.text)
        part, _ = self._value(node.affix)
        if type(text) is Literal and type(part) is Literal:
            return TRUE if evaluator_of(node)({}) else FALSE
        if type(part) is Literal and not is_storable(str(part.value)):
            return FALSE
        if type(text) is Literal and not is_storable(str(text.value)):
            pieces = _storable_pieces(str(text.value))
            text = Literal(pieces[-1] if node.at_end else pieces[0])
        if text is node.text and part is node.affix:
            return node
        return affix(node.at_end, text, part)

    def _like(self, node: Like) -> Predicate:
        return node if is_storable(node.pattern) else FALSE

    def _match(self, node: Match) -> Predicate:
        return node if all(map(is_storable, node.words)) else FALSE

    def _has_member(self, node: HasMember) -> Predicate:
        if not all(map(is_storable, node.path)):
            return FALSE
        return FALSE if isinstance(node.member, str) and not is_storable(node.member) else node

    # --- Values --------------------------------------------------------------------------------

    def _value(self, value: Value) -> tuple[Value, SqlType]:
        """Return a value and its type. A literal stays as it is."""
        if type(value) is Column:
            return value, self._types.get(value.field, _TEXT)
        if type(value) is Outer:
            return value, self._scopes[value.depth].get(value.field, _TEXT)
        if type(value) is Literal:
            return value, _OF_VALUE.get(type(value.value), _TEXT)
        if type(value) is Element:
            if all(map(is_storable, value.path)):
                return value, _OF_KIND[value.kind]
            return Literal(None), _OF_KIND[value.kind]
        if type(value) is Arithmetic:
            return self._arithmetic(value)
        assert isinstance(value, Predicate)
        found = self.condition(value)
        return (Literal(found.holds) if type(found) is Constant else found), "boolean"

    def _arithmetic(self, node: Arithmetic) -> tuple[Value, SqlType]:
        target: SqlType = "bigint" if node.op == "%" else "double precision"
        sides = [
            _converted(*self._value(side), target) for side in (node.left, node.right)
        ]
        if any(type(side) is Literal and side.value is None for side in sides):
            return Literal(None), target
        if sides[0] is node.left and sides[1] is node.right:
            return node, target
        return Arithmetic(node.op, sides[0], sides[1]), target


def _fits(kind: SqlType, value: Scalar) -> bool:
    """Whether a parameter of the type can have the value."""
    if type(value) is str:
        return kind == "text" and is_storable(value)
    if type(value) is int:
        return kind == "bigint" and INT_MIN <= value <= INT_MAX
    return _OF_VALUE.get(type(value)) == kind


def _converted(value: Value, source: SqlType, target: SqlType) -> Value:
    """Return an operand of arithmetic."""
    if source == target:
        return value
    if type(value) is Literal:
        if value.value is None:
            return value
        number = cast(float, value.value)
        if target == "double precision":
            return Literal(float(number))
        whole = min(max(number, -_FAR), _FAR)
        return Literal(min(max(int(whole), INT_MIN), INT_MAX))
    return cast(Value, Converted(value, source, target))


def _exact(value: Value, source: SqlType) -> Value:
    if source == "numeric":
        return value
    return cast(Value, Converted(value, source, "numeric"))


def _with_operand(sign: Sign, left: Value, kind: SqlType, value: Scalar) -> Predicate:
    """Return the comparison of a value of a type with a literal."""
    if value is None:
        return FALSE
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "text" and isinstance(value, str):
        if is_storable(value):
            return Compare(sign, left, Literal(value))
        return _near_text(sign, left, value)
    if kind == "boolean" and not isinstance(value, str):
        return Compare(sign, left, Literal(bool(value)))
    if kind == "numeric" and is_number:
        return Compare(sign, left, cast(Value, Number(exact_digits(cast(float, value)))))
    if kind == "bigint" and is_number:
        return _with_whole(sign, left, value)
    if kind == "double precision" and is_number:
        return _with_double(sign, left, value)
    return _of_two_kinds(sign, left, None, kind == "text")


def _of_two_kinds(
    sign: Sign, left: Value, right: Value | None, left_is_text: bool
) -> Predicate:
    """Return the comparison of a number or boolean with a text, which is behind it."""
    holds = sign == "<>" or (sign[0] == ">" if left_is_text else sign[0] == "<")
    if not holds:
        return FALSE
    present = not_(is_null(left))
    return present if right is None else and_(present, not_(is_null(right)))


def _present(value: Value) -> Predicate:
    return not_(is_null(value))


def _with_whole(sign: Sign, left: Value, value: Any) -> Predicate:
    """Return the comparison of a whole number of 64 bits with any number."""
    if isinstance(value, float):
        if isnan(value):
            return FALSE
        if isinf(value) or not value.is_integer():
            below = INT_MIN - 1 if value < 0 else INT_MAX + 1
            return _between(
                sign, left, below if isinf(value) else floor(value),
                below if isinf(value) else ceil(value),
            )
        value = int(value)
    if not INT_MIN <= value <= INT_MAX:
        return _between(sign, left, value, value)
    return Compare(sign, left, Literal(value))


def _between(sign: Sign, left: Value, low: int, high: int) -> Predicate:
    """Return the comparison with a number that is no whole number of 64 bits, between two."""
    if sign == "=":
        return FALSE
    if sign == "<>":
        return _present(left)
    if sign[0] == "<":
        if low < INT_MIN:
            return FALSE
        return _present(left) if low > INT_MAX else Compare("<=", left, Literal(low))
    if high > INT_MAX:
        return FALSE
    return _present(left) if high < INT_MIN else Compare(">=", left, Literal(high))


def _with_double(sign: Sign, left: Value, value: Any) -> Predicate:
    """Return the comparison of a double with any number."""
    if isinstance(value, float):
        return FALSE if isnan(value) else Compare(sign, left, Literal(value))
    try:
        nearest = float(value)
    except OverflowError:
        nearest = float("inf") if value > 0 else -float("inf")
    if nearest == value:
        return Compare(sign, left, Literal(nearest))
    if sign == "=":
        return FALSE
    if sign == "<>":
        return _present(left)
    # No double is between the number and the nearest one.
    bounds: dict[str, Sign] = (
        {"<": "<", ">": ">="} if nearest > value else {"<": "<=", ">": ">"}
    )
    return Compare(bounds[sign[0]], left, Literal(nearest))


def _near_text(sign: Sign, left: Value, text: str) -> Predicate:
    """Return the comparison with a text that no row can have: by the text before the first
    impossible character, and behind it the first possible one."""
    if sign == "=":
        return FALSE
    if sign == "<>":
        return _present(left)
    begin = _storable_pieces(text)[0]
    if text[len(begin)] == "\0":
        return Compare("<=" if sign[0] == "<" else ">", left, Literal(begin))
    return Compare("<" if sign[0] == "<" else ">=", left, Literal(begin + _LAST))


def _storable_pieces(text: str) -> list[str]:
    """Return what stands before the first and behind the last impossible character."""
    places = [
        place for place, character in enumerate(text)
        if character == "\0" or "\ud800" <= character <= "\udfff"
    ]
    return [text[: places[0]], text[places[-1] + 1 :]]


_FITS: Final[dict[type, Callable[[_Fit, Any], Predicate]]] = {
    Constant: _Fit._same, And: _Fit._items, Or: _Fit._items, Not: _Fit._not,
    Guarded: _Fit._guarded, Exists: _Fit._exists, Compare: _Fit._compare,
    CompareTuple: _Fit._compare_tuple, IsNull: _Fit._is_null, OneOf: _Fit._one_of,
    InValues: _Fit._in_values, Affix: _Fit._affix, Like: _Fit._like, Match: _Fit._match,
    HasMember: _Fit._has_member,
}
