"""Which callers can be concerned by a row: the plan by which the hub finds receivers of a change.

Drawn from an entity's read rules once, at start. It speaks of callers who are not admins; an
admin reads everything. The plan may only be too wide, never too narrow: whoever passes
`may_read` is found by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pylon.auth_context import ANONYMOUS
from pylon.policy import expression as e
from pylon.policy.compile import compile_condition
from pylon.policy.expression import Expr

Attribute = Literal["user_id", "tenant_id"]


@dataclass(frozen=True, slots=True)
class Everyone:
    """Every row is readable by all callers."""


@dataclass(frozen=True, slots=True)
class Nobody:
    """No row is readable by anybody but admins."""


@dataclass(frozen=True, slots=True)
class ByAuth:
    """The caller alone decides, the row does not matter: ask `may_read` once for a context."""


@dataclass(frozen=True, slots=True)
class Keyed:
    """Only callers whose `attribute` equals the row's `field` (neither null) can read the row.

    When `exact`, all of them can. Otherwise there are further conditions: ask `may_read` for
    each context that the key finds.
    """

    field: str
    attribute: Attribute
    exact: bool


@dataclass(frozen=True, slots=True)
class General:
    """Nothing is known beforehand: ask `may_read` for each distinct context."""


Routing = Everyone | Nobody | ByAuth | Keyed | General


def plan(rule: Expr) -> Routing:
    """The plan for a read rule, in which the row is named ``data`` only."""
    needs = e.roots(rule)
    if not needs:
        return Everyone() if _holds(rule) else Nobody()
    if needs == {"auth"}:
        return ByAuth()
    conditions = [part for part in e.conjuncts(rule) if e.roots(part) or not _holds(part)]
    if any(not e.roots(part) for part in conditions):
        return Nobody()
    for condition in conditions:
        key = _key(condition)
        if key is not None:
            return Keyed(*key, exact=len(conditions) == 1)
    return General()


def _holds(constant: Expr) -> bool:
    return compile_condition(constant)(ANONYMOUS, {}, {})


def _key(condition: Expr) -> tuple[str, Attribute] | None:
    if not isinstance(condition, e.Equal):
        return None
    for row, auth in ((condition.left, condition.right), (condition.right, condition.left)):
        if isinstance(row, e.Column) and isinstance(auth, e.Auth):
            if auth.attribute == "user_id":
                return row.field, "user_id"
            if auth.attribute == "tenant_id":
                return row.field, "tenant_id"
    return None
