"""Verdicts: evaluates a rule to a tree that says what each part of it is, and why the whole is.

A `Verdict` has the text of an expression, its value, and the verdicts of its parts. `judge_rule`
makes one for a caller and rows, `causes_of` finds the comparisons that decided it. All parts are
evaluated, also those that a judge would skip.

Invariant: the verdict of a rule holds exactly if its compiled judge (`compile`) passes. The text of
an expression is a rule that means the same. It costs far more than a judge, and is made only for
those who develop policies: refusals in dev, `pylonctl policy`. Called by `rules`, `room_rules` and
`pylon.cli.policy`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from pylon.auth_context import AuthContext
from pylon.errors import SHOWN_CHARS
from pylon.policy import expression as e
from pylon.policy.compile import compile_condition, compile_value
from pylon.policy.expression import Expr, Kind
from pylon.policy.related import NO_RELATED, ExistsCheck, RelatedRows
from pylon.values.decimals import decimal_of_sort_text

Row = Mapping[str, Any]
_AUTH_NAMES: Final = {
    "user_id": "userId", "is_admin": "isAdmin", "is_guest": "isGuest", "tenant_id": "tenantId",
    "roles": "roles",
}
_ESCAPES: Final = (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\0", "\\0"))


class Verdict(msgspec.Struct, frozen=True):
    """The value of an expression, and those of its parts.

    `is_condition`: the value is true or false. `parts` has no constants. `joins`: ``&&`` and ``||``
    join conditions, ``!`` turns one; empty for all others.
    """

    text: str
    value: Any
    parts: tuple[Verdict, ...] = ()
    is_condition: bool = True
    joins: str = ""

    @property
    def holds(self) -> bool:
        """Whether the expression counts as true: null, 0 and '' count as false."""
        return bool(self.value)

    def lines(self, depth: int = 0) -> Iterator[str]:
        """Yield the tree as indented lines."""
        sign = ("yes  " if self.value else "no   ") if self.is_condition else "     "
        shown = "" if self.is_condition else f" = {show(self.value)}"
        yield f"{sign}{'  ' * depth}{self.text}{shown}"
        for part in self.parts:
            yield from part.lines(depth + 1)

    def to_json(self) -> dict[str, Any]:
        """Return the tree as JSON values."""
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        out: dict[str, Any] = {"text": self.text, "value": value}
        if self.parts:
            out["parts"] = [part.to_json() for part in self.parts]
        return out


def judge_rule(
    expr: Expr, auth: AuthContext, data: Row, existing: Row, related: RelatedRows = NO_RELATED
) -> Verdict:
    """Return the verdict of a rule, or of any part of one.

    Args:
        data, existing, related: as those of a compiled judge.
    """
    def judge(part: Expr) -> Verdict:
        return judge_rule(part, auth, data, existing, related)

    text = text_of(expr)
    if isinstance(expr, e.And):
        items = tuple(map(judge, expr.items))
        return Verdict(text, all(item.holds for item in items), items, joins="&&")
    if isinstance(expr, e.Or):
        items = tuple(map(judge, expr.items))
        return Verdict(text, any(item.holds for item in items), items, joins="||")
    if isinstance(expr, e.Not):
        operand = judge(expr.operand)
        if operand.joins:
            return Verdict(text, not operand.holds, (operand,), joins="!")
        return Verdict(text, not operand.holds, _leaves(operand))
    if isinstance(expr, e.Exists):
        check = ExistsCheck(expr)
        parts = tuple(judge(value) for value in dict.fromkeys(check.values))
        values = tuple(compile_value(value)(auth, data, existing) for value in check.values)
        return Verdict(text, related.has_row(check, values), parts)
    if isinstance(expr, e.Column):
        row = existing if expr.root == "existing" else data
        return Verdict(text, row.get(expr.field), is_condition=False)
    if isinstance(expr, (e.Literal, e.Auth)):
        value = compile_value(expr)(auth, data, existing)
        return Verdict(text, value, is_condition=False)
    operands = [part for part in e.parts(expr) if not isinstance(part, e.Literal)]
    if isinstance(expr, e.HasRole):
        operands.append(e.Auth("roles", Kind.LIST))
    parts = tuple(judge(part) for part in dict.fromkeys(operands))
    if isinstance(expr, e.Arithmetic):
        value = compile_value(expr)(auth, data, existing)
        return Verdict(text, value, parts, is_condition=False)
    return Verdict(text, compile_condition(expr)(auth, data, existing, related), parts)


def causes_of(verdict: Verdict) -> list[Verdict]:
    """Return the conditions that decided a verdict, in the order of the rule."""
    if verdict.joins == "!":
        return causes_of(verdict.parts[0])
    if not verdict.joins:
        return [verdict]
    # Of a false && and of a true || one part is enough.
    decisive = [part for part in verdict.parts if part.holds is verdict.holds]
    if (verdict.joins == "&&") is not verdict.holds:
        decisive = decisive[:1]
    return [cause for part in decisive for cause in causes_of(part)]


def describe(verdict: Verdict) -> str:
    """Return a condition with its values: ``a == b is false: a is 1, b is 2``."""
    values = ", ".join(
        f"{part.text} is {show(part.value)}" for part in operands_of(verdict)
        if part is not verdict or not isinstance(part.value, bool)
    )
    word = "true" if verdict.holds else "false"
    return f"{verdict.text} is {word}" + (f": {values}" if values else "")


def operands_of(verdict: Verdict) -> Iterator[Verdict]:
    """Yield the fields and attributes that a condition compares."""
    if not verdict.parts and not verdict.is_condition:
        yield verdict
    for part in verdict.parts:
        yield from operands_of(part)


def show(value: object) -> str:
    """Return a value as JSON text of bounded length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def text_of(expr: Expr) -> str:
    """Return the text of an expression, as a rule writes it."""
    if isinstance(expr, e.Literal):
        return _literal(expr)
    if isinstance(expr, e.Auth):
        return f"auth.{_AUTH_NAMES[expr.attribute]}"
    if isinstance(expr, e.Column):
        return f"{expr.root}.{expr.field}"
    if isinstance(expr, e.Not):
        if isinstance(expr.operand, e.Equal):
            return f"{_operand(expr.operand.left)} != {_operand(expr.operand.right)}"
        if isinstance(expr.operand, e.IsNull):
            return f"{_operand(expr.operand.operand)} != null"
        return f"!{_operand(expr.operand)}"
    if isinstance(expr, (e.And, e.Or)):
        sign = " && " if isinstance(expr, e.And) else " || "
        return sign.join(
            f"({text_of(item)})" if isinstance(item, (e.And, e.Or)) else text_of(item)
            for item in expr.items
        )
    if isinstance(expr, e.Equal):
        return f"{_operand(expr.left)} == {_operand(expr.right)}"
    if isinstance(expr, (e.Ordered, e.Arithmetic)):
        return f"{_operand(expr.left)} {expr.op} {_operand(expr.right)}"
    if isinstance(expr, e.IsNull):
        return f"{_operand(expr.operand)} == null"
    if isinstance(expr, e.OneOf):
        return f"{_operand(expr.item)} in [{', '.join(map(text_of, expr.options))}]"
    if isinstance(expr, e.HasRole):
        return f"{_operand(expr.role)} in auth.roles"
    if isinstance(expr, e.Affix):
        word = "ends_with" if expr.at_end else "starts_with"
        return f"{word}({text_of(expr.text)}, {text_of(expr.affix)})"
    assert isinstance(expr, e.Exists)
    return _exists_text(expr, "")


