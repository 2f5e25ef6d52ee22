"""The manifest that anybody may see: ``GET /api/manifest`` (spec/http.md §3.1)."""

from __future__ import annotations

from typing import Any

from pylon.manifest.model import RULE_KEYS, Manifest


def public_manifest(manifest: Manifest) -> dict[str, Any]:
    """The document as read, without the six rule keys of its policies."""
    policies = [
        {key: value for key, value in policy.items() if key not in RULE_KEYS}
        for policy in manifest.source.get("policies") or []
    ]
    shown = dict(manifest.source)
    if "policies" in shown:
        shown["policies"] = policies
    return shown
