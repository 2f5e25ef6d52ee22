"""JSON Schema of an app: rows as clients receive them, and inserts and updates as they may send.

The schemas are those of the OpenAPI document (`pylon.openapi.values`), less the fields that only
the server and administrators set. Some rules have no form in JSON Schema: bounds of decimals and
days, references and uniqueness. Called by `pylonctl codegen jsonschema`.
"""

from __future__ import annotations

import json
from typing import Any

from pylon.codegen.client_fields import written_fields
from pylon.manifest.model import Entity, Manifest
from pylon.openapi.values import entity_schemas


def json_schema(manifest: Manifest, digest: str) -> str:
    """Return the document, with definitions ``<E>``, ``<E>Insert`` and ``<E>Update``.

    Args:
        digest: of the manifest, for the comment.
    """
    definitions: dict[str, Any] = {}
    for entity in manifest.entities:
        definitions |= client_schemas(entity)
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"by pylonctl codegen jsonschema; manifest sha256:{digest}",
        "title": manifest.name, "$defs": definitions,
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def client_schemas(entity: Entity) -> dict[str, Any]:
    """Return the schemas of one entity."""
    found = entity_schemas(entity)
    sent = {"id", *(field.name for field in written_fields(entity))}
    insert, update = found[f"{entity.name}Insert"], dict(found[f"{entity.name}Patch"])
    update.pop("anyOf", None)
    return {
        entity.name: found[entity.name],
        f"{entity.name}Insert": _only(insert, sent),
        f"{entity.name}Update": {**_only(update, sent - {"id"}), "minProperties": 1},
    }


def _only(schema: dict[str, Any], names: set[str]) -> dict[str, Any]:
    made = {
        **schema, "properties": {k: v for k, v in schema["properties"].items() if k in names},
    }
    if "required" in schema:
        made["required"] = [name for name in schema["required"] if name in names]
    return made
