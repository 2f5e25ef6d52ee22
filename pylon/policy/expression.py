"""Typed expression of a rule: the nodes that `check` makes, and functions that read them.

Invariants: all names are resolved and all kinds agree, so no later step meets an unknown name or
compares a string with a number. Each node has one meaning: ``!=`` is `Not(Equal)`, ``-x`` is
``0 - x``, a comparison with the word null is `IsNull`, and the role functions are `HasRole`.
Read by `compile`, `bind`, `related`, `routing` and `entity_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any
from typing import Literal as OneWord

import msgspec
from msgspec.structs import replace

from pylon.values.notations import Notation

Root = OneWord["data", "existing", "input", "room"]


class Kind(Enum):
    """Kind of a value. Integers and floats are one kind; texts and ids are strings."""

    STRING = "string"
    NUMBER = "number"
    BOOL = "boolean"
    NULL = "null"
    LIST = "list"
    DATETIME = "datetime"
    DATE = "date"
    DECIMAL = "decimal"
    JSON = "json"

    @property
    def notation(self) -> Notation:
        """Return how values of a row become comparable."""
        if self is Kind.DATETIME:
            return "instant"
        return "decimal" if self is Kind.DECIMAL else ""


class Literal(msgspec.Struct, frozen=True):
    """A value written in the rule. No node but `IsNull` and `OneOf` meets null."""

    value: str | int | float | bool | None
    kind: Kind


class Auth(msgspec.Struct, frozen=True):
    """An attribute of the caller's `AuthContext`, by its Python name."""

    attribute: str
    kind: Kind

    @property
    def nullable(self) -> bool:
        return self.attribute in ("user_id", "tenant_id")


class Column(msgspec.Struct, frozen=True):
    """A field of a row. May always be null: rows of old change events lack newer fields."""

    root: Root
    field: str
    kind: Kind


class Arithmetic(msgspec.Struct, frozen=True):
    """Computed in double precision. Null if an operand is null, the divisor is 0, or for NaN.

    ``%`` takes whole-number parts and the sign of its left side, as SQL does.
    """

    op: str
    left: Expr
    right: Expr


class Equal(msgspec.Struct, frozen=True):
    """True if both are equal and not null."""

    left: Expr
    right: Expr


class Ordered(msgspec.Struct, frozen=True):
    """``< <= > >=``; strings by code point. False if an operand is null."""

    op: str
    left: Expr
    right: Expr


class IsNull(msgspec.Struct, frozen=True):
    """Whether the operand is null."""

    operand: Expr


class OneOf(msgspec.Struct, frozen=True):
    """``x in [a, b]``: Equal to any of them. The options hold no null literal."""

    item: Expr
    options: tuple[Expr, ...]


class HasRole(msgspec.Struct, frozen=True):
    """``x in auth.roles`` and ``auth.hasRole('x')``."""

    role: Expr


class Affix(msgspec.Struct, frozen=True):
    """``starts_with`` (at_end false) and ``ends_with``. False if an operand is null."""

    at_end: bool
    text: Expr
    affix: Expr


class Related(msgspec.Struct, frozen=True):
    """A field of the row that the `Exists` around a nested one looks for."""

    field: str
    kind: Kind


class Comparison(msgspec.Struct, frozen=True):
    """Compares a field of the row that an `Exists` looks for: ``== != < <= > >= in``.

    `options` has one value, or those of a list; each is a `Literal`, `Auth`, `Column` or
    `Related`. A null compares as in `Equal` and `IsNull`, and ``!=`` is true where ``==`` is false.
    """

    field: str
    op: str
    options: tuple[Expr, ...]
    # How the values of the field become comparable; no part of the text of a rule.
    notation: Notation = ""

    def __repr__(self) -> str:
        return f"Comparison(field={self.field!r}, op={self.op!r}, options={self.options!r})"


