"""Public manifest: the document of ``GET /api/manifest`` (spec/http.md §3.1).

A published client finds every key that the published server requires of a manifest, also where the
file leaves it out. Called by `pylon.api.admin.system`.
"""

from __future__ import annotations

from typing import Any

from pylon.manifest.model import (
    DEFAULT_VERSION,
    FORMAT_VERSION,
    ROOM_RULE_KEYS,
    RULE_KEYS,
    Manifest,
)

_RULES = frozenset({*RULE_KEYS, *ROOM_RULE_KEYS})
_FIELD_DEFAULTS = {"optional": False, "unique": False}


def public_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return the complete document without the rules of its policies."""
    document = complete_document(manifest)
    if document.get("policies") is not None:
        document["policies"] = [
            {key: value for key, value in policy.items() if key not in _RULES}
            for policy in document["policies"]
        ]
    return document


def complete_document(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest's document with the defaults of the keys that it leaves out."""
    source = manifest.source
    document = _filled(
        source, {"manifest_version": FORMAT_VERSION, "version": DEFAULT_VERSION, "routes": []}
    )
    document["entities"] = [
        _filled(entity, {"indexes": []})
        | {"fields": [_filled(field, _FIELD_DEFAULTS) for field in entity["fields"]]}
        | {"indexes": [_filled(i, {"unique": False}) for i in entity.get("indexes") or ()]}
        for entity in source["entities"]
    ]
    for key in ("queries", "actions"):
        if source.get(key) is not None:
            document[key] = [_complete_operation(operation) for operation in source[key]]
    return document


def _complete_operation(operation: dict[str, Any]) -> dict[str, Any]:
    inputs = operation.get("input")
    if inputs is None:
        return operation
    return operation | {"input": [_filled(field, _FIELD_DEFAULTS) for field in inputs]}


def _filled(source: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return `source` with the defaults of keys that are missing or null."""
    return source | {key: value for key, value in defaults.items() if source.get(key) is None}
