"""From a typed condition to SQL that is true for exactly the rows that the Python function passes.

What does not depend on the row is worked out for the caller first: it becomes a parameter, or
vanishes (``auth.userId != null && data.owner == auth.userId`` is ``"owner" = ?`` for a user and
``0`` for a stranger). So the text stays short and an index can serve it.

How two-valued logic meets SQL's three values: `_Truth` makes SQL that is *true* when the
condition is; when it is not, the SQL may be 0 or NULL, which WHERE treats alike. Negation is
pushed down to the single comparison, and only there written ``IS NOT TRUE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pylon.auth_context import AuthContext
from pylon.policy import expression as e
from pylon.policy.compile import compile_condition, compile_value
from pylon.policy.expression import Expr, Kind, kind_of
from pylon.storage.clause import SqlClause
from pylon.storage.names import quote

ALL = SqlClause("1")
NONE = SqlClause("0")

_CHAIN = 50  # longer chains of AND and OR become trees: SQLite bounds the depth of expressions


@dataclass(frozen=True, slots=True)
class _Sql:
    """A piece of SQL; `fixed` is its value where the caller alone decides it."""

    text: str
    params: tuple[object, ...] = ()
    fixed: object = None  # the value, when it is a single parameter
    is_fixed: bool = False


_Truth = Callable[[AuthContext], "_Sql | bool"]
_Value = Callable[[AuthContext], _Sql]


def clause_maker(expr: Expr) -> Callable[[AuthContext], SqlClause]:
    """The function that gives the condition's SQL for a caller.

    Args:
        expr: a condition over ``auth`` and one row, named ``data``, ``existing`` or both.
    """
    truth = _truth(expr, negated=False)

    def make(auth: AuthContext) -> SqlClause:
        found = truth(auth)
        if isinstance(found, bool):
            return ALL if found else NONE
        return SqlClause(found.text, found.params)

    return make


def _truth(expr: Expr, negated: bool) -> _Truth:
    if e.is_fixed(expr):
        judge = compile_condition(expr)
        return lambda auth: judge(auth, {}, {}) is not negated
    if isinstance(expr, e.Not):
        return _truth(expr.operand, not negated)
    if isinstance(expr, (e.And, e.Or)):
        items = [_truth(item, negated) for item in expr.items]
        return _chain(items, is_and=isinstance(expr, e.And) is not negated)
    if isinstance(expr, e.IsNull):
        ending = " IS NOT NULL" if negated else " IS NULL"
        operand = _value(expr.operand)
        return lambda auth: _join(operand(auth), ending)
    return _leaf(expr, negated)


def _chain(items: Sequence[_Truth], is_and: bool) -> _Truth:
    word = " AND " if is_and else " OR "

    def truth(auth: AuthContext) -> _Sql | bool:
        left: list[_Sql] = []
        for item in items:
            found = item(auth)
            if not isinstance(found, bool):
                left.append(found)
            elif found is not is_and:
                return found
        return _tree(left, word) if left else is_and

    return truth


def _tree(items: list[_Sql], word: str) -> _Sql:
    if len(items) == 1:
        return items[0]
    if len(items) > _CHAIN:
        middle = len(items) // 2
        items = [_tree(items[:middle], word), _tree(items[middle:], word)]
    text = "(" + word.join(item.text for item in items) + ")"
    return _Sql(text, tuple(param for item in items for param in item.params))


def _leaf(expr: Expr, negated: bool) -> _Truth:
    """A condition over values: false as soon as a fixed operand is null."""
    operands, write = _shape(expr)
    values = [_value(operand) for operand in operands]

    def truth(auth: AuthContext) -> _Sql | bool:
        found = [value(auth) for value in values]
        made = write(found, auth)
        if made is None:
            return negated
        return _join("(", made, ") IS NOT TRUE") if negated else made

    return truth


_Write = Callable[[list[_Sql], AuthContext], "_Sql | None"]


def _shape(expr: Expr) -> tuple[tuple[Expr, ...], _Write]:
    """The operands of a condition, and how they are written (None: false for this caller)."""
    if isinstance(expr, e.Equal):
        return (expr.left, expr.right), lambda v, _: _infix(v, " = ")
    if isinstance(expr, e.Ordered):
        return (expr.left, expr.right), lambda v, _: _infix(v, f" {expr.op} ")
    if isinstance(expr, e.OneOf):
        return (expr.item, *expr.options), lambda v, _: _one_of(v[0], v[1:])
    if isinstance(expr, e.HasRole):
        return (expr.role,), lambda v, auth: _one_of(v[0], [_fixed(r) for r in auth.roles])
    if isinstance(expr, e.Affix):
        return (expr.text, expr.affix), lambda v, _: _affix(v[0], v[1], expr.at_end)
    test = {Kind.BOOL: " = 1", Kind.STRING: " <> ''", Kind.NUMBER: " <> 0"}[kind_of(expr)]
    return (expr,), lambda v, _: _join(v[0], test)


def _infix(values: list[_Sql], sign: str) -> _Sql | None:
    if any(_is_null(value) for value in values):
        return None
    return _join(values[0], sign, values[1])


def _one_of(item: _Sql, options: list[_Sql]) -> _Sql | None:
    options = [option for option in options if not _is_null(option)]
    if _is_null(item) or not options:
        return None
    listed = ", ".join(option.text for option in options)
    params = tuple(param for option in options for param in option.params)
    return _Sql(f"{item.text} IN ({listed})", (*item.params, *params))


def _affix(text: _Sql, affix: _Sql, at_end: bool) -> _Sql | None:
    """Compared as bytes: SQLite's text functions stop at NUL, and UTF-8 needs no more.

    SQLite has no empty part of an empty blob: substr() gives NULL for it.
    """
    if _is_null(text) or _is_null(affix):
        return None
    whole, part = _bytes(text), _bytes(affix)
    if part.is_fixed and part.fixed == b"":
        return _join(text, " IS NOT NULL")
    size = _fixed(len(part.fixed)) if isinstance(part.fixed, bytes) else _join(
        "length(", part, ")"
    )
    if at_end:
        rest = ("length(", whole, ") - ", size)
        same = _join("substr(", whole, ", ", *rest, " + 1) = ", part)
        same = _join("(", *rest, " >= 0 AND ", same, ")")
    else:
        same = _join("substr(", whole, ", 1, ", size, ") = ", part)
    if part.is_fixed:
        return same
    return _join("(", text, " IS NOT NULL AND ", size, " = 0 OR ", same, ")")


def _bytes(value: _Sql) -> _Sql:
    if isinstance(value.fixed, str):
        return _fixed(value.fixed.encode())
    return _join("CAST(", value, " AS BLOB)")


def _value(expr: Expr) -> _Value:
    """SQL for a value; a condition used as a value is 0 or 1, never NULL."""
    if e.is_fixed(expr):
        compute = compile_value(expr)
        return lambda auth: _fixed(compute(auth, {}, {}))
    if isinstance(expr, e.Column):
        column = _Sql(quote(expr.field))
        return lambda _: column
    if isinstance(expr, e.Arithmetic):
        return _arithmetic(expr)
    truth = _truth(expr, negated=False)

    def value(auth: AuthContext) -> _Sql:
        found = truth(auth)
        return _fixed(found) if isinstance(found, bool) else _join("((", found, ") IS TRUE)")

    return value


def _arithmetic(expr: e.Arithmetic) -> _Value:
    left, right = _value(expr.left), _value(expr.right)
    kind = "INTEGER" if expr.op == "%" else "REAL"

    def value(auth: AuthContext) -> _Sql:
        first, second = (_join("CAST(", side(auth), f" AS {kind})") for side in (left, right))
        return _join("(", first, f" {expr.op} ", second, ")")

    return value


def _fixed(value: object) -> _Sql:
    if isinstance(value, bool):
        value = int(value)
    return _Sql("NULL" if value is None else "?", () if value is None else (value,), value, True)


def _is_null(value: _Sql) -> bool:
    return value.is_fixed and value.fixed is None


def _join(*pieces: _Sql | str) -> _Sql:
    text = "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)
    params = [p for piece in pieces if not isinstance(piece, str) for p in piece.params]
    return _Sql(text, tuple(params))
