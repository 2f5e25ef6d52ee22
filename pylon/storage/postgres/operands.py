"""Operands: brings the values of a predicate into the types of the columns that they meet.

PostgreSQL compares whole numbers with doubles as doubles, and gives each parameter one type. So
`Operands.fit` turns a predicate into one that means the same for every row that can be stored, and
in which a comparison has sides of one type. `comparisons` fits a literal to the column that it
meets. A column of whole numbers and one of doubles meet as exact numbers (`Converted`).

Invariants: no row that the writer accepts fulfils only one of the two predicates. The types of
fields are the manifest's. Called by `dialect`, for each predicate that is compiled. PERF: a tree
whose values have the types of their columns is returned as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

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
from pylon.storage.postgres.comparisons import (
    FAR,
    SqlType,
    compare_kinds,
    compare_literal,
    is_storable,
    storable_pieces,
)
from pylon.values import INT_MAX, INT_MIN

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


class Converted(msgspec.Struct, frozen=True, gc=False):
    """A value in another type."""

    operand: Any
    source: SqlType
    target: SqlType


def types_of(entity: Entity) -> dict[str, SqlType]:
    """Return the types of an entity's columns."""
    types = {field.name: _TYPES.get(field.type, _TEXT) for field in entity.fields}
    return {**types, "id": _TEXT}


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
            return compare_literal(node.sign, first, first_type, second.value)
        if first_type == second_type:
            return Compare(node.sign, first, second)
        if {first_type, second_type} <= {"bigint", "double precision", "numeric"}:
            return Compare(node.sign, _exact(first, first_type), _exact(second, second_type))
        return compare_kinds(node.sign, first, second, first_type == "text")

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
                compare_literal("=", item, kind, cast(Literal, option).value)
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
            found = [compare_literal("=", column, kind, value) for value in node.values]
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
            pieces = storable_pieces(str(text.value))
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
        whole = min(max(number, -FAR), FAR)
        return Literal(min(max(int(whole), INT_MIN), INT_MAX))
    return cast(Value, Converted(value, source, target))


def _exact(value: Value, source: SqlType) -> Value:
    if source == "numeric":
        return value
    return cast(Value, Converted(value, source, "numeric"))


_FITS: Final[dict[type, Callable[[_Fit, Any], Predicate]]] = {
    Constant: _Fit._same, And: _Fit._items, Or: _Fit._items, Not: _Fit._not,
    Guarded: _Fit._guarded, Exists: _Fit._exists, Compare: _Fit._compare,
    CompareTuple: _Fit._compare_tuple, IsNull: _Fit._is_null, OneOf: _Fit._one_of,
    InValues: _Fit._in_values, Affix: _Fit._affix, Like: _Fit._like, Match: _Fit._match,
    HasMember: _Fit._has_member,
}
