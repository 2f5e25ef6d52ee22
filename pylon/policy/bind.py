"""Binding: turns a typed condition and a caller into a tree of `pylon.query`.

The binder computes every part that does not depend on the row: the part becomes a literal, or
vanishes. ``auth.userId != null && data.owner == auth.userId`` is ``owner = 'u1'`` for a user, and
`FALSE` for an anonymous caller. So the tree stays small, and an index can serve it.

Invariant: the predicate holds for exactly the rows that the compiled Python function passes for
this caller. Called by `rules`, which caches the trees of recent callers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from pylon.auth_context import AuthContext
from pylon.policy import expression as e
from pylon.policy.compile import compile_condition, compile_value
from pylon.policy.expression import Expr, Kind, kind_of
from pylon.policy.related import conditions_of, read_bound
from pylon.query.conditions import affix, and_, compare, exists_row, is_null, not_, one_of, or_
from pylon.query.predicate import (
    FALSE,
    TRUE,
    Arithmetic,
    ArithmeticSign,
    Column,
    Constant,
    Literal,
    Predicate,
    Sign,
    Value,
)

Binder = Callable[[AuthContext], Predicate]
_ValueBinder = Callable[[AuthContext], Value]

# A bare value as a condition: true, not empty, not 0.
_TRUTH: Final[dict[Kind, tuple[Sign, Literal]]] = {
    Kind.BOOL: ("=", Literal(True)),
    Kind.STRING: ("<>", Literal("")),
    Kind.DATETIME: ("<>", Literal("")),
    Kind.DATE: ("<>", Literal("")),
    Kind.NUMBER: ("<>", Literal(0)),
}


def binder_of(expr: Expr) -> Binder:
    """Return the function that makes the condition's tree for a caller.

    Args:
        expr: a condition over ``auth`` and one row, named ``data``, ``existing`` or both.
    """
    if e.is_fixed(expr):
        condition_function = compile_condition(expr)
        return lambda auth: TRUE if condition_function(auth, {}, {}) else FALSE
    if isinstance(expr, e.Not):
        operand = binder_of(expr.operand)
        return lambda auth: not_(operand(auth))
    if isinstance(expr, (e.And, e.Or)):
        items = [binder_of(item) for item in expr.items]
        join = and_ if isinstance(expr, e.And) else or_
        return lambda auth: join(*[item(auth) for item in items])
    if isinstance(expr, e.IsNull):
        value = _value_binder(expr.operand)
        return lambda auth: is_null(value(auth))
    if isinstance(expr, e.Exists):
        return _exists_binder(expr)
    return _leaf_binder(expr)


def _leaf_binder(expr: Expr) -> Binder:
    """Return the binder of a condition over values."""
    if isinstance(expr, e.Equal):
        return _comparison_binder("=", expr.left, expr.right)
    if isinstance(expr, e.Ordered):
        return _comparison_binder(cast(Sign, expr.op), expr.left, expr.right)
    if isinstance(expr, e.OneOf):
        item = _value_binder(expr.item)
        options = [_value_binder(option) for option in expr.options]
        return lambda auth: one_of(item(auth), tuple([option(auth) for option in options]))
    if isinstance(expr, e.HasRole):
        role = _value_binder(expr.role)
        return lambda auth: one_of(role(auth), tuple([Literal(r) for r in auth.roles]))
    if isinstance(expr, e.Affix):
        at_end = expr.at_end
        text, part = _value_binder(expr.text), _value_binder(expr.affix)
        return lambda auth: affix(at_end, text(auth), part(auth))
    sign, neutral = _TRUTH[kind_of(expr)]
    value = _value_binder(expr)
    return lambda auth: compare(sign, value(auth), neutral)


def _exists_binder(expr: e.Exists) -> Binder:
    def bind(auth: AuthContext) -> Predicate:
        read = read_bound(lambda attribute: getattr(auth, attribute.attribute))
        return exists_row(expr.entity, conditions_of(expr, read), expr.is_listable)

    return bind


def _comparison_binder(sign: Sign, left: Expr, right: Expr) -> Binder:
    first, second = _value_binder(left), _value_binder(right)
    return lambda auth: compare(sign, first(auth), second(auth))


def _value_binder(expr: Expr) -> _ValueBinder:
    """Return the function that makes a value's tree for a caller."""
    if e.is_fixed(expr):
        compute = compile_value(expr)
        return lambda auth: Literal(compute(auth, {}, {}))
    if isinstance(expr, e.Column):
        column = Column(expr.field, expr.kind.notation)
        return lambda auth: column
    if isinstance(expr, e.Arithmetic):
        op = cast(ArithmeticSign, expr.op)
        left, right = _value_binder(expr.left), _value_binder(expr.right)
        return lambda auth: Arithmetic(op, left(auth), right(auth))
    condition = binder_of(expr)

    def value(auth: AuthContext) -> Value:
        found = condition(auth)
        return Literal(found.holds) if isinstance(found, Constant) else found

    return value
