"""The rules of all entities, compiled: the one answer to "may this caller?" for every part.

An entity's policies are all judged, and all must pass. For each the expression is chosen by
spec/http.md §5.1 (read: allowRead, allow; insert: allowInsert, allowWrite, allow; update and
delete alike). Unlike there, an action for which no policy has an expression is **denied**.
Admins pass everything.

An update is judged on two rows. A rule that names ``existing`` sees the row before as
``existing`` and the row after as ``data``, and judges the step itself. A rule that does not must
hold for the row before and for the row after. For an insert all of ``existing`` is null; for
read and delete ``existing`` and ``data`` are the same row.

Made once by `compile_rules` in each process; safe to use from any thread. Nothing in it changes
but its cache of read conditions, which holds those of `limits.READ_RULES_KEPT` callers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal

from pylon import limits
from pylon.auth_context import AuthContext
from pylon.errors import PolicyDenied
from pylon.manifest.diagnostics import Diagnostic, ManifestInvalid
from pylon.manifest.model import RULE_KEYS, Entity, Manifest, Policy, RuleKey
from pylon.policy import expression as e
from pylon.policy.bind import binder_of
from pylon.policy.check import action_scope, check, entity_scope
from pylon.policy.compile import compile_condition
from pylon.policy.expression import Expr
from pylon.policy.grammar import PolicyInvalid
from pylon.policy.routing import Everyone, Routing, plan
from pylon.query.predicate import TRUE, Predicate

Action = Literal["read", "insert", "update", "delete"]
_CHOICE: dict[Action, tuple[RuleKey, ...]] = {
    "read": ("allow_read", "allow"),
    "insert": ("allow_insert", "allow_write", "allow"),
    "update": ("allow_update", "allow_write", "allow"),
    "delete": ("allow_delete", "allow_write", "allow"),
}


class EntityRules:
    """The compiled rules of one entity. `read_fields` are the fields of a row that decide who may
    read it; equal rules have equal `read_text`s, also in another process."""

    __slots__ = (
        "_begin", "_bind_read", "_declared", "_delete", "_entity", "_explain", "_insert",
        "_read", "_readable", "_state", "_step", "fields", "read_fields",
        "read_text", "routing",
    )

    def __init__(
        self, entity: str, chosen: Mapping[Action, list[Expr]], explain: bool = True
    ) -> None:
        """Args:
        chosen: for each action the expressions that must all be true; an empty list denies.
        explain: refusals say where no rule exists.
        """
        self._explain = explain
        read = _one_row(_all(chosen["read"]))
        steps = [rule for rule in chosen["update"] if "existing" in e.roots(rule)]
        states = [rule for rule in chosen["update"] if "existing" not in e.roots(rule)]
        if not chosen["update"]:
            states = [e.FALSE]
        self._entity = entity
        self._declared = frozenset(action for action, rules in chosen.items() if rules)
        self._read = compile_condition(read)
        self._bind_read = binder_of(read)
        self._readable: dict[AuthContext, Predicate] = {}
        self._insert = compile_condition(_all(chosen["insert"]))
        self._delete = compile_condition(_one_row(_all(chosen["delete"])))
        self._state = compile_condition(_all(states or [e.TRUE]))
        self._step = compile_condition(_all(steps or [e.TRUE]))
        known = [
            part for rule in steps for part in e.conjuncts(rule) if "data" not in e.roots(part)
        ]
        self._begin = compile_condition(_all([*states, *known] or [e.TRUE]))
        self.routing: Routing = plan(read)
        # The fields that the rules of existing rows look at.
        self.fields = frozenset[str]().union(*(
            e.fields_of(rule)
            for action in ("read", "update", "delete") for rule in chosen.get(action, ())
        ))
        self.read_fields = e.fields_of(read)
        self.read_text = repr(read)

    def may_read(self, auth: AuthContext, row: Mapping[str, Any]) -> bool:
        """Whether the caller may see the row (a decoded JSON row)."""
        return auth.is_admin or self._read(auth, row, row)

    def may_insert(self, auth: AuthContext, row: Mapping[str, Any]) -> bool:
        """Whether the caller may add the row."""
        return auth.is_admin or self._insert(auth, row, {})

    def may_update(
        self, auth: AuthContext, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> bool:
        """Whether the caller may turn the row `before` into the row `after` (both complete)."""
        return auth.is_admin or (
            self._state(auth, before, before)
            and self._state(auth, after, after)
            and self._step(auth, after, before)
        )

    def may_begin_update(self, auth: AuthContext, before: Mapping[str, Any]) -> bool:
        """Whether any update of the row `before` by the caller may pass `may_update`, as far as
        that can be known without the row after it."""
        return auth.is_admin or self._begin(auth, before, before)

    def may_delete(self, auth: AuthContext, row: Mapping[str, Any]) -> bool:
        """Whether the caller may remove the row."""
        return auth.is_admin or self._delete(auth, row, row)

    def readable_by(self, auth: AuthContext) -> Predicate:
        """The rows that the caller may read: exactly those that `may_read` passes."""
        if auth.is_admin:
            return TRUE
        found = self._readable.get(auth)
        if found is None:
            found = self._bind_read(auth)
            if len(self._readable) >= limits.READ_RULES_KEPT:
                self._readable.clear()
            self._readable[auth] = found
        return found

    def denied(self, action: Action, auth: AuthContext) -> PolicyDenied:
        """The error to raise. It shows no rule. Where none exists, it shows how to write one, but
        only with `explain`: strangers are not told which rules there are."""
        hint = "Check your auth token or the policy rules in your schema"
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
        return PolicyDenied("Access denied by policy", hint=hint)


class RuleSet:
    """The rules of every entity of a manifest, and of its actions. `is_open`: everybody may read
    every row."""

    __slots__ = ("_acts", "_by_entity", "is_open")

    def __init__(
        self, by_entity: Mapping[str, EntityRules], acts: Mapping[str, list[Expr]] | None = None
    ) -> None:
        """
        Args:
            acts: for each action that has policies the expressions that must all be true.
        """
        self._by_entity = dict(by_entity)
        self.is_open = all(isinstance(r.routing, Everyone) for r in self._by_entity.values())
        self._acts = {name: compile_condition(_all(rules)) for name, rules in (acts or {}).items()}

    def of(self, entity: str) -> EntityRules:
        """The rules of an entity of the manifest (KeyError for any other name)."""
        return self._by_entity[entity]

    def may_act(self, action: str, auth: AuthContext, given: Mapping[str, Any]) -> bool:
        """Whether the caller may run the action. Denied where no policy speaks of it.

        Args:
            given: the inputs, each of its declared type or null.
        """
        if auth.is_admin:
            return True
        judge = self._acts.get(action)
        return judge is not None and judge(auth, given, {})


def compile_rules(manifest: Manifest, *, explain: bool = True) -> RuleSet:
    """Compile all policies.

    Args:
        explain: refusals tell developers where no rule exists; off in production.

    Raises:
        ManifestInvalid: with a diagnostic for each bad expression. A manifest that
            `pylon.manifest_loader` returned has none.
    """
    actions = {action.name: action for action in manifest.actions}
    problems: list[Diagnostic] = []
    chosen: dict[str, dict[Action, list[Expr]]] = {
        entity.name: {action: [] for action in _CHOICE} for entity in manifest.entities
    }
    acts: dict[str, list[Expr]] = {}
    for policy in manifest.policies:
        entity = manifest.by_name.get(policy.entity or "")
        try:
            if policy.action is not None and policy.allow and policy.action in actions:
                rule = check(policy.allow, action_scope(actions[policy.action]))
                acts.setdefault(policy.action, []).append(rule)
            if entity is not None:
                for action, rule in _chosen(policy, entity).items():
                    chosen[entity.name][action].append(rule)
        except PolicyInvalid as invalid:
            message = f'policy "{policy.name}": {invalid.message}'
            problems.append(Diagnostic("error", invalid.code, message, "manifest"))
    if problems:
        raise ManifestInvalid(problems)
    by_entity = {name: EntityRules(name, rules, explain) for name, rules in chosen.items()}
    return RuleSet(by_entity, acts)


def _chosen(policy: Policy, entity: Entity) -> dict[Action, Expr]:
    """The policy's rule for each action for which it has one."""
    scope = entity_scope(entity)
    texts = {key: getattr(policy, key) for key in RULE_KEYS.values()}
    rules = {key: check(text, scope) for key, text in texts.items() if text}
    found: dict[Action, Expr] = {}
    for action, keys in _CHOICE.items():
        rule = next((rules[key] for key in keys if key in rules), None)
        if rule is not None:
            found[action] = rule
    return found


def _all(rules: list[Expr]) -> Expr:
    if len(rules) == 1:
        return rules[0]
    return e.And(tuple(rules)) if rules else e.FALSE


def _one_row(expr: Expr) -> Expr:
    """The expression with ``existing`` called ``data``: they are one row."""
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
