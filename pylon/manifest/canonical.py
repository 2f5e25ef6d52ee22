"""Canonical form: one document for all manifests that mean the same.

Keys that are null or have their default are left out, and so is the order of policies, which has
no meaning: all policies of an entity must pass. Called by `pylonctl manifest build --check`, by
`pylonctl codegen` for the digest, and by tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from pylon.manifest.model import DEFAULT_VERSION, FORMAT_VERSION, ROOM_RULE_KEYS, RULE_KEYS

_EMPTY: Final[tuple[Any, ...]] = ([], {}, None)
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "manifest": {"manifest_version": FORMAT_VERSION, "version": DEFAULT_VERSION},
    "entities": {"crdt": True},
    "fields": {
        "optional": False, "unique": False, "fixed": False, "serverOnly": False, "wire": "json",
    },
    "input": {"optional": False, "unique": False},
    "indexes": {"unique": False},
    "relations": {"many": False},
    "policies": dict.fromkeys((*RULE_KEYS, *ROOM_RULE_KEYS, "entity", "action", "room"), ""),
}
_OBJECT_LISTS: Final = frozenset((*_DEFAULTS, "queries", "actions", "routes", "rateLimits"))
_LISTS: Final = frozenset(
    {"indexes", "relations", "routes", "policies", "queries", "actions", "rateLimits", "accept",
     "text", "facets", "sortable", "auth"}
)


def canonical_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the canonical form of a valid manifest."""
    made = _canonical(document, "manifest")
    if "policies" in made:
        made["policies"] = sorted(made["policies"], key=lambda policy: str(policy["name"]))
    return made


def manifest_digest(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical form, in hex."""
    text = json.dumps(canonical_document(document), sort_keys=True, ensure_ascii=False)
    return sha256(text.encode()).hexdigest()


def _canonical(raw: Mapping[str, Any], level: str) -> dict[str, Any]:
    defaults = _DEFAULTS.get(level, {})
    made: dict[str, Any] = {}
    for key, value in raw.items():
        if value is None or (key in defaults and value == defaults[key]
                             and type(value) is type(defaults[key])):
            continue
        if key in _LISTS and value in _EMPTY:
            continue
        if isinstance(value, list) and key in _OBJECT_LISTS:
            made[key] = [
                _canonical(item, key) if isinstance(item, dict) else item for item in value
            ]
        elif key == "search" and level == "entities":
            made[key] = _canonical(value, key)
        else:
            made[key] = value
    return made
