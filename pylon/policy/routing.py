"""Routing: the plan by which the hub finds the receivers of a change.

`plan` makes it from an entity's read rule, once at start. It concerns callers who are no admins; an
admin reads everything.

Invariant: the plan finds every caller who passes `may_read`; it may find others too. Called by
`rules`; read by the hub, live queries, the change log and `pylon.api.data.access`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from pylon.auth_context import ANONYMOUS
from pylon.policy import expression as e
from pylon.policy.compile import compile_condition
from pylon.policy.expression import Expr
from pylon.policy.related import ExistsCheck

Attribute = Literal["user_id", "tenant_id"]


class Everyone(msgspec.Struct, frozen=True):
    """All callers may read every row."""


class Nobody(msgspec.Struct, frozen=True):
    """Only admins may read a row."""


class ByAuth(msgspec.Struct, frozen=True):
    """The rule depends on the caller only: call `may_read` once for each context."""


class Keyed(msgspec.Struct, frozen=True):
    """Only callers whose `attribute` equals the row's `field` (neither null) can read the row.

    If `exact`, all of them can. Otherwise the rule has further conditions: call `may_read` for each
    context that the key finds.
    """

    field: str
    attribute: Attribute
    exact: bool


class General(msgspec.Struct, frozen=True):
    """No plan is known: call `may_read` for each distinct context."""


class Related(msgspec.Struct, frozen=True):
    """Only callers for whom the check holds can read the row: call `may_read` for each of them.

    The check depends on the caller; one that does not holds for all callers or for none.
    """

    check: ExistsCheck


class Union(msgspec.Struct, frozen=True):
    """Only callers whom one of the plans finds can read the row: call `may_read` for each."""

    plans: tuple[Keyed | Related, ...]


Routing = Everyone | Nobody | ByAuth | Keyed | Related | Union | General


def plan(rule: Expr) -> Routing:
    """Return the plan for a read rule, which names the row ``data`` only."""
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
    found = [part for condition in conditions for part in _plans(condition)]
    return min(found, key=_breadth, default=General())


def _plans(condition: Expr) -> Iterator[Related | Union]:
    """Yield the plans of a condition that must hold."""
    if isinstance(condition, e.Exists):
        yield from _related(condition)
    elif isinstance(condition, e.Or):
        plans = [_plan_of_branch(item) for item in condition.items]
        known = tuple(found for found in plans if found is not None)
        if len(known) == len(plans):
            yield Union(known)


def _plan_of_branch(branch: Expr) -> Keyed | Related | None:
    """Return a plan of one branch of an ``||``; None if there is none."""
    for condition in e.conjuncts(branch):
        key = _key(condition)
        if key is not None:
            return Keyed(*key, exact=False)
        if isinstance(condition, e.Exists):
            return next(_related(condition), None)
    return None


def _related(exists: e.Exists) -> Iterator[Related]:
    check = ExistsCheck(exists)
    if any(isinstance(value, e.Auth) for value in check.values):
        yield Related(check)


def _breadth(plan: Related | Union) -> int:
    return len(plan.plans) if isinstance(plan, Union) else 1


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
