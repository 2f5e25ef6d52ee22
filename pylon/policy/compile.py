"""Compiler: turns a typed expression into a Python function.

It writes the expression as the text of one lambda, and compiles that once. The text holds only
operators and names made here (`k0`, `t0`, ...). Literals, field names and functions are values of
these names, so no text of a manifest can become code.

Invariants: a compiled function never raises for a decoded JSON row, treats an absent field as
null, and agrees with the tree of `pylon.policy.bind` on every row.
Called by `rules`, `bind` and `routing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pylon.auth_context import AuthContext
from pylon.policy import expression as e
from pylon.policy.expression import Expr, nullable
from pylon.policy.related import NO_RELATED, ExistsCheck, RelatedRows
from pylon.query.evaluate import ARITHMETIC
from pylon.values.notations import KEYS

Row = Mapping[str, Any]
Value = Callable[[AuthContext, Row, Row], Any]


class Judge(Protocol):
    """A compiled condition."""

    def __call__(
        self, auth: AuthContext, data: Row, existing: Row, related: RelatedRows = NO_RELATED, /
    ) -> bool:
        """Args: `related` answers what the condition asks of other rows."""


def compile_condition(expr: Expr) -> Judge:
    """Return the function (auth, data, existing, related) -> bool of a condition."""
    judge: Judge = _Writer().function(expr, as_condition=True)
    return judge


def compile_value(expr: Expr) -> Value:
    """Return the function (auth, data, existing) -> value (None for null) of any expression."""
    return _Writer().function(expr, as_condition=False)


def _starts(text: str | None, affix: str | None) -> bool:
    return text is not None and affix is not None and text.startswith(affix)


def _ends(text: str | None, affix: str | None) -> bool:
    return text is not None and affix is not None and text.endswith(affix)


_ROWS = {"data": "d", "existing": "e", "input": "d", "room": "d"}


class _Writer:
    """Writes one lambda.

    Each level of the expression opens at most two brackets: Python's parser allows 200, and
    `limits.POLICY_DEPTH` levels must fit.
    """

    def __init__(self) -> None:
        self._names: dict[str, object] = {"__builtins__": {}, "none": NO_RELATED}
        self._temporaries = 0

    def function(self, expr: Expr, as_condition: bool) -> Callable[..., Any]:
        body = f"True if {self._truth(expr)} else False" if as_condition else self._value(expr)
        # The text has no foreign part (see the header).
        function: Callable[..., Any] = eval(  # nosec B307
            compile(f"lambda a, d, e, r=none: {body}", "<policy>", "eval"), self._names
        )
        return function

    def _constant(self, value: object) -> str:
        name = f"k{len(self._names)}"
        self._names[name] = value
        return name

    def _truth(self, expr: Expr) -> str:
        """Return text with the truth of the expression: null, 0 and '' are false in both."""
        if isinstance(expr, e.Not):
            return f"(not {self._truth(expr.operand)})"
        if isinstance(expr, (e.And, e.Or)):
            word = " and " if isinstance(expr, e.And) else " or "
            return f"({word.join(self._truth(item) for item in expr.items)})"
        return self._value(expr)

    def _value(self, expr: Expr) -> str:
        """Return text with the value of the expression."""
        if isinstance(expr, e.Literal):
            return self._constant(expr.value)
        if isinstance(expr, e.Auth):
            return f"a.{expr.attribute}"
        if isinstance(expr, e.Column):
            value = f"{_ROWS[expr.root]}.get({self._constant(expr.field)})"
            notation = expr.kind.notation
            return f"{self._constant(KEYS[notation])}({value})" if notation else value
        if isinstance(expr, e.Arithmetic):
            function = self._constant(ARITHMETIC[expr.op])
            return f"{function}({self._value(expr.left)}, {self._value(expr.right)})"
        if isinstance(expr, e.Affix):
            function = self._constant(_ends if expr.at_end else _starts)
            return f"{function}({self._value(expr.text)}, {self._value(expr.affix)})"
        if isinstance(expr, e.IsNull):
            return f"({self._value(expr.operand)} is None)"
        if isinstance(expr, e.HasRole):
            return f"({self._value(expr.role)} in a.roles)"
        if isinstance(expr, e.Equal):
            return self._equal(expr)
        if isinstance(expr, e.Ordered):
            guards: list[str] = []
            left, right = self._guarded(expr.left, guards), self._guarded(expr.right, guards)
            return "(" + " and ".join([*guards, f"{left} {expr.op} {right}"]) + ")"
        if isinstance(expr, e.OneOf):
            return self._one_of(expr)
        if isinstance(expr, e.Exists):
            check = ExistsCheck(expr)
            values = "".join(f"{self._value(value)}, " for value in check.values)
            return f"r.has_row({self._constant(check)}, ({values}))"
        return f"(True if {self._truth(expr)} else False)"

    def _equal(self, expr: e.Equal) -> str:
        if not nullable(expr.left) or not nullable(expr.right):
            return f"({self._value(expr.left)} == {self._value(expr.right)})"
        guards: list[str] = []
        left = self._guarded(expr.left, guards)
        return f"({guards[0]} and {left} == {self._value(expr.right)})"

    def _one_of(self, expr: e.OneOf) -> str:
        if all(isinstance(option, e.Literal) for option in expr.options):
            values = frozenset(o.value for o in expr.options if isinstance(o, e.Literal))
            return f"({self._value(expr.item)} in {self._constant(values)})"
        guards: list[str] = []
        item = self._guarded(expr.item, guards)
        options = ", ".join(self._value(option) for option in expr.options)
        return "(" + " and ".join([*guards, f"{item} in [{options}]"]) + ")"

    def _guarded(self, expr: Expr, guards: list[str]) -> str:
        """Return the value's text. If the value may be null, add a guard that assigns it to a
        temporary, and return the temporary.
        """
        value = self._value(expr)
        if not nullable(expr):
            return value
        name = f"t{self._temporaries}"
        self._temporaries += 1
        guards.append(f"({name} := {value}) is not None")
        return name
