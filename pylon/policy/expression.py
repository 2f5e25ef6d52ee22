"""The typed expression of a rule: what `check` makes and everything behind it reads.

Invariants: names are resolved and kinds agree, so nothing later can meet an unknown name or
compare a string with a number. ``!=`` is `Not(Equal)`, ``-x`` is ``0 - x``, comparison with the
word null is `IsNull`, and the role functions are `HasRole`: fewer shapes, one meaning each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import Literal as OneWord

Root = OneWord["data", "existing", "input"]


class Kind(Enum):
    """What a value is. Whole and broken numbers are one kind; texts, ids and dates are strings."""

    STRING = "string"
    NUMBER = "number"
    BOOL = "boolean"
    NULL = "null"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Literal:
    """A value written in the rule (also null, which only `IsNull` and `OneOf` may meet)."""

    value: str | int | float | bool | None
    kind: Kind


@dataclass(frozen=True, slots=True)
class Auth:
    """An attribute of the caller's `AuthContext`, by its Python name."""

    attribute: str
    kind: Kind

    @property
    def nullable(self) -> bool:
        return self.attribute in ("user_id", "tenant_id")


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a row. May always be null: rows of old change events lack newer fields."""

    root: Root
    field: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Computed in double precision; null when an operand is null, the divisor 0, or for NaN.

    ``%`` takes whole-number parts and the sign of its left side, as SQL does.
    """

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Equal:
    """True when both are the same and not null."""

    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Ordered:
    """``< <= > >=``; strings by code point. False when an operand is null."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class IsNull:
    """Whether the operand is null."""

    operand: Expr


@dataclass(frozen=True, slots=True)
class OneOf:
    """``x in [a, b]``: Equal to any of them. The options hold no null literal."""

    item: Expr
    options: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class HasRole:
    """``x in auth.roles`` and ``auth.hasRole('x')``."""

    role: Expr


@dataclass(frozen=True, slots=True)
class Affix:
    """``starts_with`` (at_end false) and ``ends_with``. False when an operand is null."""

    at_end: bool
    text: Expr
    affix: Expr


@dataclass(frozen=True, slots=True)
class Not:
    """True where the operand is not."""

    operand: Expr


@dataclass(frozen=True, slots=True)
class And:
    """True where all items are."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True where one item is."""

    items: tuple[Expr, ...]


Expr = (
    Literal | Auth | Column | Arithmetic | Equal | Ordered | IsNull | OneOf | HasRole | Affix
    | Not | And | Or
)

TRUE = Literal(True, Kind.BOOL)
FALSE = Literal(False, Kind.BOOL)


def kind_of(expr: Expr) -> Kind:
    """The kind of the values that an expression yields."""
    if isinstance(expr, (Literal, Auth, Column)):
        return expr.kind
    return Kind.NUMBER if isinstance(expr, Arithmetic) else Kind.BOOL


def nullable(expr: Expr) -> bool:
    """Whether the value can be null."""
    if isinstance(expr, Literal):
        return expr.value is None
    if isinstance(expr, Auth):
        return expr.nullable
    return isinstance(expr, (Column, Arithmetic))


def parts(expr: Expr) -> Iterator[Expr]:
    """The direct operands of an expression."""
    for slot in fields(expr):
        value = getattr(expr, slot.name)
        if isinstance(value, tuple):
            yield from value
        elif isinstance(value, Expr):
            yield value


def roots(expr: Expr) -> frozenset[str]:
    """What an expression depends on: any of ``auth``, ``data``, ``existing``, ``input``."""
    if isinstance(expr, Auth):
        return frozenset({"auth"})
    if isinstance(expr, Column):
        return frozenset({expr.root})
    own = frozenset({"auth"}) if isinstance(expr, HasRole) else frozenset()
    return own.union(*(roots(part) for part in parts(expr)))


def fields_of(expr: Expr) -> frozenset[str]:
    """The fields of a row, before or after, that an expression looks at."""
    if isinstance(expr, Column):
        return frozenset({expr.field})
    return frozenset[str]().union(*(fields_of(part) for part in parts(expr)))


def is_fixed(expr: Expr) -> bool:
    """Whether the value is the same for all rows (it may differ from caller to caller)."""
    return roots(expr) <= {"auth"}


def conjuncts(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that must all be true for this one to be."""
    if isinstance(expr, And):
        return tuple(leaf for item in expr.items for leaf in conjuncts(item))
    return (expr,)
