"""Rules of one entity: whether a caller may read, insert, update or delete a row.

All policies of an entity must pass. An action without an expression in any policy is **denied**
(`rules` chooses the expressions). Admins pass everything.

An update has two rows. A rule that names ``existing`` sees the row before as ``existing`` and the
row after as ``data``, and judges the step. A rule without ``existing`` must hold for both rows. For
an insert every field of ``existing`` is null. For read and delete ``existing`` and ``data`` are the
same row.

A rule with ``exists(...)`` asks other rows. Its judge needs a source of related rows (`related`)
that answers from the moment at which it judges; a rule without `exists` never calls its source.

Invariant: the rules never change, and any thread may use them. Bound: the cache of read conditions
holds those of `limits.READ_RULES_KEPT` callers. Made by `rules`; readers, writer, hub and API call
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from typing import Any, Literal

from msgspec.structs import replace

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import PolicyDenied
from pylon.policy import expression as e
from pylon.policy.bind import binder_of
from pylon.policy.compile import compile_condition
from pylon.policy.refusals import HINT, MESSAGE, Rule, RuleVerdict, refusal_of
from pylon.policy.related import NO_RELATED, CheckValues, ExistsCheck, RelatedRows, checks_of
from pylon.policy.related_changes import RelatedChanges
from pylon.policy.routing import ByAuth, Everyone, General, Keyed, Nobody, Routing, plan
from pylon.policy.verdicts import judge_rule
from pylon.query.conditions import guarded
from pylon.query.evaluate import Evaluator
from pylon.query.predicate import TRUE, Predicate

Row = Mapping[str, Any]
Action = Literal["read", "insert", "update", "delete"]


class EntityRules:
    """The compiled rules of one entity.

    `read_fields` are the fields of a row that the read rule reads. Equal read rules have equal
    `read_text`s, also in another process. `read_rule` is the expression of the read rule.

    `checks` has, for each action, what its rules ask of other rows; `asked` the entities of
    these. An action without checks needs no related rows. An update may need those of read, too:
    the writer judges whether the caller may read a row before it judges a change.
    """

    __slots__ = (
        "_asks_update", "_begin", "_bind_read", "_declared", "_delete", "_entity", "_explain",
        "_insert", "_read", "_readable", "_rules", "_state", "_step", "asked", "checks", "fields",
        "is_narrowed", "read_fields", "read_rule", "read_text", "related", "routing",
    )

    def __init__(
        self, entity: str, rules: Mapping[Action, list[Rule]], explain: bool = True
    ) -> None:
        """Compile the rules.

        Args:
            rules: for each action the rules that must all be true; an empty list denies.
            explain: whether a refusal shows which rule denied, or that there is none.
        """
        self._explain = explain
        self._rules = rules
        chosen = {action: [rule.expr for rule in found] for action, found in rules.items()}
        read = e.one_row(e.conjunction(chosen["read"]))
        steps = [rule for rule in chosen["update"] if "existing" in e.roots(rule)]
        states = [rule for rule in chosen["update"] if "existing" not in e.roots(rule)]
        if not chosen["update"]:
            states = [e.FALSE]
        self._entity = entity
        self._declared = frozenset(action for action, rules in chosen.items() if rules)
        self._read = compile_condition(read)
        self._bind_read = binder_of(read)
        self._readable: dict[AuthContext, Predicate] = {}
        self.is_narrowed = False  # whether a scope's filter holds besides, for admins too
        self._insert = compile_condition(e.conjunction(chosen["insert"]))
        self._delete = compile_condition(e.one_row(e.conjunction(chosen["delete"])))
        self._state = compile_condition(e.conjunction(states or [e.TRUE]))
        self._step = compile_condition(e.conjunction(steps or [e.TRUE]))
        known_parts = [
            part for rule in steps for part in e.conjuncts(rule) if "data" not in e.roots(part)
        ]
        self._begin = compile_condition(e.conjunction([*states, *known_parts] or [e.TRUE]))
        self.routing: Routing = plan(read)
        # The fields that the rules of existing rows read.
        self.fields = frozenset[str]().union(*(
            e.fields_of(rule)
            for action in ("read", "update", "delete") for rule in chosen.get(action, ())
        ))
        self.read_fields = e.fields_of(read)
        self.read_rule = read
        self.read_text = repr(read)
        self.checks: Mapping[Action, tuple[ExistsCheck, ...]] = {
            "read": checks_of([read]),
            **{action: checks_of(chosen[action]) for action in ("insert", "update")},
            "delete": checks_of([e.one_row(rule) for rule in chosen["delete"]]),
        }
        self.related = RelatedChanges(self.checks["read"])
        self._asks_update = bool(self.checks["update"])
        self.asked: Mapping[Action, frozenset[str]] = {
            action: frozenset[str]().union(*(check.entities for check in checks))
            for action, checks in self.checks.items()
        }

    def may_read(
        self, auth: AuthContext, row: Mapping[str, Any], related: RelatedRows = NO_RELATED
    ) -> bool:
        """Whether the caller may read the row (a decoded JSON row)."""
        if auth.is_admin and not self.is_narrowed:
            return True
        return self._read(auth, row, row, related)

    def may_insert(
        self, auth: AuthContext, row: Mapping[str, Any], related: RelatedRows = NO_RELATED
    ) -> bool:
        """Whether the caller may add the row."""
        return auth.is_admin or self._insert(auth, row, {}, related)

    def may_update(
        self, auth: AuthContext, before: Mapping[str, Any], after: Mapping[str, Any],
        related: RelatedRows = NO_RELATED,
    ) -> bool:
        """Whether the caller may turn the row `before` into the row `after` (both complete).

        Args:
            related: the rows as they are before the change.
        """
        if self._asks_update:
            related = _Remembered(related)
        return auth.is_admin or (
            self._state(auth, before, before, related)
            and self._state(auth, after, after, related)
            and self._step(auth, after, before, related)
        )

    def may_begin_update(
        self, auth: AuthContext, before: Mapping[str, Any], related: RelatedRows = NO_RELATED
    ) -> bool:
        """Whether some update of the row `before` may pass `may_update`.

        Judges only the conditions that do not depend on the row after.
        """
        return auth.is_admin or self._begin(auth, before, before, related)

    def may_delete(
        self, auth: AuthContext, row: Mapping[str, Any], related: RelatedRows = NO_RELATED
    ) -> bool:
        """Whether the caller may remove the row."""
        return auth.is_admin or self._delete(auth, row, row, related)

    def readable_by(self, auth: AuthContext) -> Predicate:
        """Return the predicate of the caller's readable rows: exactly those of `may_read`."""
        if auth.is_admin and not self.is_narrowed:
            return TRUE
        found = self._readable.get(auth)
        if found is None:
            found = self._bind_read(auth)
            if len(self._readable) >= limits.READ_RULES_KEPT:
                self._readable.clear()
            self._readable[auth] = found
        return found

    def narrowed(self, condition: Predicate, holds: Evaluator) -> EntityRules:
        """Return rules whose reads also need a condition on the row, which admins must meet too.

        Args:
            holds: judges decoded rows by `condition`.
        """
        made = copy(self)
        read = self._read

        def judge(
            auth: AuthContext, row: Mapping[str, Any], existing: Mapping[str, Any],
            related: RelatedRows = NO_RELATED, /,
        ) -> bool:
            return holds(row) and (auth.is_admin or read(auth, row, existing, related))

        made._read = judge
        made._bind_read = lambda auth: guarded(self.readable_by(auth), condition)
        made._readable = {}
        made.is_narrowed = True
        if isinstance(self.routing, Everyone | Nobody | ByAuth):
            made.routing = General()  # by the context alone nobody sees a row
        elif isinstance(self.routing, Keyed):
            made.routing = replace(self.routing, exact=False)
        return made

    def explain(
        self, action: Action, auth: AuthContext, data: Row, existing: Row | None = None,
        related: RelatedRows = NO_RELATED,
    ) -> list[RuleVerdict]:
        """Return how each rule of an action judges. The action is allowed to an admin, or if there
        are rules and all hold.

        Args:
            data: the row; of an insert or an update the new one.
            existing: of an update the row before; None: the same row.
        """
        before: Row = {} if action == "insert" else data if existing is None else existing
        found: list[RuleVerdict] = []
        for rule in self._rules[action]:
            if action == "update" and "existing" not in e.roots(rule.expr):
                for name, row in (("before", before), ("after", data)):
                    verdict = judge_rule(rule.expr, auth, row, row, related)
                    found.append(RuleVerdict(rule, verdict, name))
            else:
                found.append(
                    RuleVerdict(rule, judge_rule(rule.expr, auth, data, before, related))
                )
        return found

    def denied(
        self, action: Action, auth: AuthContext, data: Row | None = None,
        existing: Row | None = None, related: RelatedRows = NO_RELATED,
    ) -> PolicyDenied:
        """Return the error for a refused action.

        With `explain`, it shows which rule denied the rows, if they are given, and why; and for an
        action without a rule how to write one. Without `explain`, it shows no rule.
        """
        if self._explain and action in self._declared and data is not None:
            return refusal_of(self.explain(action, auth, data, existing, related))
        hint = HINT
        if self._explain and action not in self._declared:
            example = {
                "name": f"{self._entity}_{action}",
                "entity": self._entity,
                f"allow{action.capitalize()}": "auth.userId != null",
            }
            hint = (
                f"No policy allows {action} on {self._entity}, so only admins may. To allow it to"
                f" all who are signed in, add to the manifest's policies: {json.dumps(example)}"
            )
            if auth.user_id is None:
                hint += ". This request has no user: it would have to sign in as well"
        return PolicyDenied(MESSAGE, hint=hint)


class _Remembered:
    """Related rows that are asked once for each check, during one judgement.

    PERF: an update whose rule asks for one membership took 19 us in place of 22, since the row
    before and the row after mostly have the same values.
    """

    __slots__ = ("_known", "_related")

    def __init__(self, related: RelatedRows) -> None:
        self._related = related
        self._known: dict[tuple[ExistsCheck, CheckValues], bool] = {}

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        known = self._known.get((check, values))
        if known is None:
            known = self._known[check, values] = self._related.has_row(check, values)
        return known
