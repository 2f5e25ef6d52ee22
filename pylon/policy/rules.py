"""Rules: the compiled policies of all entities and actions, which decide for every caller and row.

A policy contributes to an action the first expression that it has for it (spec/http.md §5.1). For
read these are allowRead and allow; for insert allowInsert, allowWrite and allow; update and delete
likewise. `entity_rules` judges rows by these expressions, `room_rules` the members of rooms.

Invariant: the rules never change, and any thread may use them. `pylon.app` makes the rules once in
each process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pylon.auth_context import AuthContext
from pylon.errors import PolicyDenied
from pylon.manifest.diagnostics import Diagnostic, ManifestInvalid
from pylon.manifest.model import RULE_KEYS, Entity, Manifest, Policy
from pylon.policy import expression as e
from pylon.policy.check import check
from pylon.policy.compile import compile_condition
from pylon.policy.entity_rules import Action, EntityRules
from pylon.policy.grammar import PolicyInvalid
from pylon.policy.refusals import MESSAGE, Rule, RuleVerdict, refusal_of
from pylon.policy.related import NO_RELATED, RelatedRows
from pylon.policy.related_changes import RelatedChanges
from pylon.policy.room_rules import RoomRules
from pylon.policy.routing import Everyone
from pylon.policy.scope import action_scope, entity_scope
from pylon.policy.verdicts import judge_rule

_KEYS_BY_ACTION: dict[Action, tuple[str, ...]] = {
    "read": ("allowRead", "allow"),
    "insert": ("allowInsert", "allowWrite", "allow"),
    "update": ("allowUpdate", "allowWrite", "allow"),
    "delete": ("allowDelete", "allowWrite", "allow"),
}


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
            name: compile_condition(e.conjunction([rule.expr for rule in rules]))
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