def _leaves(operand: Verdict) -> tuple[Verdict, ...]:
    """Return the parts of a turned condition; itself, if it is a bare value."""
    return operand.parts if operand.is_condition else (operand,)


def _operand(expr: Expr) -> str:
    text = text_of(expr)
    is_plain = isinstance(expr, (e.Literal, e.Auth, e.Column, e.Affix, e.Exists))
    return text if is_plain else f"({text})"


def _literal(expr: e.Literal) -> str:
    value = expr.value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if expr.kind is Kind.DECIMAL:
        return f"'{decimal_of_sort_text(str(value))}'"
    if not isinstance(value, str):
        return repr(value)
    for char, escape in _ESCAPES:
        value = value.replace(char, escape)
    return f"'{value}'"


def _exists_text(expr: e.Exists, around: str) -> str:
    def option_text(option: Expr) -> str:
        return f"{around}.{option.field}" if isinstance(option, e.Related) else text_of(option)

    arguments = [expr.entity]
    for part in expr.comparisons:
        right = ", ".join(map(option_text, part.options))
        is_roles = part.options == (e.Auth("roles", Kind.LIST),)
        arguments.append(
            f"{part.field} {part.op} {right if part.op != 'in' or is_roles else f'[{right}]'}"
        )
    arguments += [_exists_text(inner, expr.entity) for inner in expr.nested]
    return f"exists({', '.join(arguments)})"
