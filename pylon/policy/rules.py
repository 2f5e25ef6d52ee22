"""Rules: the compiled policies of all entities and actions, which decide for every caller and row.

All policies of an entity must pass. Each policy contributes the first expression that it has for an
action (spec/http.md §5.1). For read these are allowRead and allow; for insert allowInsert,
allowWrite and allow; update and delete likewise. Unlike the spec, an action without an expression
in any policy is **denied**. Admins pass everything.

An update has two rows. A rule that names ``existing`` sees the row before as ``existing`` and the
row after as ``data``, and judges the step. A rule without ``existing`` must hold for both rows. For
an insert every field of ``existing`` is null. For read and delete ``existing`` and ``data`` are the
same row.

A rule with ``exists(...)`` asks other rows. Its judge needs a source of related rows (`related`)
that answers from the moment at which it judges; a rule without `exists` never calls its source.

Invariant: the rules never change, and any thread may use them. Bound: the cache of read conditions
holds those of `limits.READ_RULES_KEPT` callers. `pylon.app` makes the rules once in each process;
readers, writer, hub and API call them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import fields, replace
from typing import Any, Literal

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import PolicyDenied
from pylon.manifest.diagnostics import Diagnostic, ManifestInvalid
from pylon.manifest.model import RULE_KEYS, Entity, Manifest, Policy
from pylon.policy import expression as e
from pylon.policy.bind import binder_of
from pylon.policy.check import action_scope, check, entity_scope
from pylon.policy.compile import compile_condition
from pylon.policy.expression import Expr
from pylon.policy.grammar import PolicyInvalid
from pylon.policy.refusals import HINT, MESSAGE, Rule, RuleVerdict, refusal_of
from pylon.policy.related import NO_RELATED, CheckValues, ExistsCheck, RelatedRows
from pylon.policy.related_changes import RelatedChanges
from pylon.policy.room_rules import RoomRules
from pylon.policy.routing import ByAuth, Everyone, General, Keyed, Nobody, Routing, plan
from pylon.policy.verdicts import judge_rule
from pylon.query.conditions import guarded
from pylon.query.evaluate import Evaluator
from pylon.query.predicate import TRUE, Predicate

Row = Mapping[str, Any]
Action = Literal["read", "insert", "update", "delete"]
_KEYS_BY_ACTION: dict[Action, tuple[str, ...]] = {
    "read": ("allowRead", "allow"),
    "insert": ("allowInsert", "allowWrite", "allow"),
    "update": ("allowUpdate", "allowWrite", "allow"),
    "delete": ("allowDelete", "allowWrite", "allow"),
}


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
        read = _one_row(_conjunction(chosen["read"]))
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
        self._insert = compile_condition(_conjunction(chosen["insert"]))
        self._delete = compile_condition(_one_row(_conjunction(chosen["delete"])))
        self._state = compile_condition(_conjunction(states or [e.TRUE]))
        self._step = compile_condition(_conjunction(steps or [e.TRUE]))
        known_parts = [
            part for rule in steps for part in e.conjuncts(rule) if "data" not in e.roots(part)
        ]
        self._begin = compile_condition(_conjunction([*states, *known_parts] or [e.TRUE]))
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
            "read": _checks_of([read]),
            **{action: _checks_of(chosen[action]) for action in ("insert", "update")},
            "delete": _checks_of([_one_row(rule) for rule in chosen["delete"]]),
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


class RuleSet:
    """The rules of all entities and actions of a manifest.

    `is_open`: whether all callers may read every row. `is_part`: it has the rules of a scope, which
    admins must meet too. `related`: by entity, what its read rule asks of other rows, without the
    entities whose rules ask nothing. `asked_by_readers`: the entities that read rules ask. `rooms`:
    the rules of rooms.
    """

    __slots__ = (
        "_by_entity", "_explain", "_judge_by_action", "_rules_by_action", "asked_by_readers",
        "is_open", "is_part", "related", "rooms",
    )

    def __init__(
        self,
        by_entity: Mapping[str, EntityRules],
        rules_by_action: Mapping[str, list[Rule]] | None = None,
        *, is_part: bool = False, rooms: RoomRules | None = None, explain: bool = False,
    ) -> None:
        """Compile the rules of the actions.

        Args:
            rules_by_action: for each action with policies the rules that must all be true.
            rooms: the rules of rooms; None: all rooms are open.
            explain: whether refusals of actions show which rule denied.
        """
        self.rooms = RoomRules() if rooms is None else rooms
        self._by_entity = dict(by_entity)
        self.is_part = is_part
        self.is_open = all(isinstance(r.routing, Everyone) for r in self._by_entity.values())
        self.related: Mapping[str, RelatedChanges] = {
            name: rules.related for name, rules in by_entity.items() if rules.related.checks
        }
        self.asked_by_readers = frozenset[str]().union(
            *(related.entities for related in self.related.values())
        )
        self._judge_by_action = {
            name: compile_condition(_conjunction([rule.expr for rule in rules]))
            for name, rules in (rules_by_action or {}).items()
        }
        self._rules_by_action = dict(rules_by_action or {})
        self._explain = explain

    def for_entity(self, entity: str) -> EntityRules:
        """Return the rules of an entity of the manifest (KeyError for any other name)."""
        return self._by_entity[entity]

    def find(self, entity: str) -> EntityRules | None:
        """Return the rules of an entity; None if the manifest does not have it."""
        return self._by_entity.get(entity)

    def may_act(
        self, action: str, auth: AuthContext, inputs: Mapping[str, Any],
        related: RelatedRows = NO_RELATED,
    ) -> bool:
        """Whether the caller may run the action. An action without a policy is denied.

        Args:
            inputs: each of its declared type or null.
        """
        if auth.is_admin:
            return True
        judge = self._judge_by_action.get(action)
        return judge is not None and judge(auth, inputs, {}, related)

    def denied_action(
        self, action: str, auth: AuthContext, inputs: Mapping[str, Any],
        related: RelatedRows = NO_RELATED,
    ) -> PolicyDenied:
        """Return the error for a refused run of an action; see `EntityRules.denied`."""
        rules = self._rules_by_action.get(action, ())
        if not self._explain or not rules:
            return PolicyDenied(MESSAGE)
        return refusal_of(
            RuleVerdict(rule, judge_rule(rule.expr, auth, inputs, {}, related)) for rule in rules
        )


def compile_rules(manifest: Manifest, *, explain: bool = True) -> RuleSet:
    """Compile all policies.

    Args:
        explain: whether refusals show developers that an action has no rule; off in production.

    Raises:
        ManifestInvalid: with a diagnostic for each bad expression. A manifest that
            `pylon.manifest_loader` returned has none.
    """
    actions = {action.name: action for action in manifest.actions}
    problems: list[Diagnostic] = []
    chosen: dict[str, dict[Action, list[Rule]]] = {
        entity.name: {action: [] for action in _KEYS_BY_ACTION} for entity in manifest.entities
    }
    rules_by_action: dict[str, list[Rule]] = {}
    for policy in manifest.policies:
        entity = manifest.by_name.get(policy.entity or "")
        try:
            if policy.action is not None and policy.allow and policy.action in actions:
                rule = check(
                    policy.allow, action_scope(actions[policy.action], manifest.by_name)
                )
                rules_by_action.setdefault(policy.action, []).append(
                    Rule(policy.name, "allow", policy.places.get("allow", ""), rule)
                )
            if policy.room is not None:
                RoomRules([policy], manifest.by_name)
            if entity is not None:
                for action, found in _choose_rules(policy, entity, manifest.by_name).items():
                    chosen[entity.name][action].append(found)
        except PolicyInvalid as invalid:
            message = f'policy "{policy.name}": {invalid.message}'
            problems.append(Diagnostic("error", invalid.code, message, "manifest"))
    if problems:
        raise ManifestInvalid(problems)
    of_rooms = [policy for policy in manifest.policies if policy.room is not None]
    rooms = RoomRules(of_rooms, manifest.by_name, explain=explain)
    by_entity = {name: EntityRules(name, rules, explain) for name, rules in chosen.items()}
    return RuleSet(by_entity, rules_by_action, rooms=rooms, explain=explain)


def _choose_rules(
    policy: Policy, entity: Entity, entities: Mapping[str, Entity]
) -> dict[Action, Rule]:
    """Return the policy's rule for each action that has one."""
    scope = entity_scope(entity, entities)
    texts = {key: getattr(policy, name) for key, name in RULE_KEYS.items()}
    rules = {
        key: Rule(policy.name, key, policy.places.get(key, ""), check(text, scope))
        for key, text in texts.items() if text
    }
    found: dict[Action, Rule] = {}
    for action, keys in _KEYS_BY_ACTION.items():
        rule = next((rules[key] for key in keys if key in rules), None)
        if rule is not None:
            found[action] = rule
    return found


def _conjunction(rules: list[Expr]) -> Expr:
    if len(rules) == 1:
        return rules[0]
    return e.And(tuple(rules)) if rules else e.FALSE


def _checks_of(rules: list[Expr]) -> tuple[ExistsCheck, ...]:
    """Return what rules ask, each check once."""
    found = (ExistsCheck(exists) for rule in rules for exists in e.exists_in(rule))
    return tuple(dict.fromkeys(found))


def _one_row(expr: Expr) -> Expr:
    """Return the expression with ``data`` in place of ``existing``: they are one row."""
    if isinstance(expr, e.Column):
        return replace(expr, root="data")
    changes: dict[str, Any] = {}
    for slot in fields(expr):
        value = getattr(expr, slot.name)
        if isinstance(value, tuple):
            changes[slot.name] = tuple(_one_row(item) for item in value)
        elif isinstance(value, Expr):
            changes[slot.name] = _one_row(value)
    return replace(expr, **changes) if changes else expr