class Exists(msgspec.Struct, frozen=True):
    """Whether a row of `entity` fulfils all comparisons and all nested `Exists`.

    `is_listable`: an index of the entity finds the rows by what does not depend on the judged row.
    It is no part of the text, because it does not change which rows fulfil the rule.
    """

    entity: str
    comparisons: tuple[Comparison, ...]
    nested: tuple[Exists, ...] = ()
    is_listable: bool = False

    def __repr__(self) -> str:
        return (
            f"Exists(entity={self.entity!r}, comparisons={self.comparisons!r}, "
            f"nested={self.nested!r})"
        )


class Not(msgspec.Struct, frozen=True):
    """True if the operand is false."""

    operand: Expr


class And(msgspec.Struct, frozen=True):
    """True if all items are true."""

    items: tuple[Expr, ...]


class Or(msgspec.Struct, frozen=True):
    """True if one item is true."""

    items: tuple[Expr, ...]


Expr = (
    Literal | Auth | Column | Arithmetic | Equal | Ordered | IsNull | OneOf | HasRole | Affix
    | Not | And | Or | Related | Comparison | Exists
)

TRUE = Literal(True, Kind.BOOL)
FALSE = Literal(False, Kind.BOOL)


def kind_of(expr: Expr) -> Kind:
    """Return the kind of an expression's values."""
    if isinstance(expr, (Literal, Auth, Column, Related)):
        return expr.kind
    return Kind.NUMBER if isinstance(expr, Arithmetic) else Kind.BOOL


def nullable(expr: Expr) -> bool:
    """Whether the value can be null."""
    if isinstance(expr, Literal):
        return expr.value is None
    if isinstance(expr, Auth):
        return expr.nullable
    return isinstance(expr, (Column, Arithmetic, Related))


def parts(expr: Expr) -> Iterator[Expr]:
    """Yield the direct operands of an expression."""
    for name in expr.__struct_fields__:
        value = getattr(expr, name)
        if isinstance(value, tuple):
            yield from value
        elif isinstance(value, Expr):
            yield value


def roots(expr: Expr) -> frozenset[str]:
    """Return the roots of an expression: any of ``auth``, ``data``, ``existing``, ``input``,
    ``room``, and ``related`` where it asks other rows.
    """
    if isinstance(expr, Auth):
        return frozenset({"auth"})
    if isinstance(expr, Column):
        return frozenset({expr.root})
    own = frozenset[str]()
    if isinstance(expr, HasRole):
        own = frozenset({"auth"})
    elif isinstance(expr, (Exists, Related)):
        own = frozenset({"related"})
    return own.union(*(roots(part) for part in parts(expr)))


def fields_of(expr: Expr) -> frozenset[str]:
    """Return the fields of a row, before or after, that an expression reads."""
    if isinstance(expr, Column):
        return frozenset({expr.field})
    return frozenset[str]().union(*(fields_of(part) for part in parts(expr)))


def exists_in(expr: Expr) -> Iterator[Exists]:
    """Yield each `Exists` of an expression, without those nested in another one."""
    if isinstance(expr, Exists):
        yield expr
    else:
        for part in parts(expr):
            yield from exists_in(part)


def is_fixed(expr: Expr) -> bool:
    """Whether the value is the same for all rows. It may differ between callers."""
    return roots(expr) <= {"auth"}


def conjuncts(expr: Expr) -> tuple[Expr, ...]:
    """Return the expressions that must all be true for this one to be true."""
    if isinstance(expr, And):
        return tuple(leaf for item in expr.items for leaf in conjuncts(item))
    return (expr,)


def conjunction(rules: list[Expr]) -> Expr:
    """Return the expression that all rules hold; `FALSE` without a rule."""
    if len(rules) == 1:
        return rules[0]
    return And(tuple(rules)) if rules else FALSE


def one_row(expr: Expr) -> Expr:
    """Return the expression with ``data`` in place of ``existing``: they are one row."""
    if isinstance(expr, Column):
        return replace(expr, root="data")
    changes: dict[str, Any] = {}
    for name in expr.__struct_fields__:
        value = getattr(expr, name)
        if isinstance(value, tuple):
            changes[name] = tuple(one_row(item) for item in value)
        elif isinstance(value, Expr):
            changes[name] = one_row(value)
    return replace(expr, **changes) if changes else expr
