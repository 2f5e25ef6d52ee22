"""Kinds in comparisons: which of them compare, and literals in the notation of the other side.

A text that is compared with a datetime, a date or a decimal must be one, and takes the notation
that the column has. Invariant: two values that pass here compare without an error for every row.
Called by `check` and `exists_check`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from pylon.policy import expression as e
from pylon.policy.expression import Expr, Kind, kind_of
from pylon.policy.grammar import PolicyInvalid, Syntax
from pylon.values.datetimes import instant_of, is_date
from pylon.values.decimals import decimal_of, sort_text_of

TEXTS = frozenset({Kind.STRING, Kind.DATETIME, Kind.DATE})
ORDERED = TEXTS | {Kind.NUMBER, Kind.DECIMAL}
VALUES = (e.Column, e.Auth, e.Literal)  # what is a value, and no condition


def align_literal(expr: Expr, other: Kind, place: Syntax) -> Expr:
    """Return a literal in the notation that the other side of a comparison has.

    Raises:
        PolicyInvalid: the literal is no value of the other side.
    """
    if not isinstance(expr, e.Literal) or other not in _LITERALS:
        return expr
    if expr.kind is not Kind.STRING and (expr.kind, other) != (Kind.NUMBER, Kind.DECIMAL):
        return expr
    convert, example = _LITERALS[other]
    found = convert(str(expr.value))
    if found is None:
        raise PolicyInvalid(
            f'"{expr.value}" is compared with a {other.value} and is none; write for example '
            f"{example}, or null",
            place.at,
        )
    return e.Literal(found, other)


def are_texts(a: Kind, b: Kind) -> bool:
    """Whether both are texts that may be compared; a date and a datetime never are."""
    return {a, b} <= TEXTS and {a, b} != {Kind.DATE, Kind.DATETIME}


def _date_literal(text: str) -> str | None:
    return text if is_date(text) else None


def _decimal_literal(text: str) -> str | None:
    plain = f"{Decimal(text):f}" if _NUMBER.fullmatch(text) else text
    found = decimal_of(plain)
    return None if found is None else sort_text_of(found)


_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)
_LITERALS: dict[Kind, tuple[Callable[[str], str | None], str]] = {
    Kind.DATETIME: (instant_of, "'2026-03-29T00:30:00Z'"),
    Kind.DATE: (_date_literal, "'2026-03-29'"),
    Kind.DECIMAL: (_decimal_literal, "12.50 or '12.50'"),
}


def refuse_list(expr: Expr, place: Syntax) -> None:
    """Raise PolicyInvalid for a list: only `in` takes one."""
    if kind_of(expr) is Kind.LIST:
        raise PolicyInvalid("auth.roles is a list, write 'x' in auth.roles", place.at)


def refuse_other_kind(left: Expr, right: Expr, at: int) -> None:
    """Raise PolicyInvalid, with the offset `at`, unless both sides of a comparison compare."""
    a, b = kind_of(left), kind_of(right)
    if a is Kind.JSON or (a is not b and not are_texts(a, b)):
        raise PolicyInvalid(
            f"a {a.value} and a {b.value} are never equal and have no order", at
        )
