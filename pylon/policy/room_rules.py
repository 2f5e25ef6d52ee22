"""Room rules: the compiled policies of rooms, which decide who joins, broadcasts and is present.

A policy is for the rooms that its pattern matches: a whole name, or the first part of one and a
``*`` at its end. A rule sees the room as ``room``: ``room.name`` is the whole name, ``room.id``
what ``*`` stands for (null without one). All policies that match a room must pass. Each contributes
its rule of the action: `allowJoin`; `allowBroadcast` and `allowPresence`, or else `allowJoin`; or
else `allow`. Once a manifest has a policy of rooms, an action without a rule is denied, and so is a
room that no pattern matches. Without such a policy all rooms are open. Admins pass everything.

Invariant: the rules never change, and any thread may use them. `pylon.policy.rules` makes them;
`pylon.api.realtime.rooms` and `workers.ws` call them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from pylon.auth_context import AuthContext
from pylon.errors import PolicyDenied
from pylon.manifest.model import ROOM_RULE_KEYS, Entity, Policy
from pylon.policy import expression as e
from pylon.policy.check import check
from pylon.policy.compile import Judge, compile_condition
from pylon.policy.expression import Expr
from pylon.policy.refusals import HINT, MESSAGE, Rule, RuleVerdict, refusal_of
from pylon.policy.related import NO_RELATED, ExistsCheck, RelatedRows
from pylon.policy.related_changes import AuthKey, RelatedChanges
from pylon.policy.scope import room_scope
from pylon.policy.verdicts import judge_rule

RoomAction = Literal["join", "broadcast", "presence"]
_KEYS_BY_ACTION: Final[dict[RoomAction, tuple[str, ...]]] = {
    "join": ("allowJoin", "allow"),
    "broadcast": ("allowBroadcast", "allowJoin", "allow"),
    "presence": ("allowPresence", "allowJoin", "allow"),
}


class _RoomPolicy(msgspec.Struct, frozen=True):
    prefix: str
    has_star: bool
    judges: Mapping[RoomAction, Judge]
    rules: Mapping[RoomAction, Rule]

    def find_id(self, name: str) -> tuple[str | None] | None:
        """Return the id of a room in a tuple, or None if the pattern does not match its name."""
        if not self.has_star:
            return (None,) if name == self.prefix else None
        return (name[len(self.prefix):],) if name.startswith(self.prefix) else None


class RoomRules:
    """The rules of all rooms. False if the manifest has none: then all rooms are open."""

    __slots__ = ("_explain", "_joins", "_policies")

    def __init__(
        self, policies: Sequence[Policy] = (), entities: Mapping[str, Entity] | None = None, *,
        explain: bool = False,
    ) -> None:
        """Compile the rules.

        Args:
            policies: those of rooms.
            explain: whether a refusal shows which rule denied, or that there is none.

        Raises:
            PolicyInvalid: a rule is wrong.
        """
        self._explain = explain
        self._policies: list[_RoomPolicy] = []
        joins: list[Expr] = []
        for policy in policies:
            chosen = _choose_rules(policy, entities or {})
            judges = {a: compile_condition(rule.expr) for a, rule in chosen.items()}
            pattern = policy.room or ""
            self._policies.append(
                _RoomPolicy(pattern.removesuffix("*"), pattern.endswith("*"), judges, chosen)
            )
            if "join" in chosen:
                joins.append(chosen["join"].expr)
        checks = (ExistsCheck(exists) for rule in joins for exists in e.exists_in(rule))
        self._joins = RelatedChanges(tuple(dict.fromkeys(checks)))

    def __bool__(self) -> bool:
        return bool(self._policies)

    @property
    def asked(self) -> frozenset[str]:
        """Return the entities that the rules of joins ask."""
        return self._joins.entities

    def may(
        self, action: RoomAction, auth: AuthContext, name: str, related: RelatedRows = NO_RELATED
    ) -> bool:
        """Whether the caller may do this in the room."""
        if auth.is_admin or not self._policies:
            return True
        is_allowed = False
        for policy, room in self._matching(name):
            judge = policy.judges.get(action)
            if judge is not None:
                if not judge(auth, room, {}, related):
                    return False
                is_allowed = True
        return is_allowed

    def require(
        self, action: RoomAction, auth: AuthContext, name: str, related: RelatedRows = NO_RELATED
    ) -> None:
        """Check that the caller may do this in the room.

        Raises:
            PolicyDenied: they may not.
        """
        if not self.may(action, auth, name, related):
            raise self._denied(action, auth, name, related)

    def concerns(self, auth: AuthContext, entity: str, image: Mapping[str, Any]) -> bool:
        """Whether a row that came, went or changed may decide whether the caller may join a room.

        Args:
            image: the row before or after its change.
        """
        return self._joins.concerns(auth, entity, image)

    def auth_keys(self, entity: str) -> tuple[AuthKey, ...] | None:
        """Return the fields of a row that lead to the callers whom it concerns (`RelatedChanges`).
        """
        return self._joins.auth_keys(entity)

    def explain(
        self, action: RoomAction, auth: AuthContext, name: str, related: RelatedRows = NO_RELATED
    ) -> list[RuleVerdict]:
        """Return how each rule of an action judges a room."""
        return [
            RuleVerdict(rule, judge_rule(rule.expr, auth, room, {}, related))
            for policy, room in self._matching(name)
            if (rule := policy.rules.get(action)) is not None
        ]

    def _denied(
        self, action: RoomAction, auth: AuthContext, name: str, related: RelatedRows
    ) -> PolicyDenied:
        if not self._explain:
            return PolicyDenied(MESSAGE, hint=HINT)
        verdicts = self.explain(action, auth, name, related)
        if verdicts:
            return refusal_of(verdicts)
        return PolicyDenied(
            MESSAGE,
            hint=f'No policy of rooms has a rule of {action} for "{name}", so only admins may. To '
            f'open all rooms that no other policy matches: {{"name": "rooms", "room": "*", '
            f'"allow{action.capitalize()}": "true"}}',
        )

    def _matching(self, name: str) -> Iterator[tuple[_RoomPolicy, Mapping[str, Any]]]:
        for policy in self._policies:
            found = policy.find_id(name)
            if found is not None:
                yield policy, {"id": found[0], "name": name}


def _choose_rules(policy: Policy, entities: Mapping[str, Entity]) -> dict[RoomAction, Rule]:
    """Return the policy's rule for each action that has one."""
    scope = room_scope(entities)
    found: dict[RoomAction, Rule] = {}
    for action, keys in _KEYS_BY_ACTION.items():
        key = next((key for key in keys if getattr(policy, ROOM_RULE_KEYS[key])), None)
        if key is not None:
            expr = check(getattr(policy, ROOM_RULE_KEYS[key]), scope)
            found[action] = Rule(policy.name, key, policy.places.get(key, ""), expr)
    return found
