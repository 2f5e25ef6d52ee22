"""Schemas of request bodies, derived from the types that decode them.

`pylon.api` declares each body as a msgspec struct. This module asks msgspec for its JSON schema
and adds what only the manifest knows, such as the names of the entities. The schema of a row, a
filter or an action depends on the manifest as a whole: `values`, `filters` and `writes` make it.

Called by the modules of this package that describe operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from pylon.openapi.parts import Schema

_REFS: Final = "#/components/schemas/{name}"


def body_schema(
    struct: type[msgspec.Struct], members: dict[str, Schema] | None = None,
    required: Iterable[str] = (),
) -> Schema:
    """Return the schema of a body.

    Args:
        struct: the type that decodes it.
        members: what to add to the schemas of members, by the name on the wire.
        required: members that an operation cannot do without, though the body may.
    """
    _, components = msgspec.json.schema_components((struct,), ref_template=_REFS)
    schema: Schema = components[struct.__name__]
    del schema["title"]
    for name, keywords in (members or {}).items():
        schema["properties"][name] = {**schema["properties"][name], **keywords}
    for member in schema["properties"].values():
        _drop_null_default(member)
    names = [*schema.get("required", ()), *required]
    schema.pop("required", None)
    if names:
        schema["required"] = names
    schema.setdefault("additionalProperties", True)
    return schema


def _drop_null_default(member: dict[str, Any]) -> None:
    """Remove the null default that msgspec adds to an optional member: its type may forbid null."""
    if member.get("default", ...) is None:
        del member["default"]
