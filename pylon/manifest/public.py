"""Public manifest: the document of ``GET /api/manifest`` (spec/http.md §3.1), without the rules."""

from __future__ import annotations

from typing import Any

from pylon.manifest.model import RULE_KEYS, Manifest


def public_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest's document without the six rule keys of its policies."""
    policies = [
        {key: value for key, value in policy.items() if key not in RULE_KEYS}
        for policy in manifest.source.get("policies") or []
    ]
    document = dict(manifest.source)
    if "policies" in document:
        document["policies"] = policies
    return document
