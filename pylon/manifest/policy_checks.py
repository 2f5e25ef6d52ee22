"""Policy checks: report faults of policies beyond their expressions, which `pylon.policy` checks.

Called by `checks`.
"""

from __future__ import annotations

from pylon import limits
from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, items_of, text_of
from pylon.manifest.model import ROOM_RULE_KEYS, RULE_KEYS
from pylon.manifest.name_checks import check_plain_name, list_known, names_of


def check_policies(root: Node, findings: Findings) -> None:
    """Check the name, the target and the keys of each policy."""
    taken: set[str] = set()
    for policy in items_of(root, "policies"):
        check_plain_name(policy, "policy", "POLICY", taken, findings)
        if not isinstance(policy.value, dict):
            continue
        rules = [
            node for key, node in policy.value.items()
            if key in RULE_KEYS or key in ROOM_RULE_KEYS
        ]
        if all(node.value is None or node.value == "" for node in rules):
            findings.error("POLICY_ALLOW_EMPTY", "the policy has no rule", policy.at)
        targets = {key: text_of(policy, key) for key in ("entity", "action", "room")}
        named = {key: node for key, node in targets.items() if node is not None and node.value}
        if not named:
            findings.error(
                "POLICY_NO_TARGET", "the policy is for no entity, no action and no room", policy.at
            )
        room = named.pop("room", None)
        _rule_keys(policy, room is not None, findings)
        if room is not None:
            _room_pattern(room, findings)
            for key, node in named.items():
                findings.error(
                    "POLICY_ROOM_INVALID", f"the policy is for rooms and for an {key}", node.at,
                    "write two policies",
                )
        for key, node in named.items():
            known = names_of(items_of(root, "entities" if key == "entity" else "actions"))
            if node.value not in known:
                findings.error(
                    f"POLICY_{key.upper()}_NOT_FOUND", f'no {key} is called "{node.value}"',
                    node.at, list_known(known, node.value),
                )


def _rule_keys(policy: Node, is_for_rooms: bool, findings: Findings) -> None:
    """Report the rules that are never asked: those of rooms for others, and the reverse."""
    used, other = (ROOM_RULE_KEYS, RULE_KEYS) if is_for_rooms else (RULE_KEYS, ROOM_RULE_KEYS)
    for key, node in policy.value.items():
        if key in other and key not in used and node.value:
            findings.error(
                "POLICY_RULE_MISPLACED",
                f'{key} is no rule of {"rooms" if is_for_rooms else "entities or actions"}',
                node.at, list_known(used),
            )


def _room_pattern(room: Node, findings: Findings) -> None:
    name = room.value
    if "*" in name[:-1]:
        findings.error(
            "POLICY_ROOM_INVALID", f'the room "{name}" has a * before its end', room.at,
            'one * stands at the end, as in "room:*"',
        )
    elif len(name) > limits.ROOM_NAME_CHARS:
        findings.error(
            "POLICY_ROOM_INVALID",
            f"the room has {len(name)} characters (limit {limits.ROOM_NAME_CHARS})", room.at,
        )
