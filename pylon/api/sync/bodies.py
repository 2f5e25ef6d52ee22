"""Request bodies of sync: a push and its changes, an update of a document (spec/http.md §3.9).

A push executes each change by itself, so no change may make the whole body unreadable: the
members of `PushedChange` accept any value, and `pylon.api.data.operations` checks them.

Called by `pylon.api.sync.pull`; `pylon.openapi` derives their schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon import limits
from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidJson, MissingUpdate

_KINDS: Final = {"enum": ["insert", "update", "delete"]}
_TEXT_OR_NULL: Final = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_OP_ID: Final = {
    "anyOf": [{"type": "string", "maxLength": limits.OP_ID_CHARS}, {"type": "null"}],
}
_CURSOR: Final = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}
_NAMES: Final = {"anyOf": [
    {"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "null"},
]}
_DATA: Final = {"anyOf": [{"type": "object"}, {"type": "null"}]}


class PushedChange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An update or delete needs row_id, an insert or update data."""

    kind: Annotated[Any, Meta(extra_json_schema=_KINDS)] = None
    entity: Any = None
    row_id: Annotated[Any, Meta(extra_json_schema=_TEXT_OR_NULL)] = None
    data: Annotated[Any, Meta(extra_json_schema=_DATA)] = None
    op_id: Annotated[Any, Meta(
        description="Makes the change happen once, however often it is sent",
        extra_json_schema=_OP_ID,
    )] = None


class PushBody(msgspec.Struct, frozen=True, kw_only=True):
    """The queued changes of a client."""

    changes: Annotated[
        list[Any],
        Meta(extra_json_schema={"items": {
            "anyOf": [{"$ref": "#/components/schemas/PushedChange"}, {}],
            "description": "A change that cannot be executed has an entry in errors and results",
        }}),
        Refusal(InvalidJson, text="Invalid request body"),
    ]
    client_id: Annotated[Any, Meta(
        description="The scope of the op_ids, if the caller has no user",
    )] = None


class PullBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pull of a part of the data."""

    since: Annotated[Any, Meta(
        description="The cursor; 0 or null: all rows", extra_json_schema=_CURSOR,
    )] = None
    entities: Annotated[Any, Meta(
        description="Their names; null: all entities", extra_json_schema=_NAMES,
    )] = None
    scope: Annotated[Any, Meta(
        description="A filter for each entity that has one, as in POST /api/query/{entity}",
        extra_json_schema=_DATA,
    )] = None


class DocumentUpdateBody(msgspec.Struct, frozen=True, kw_only=True):
    """An update of a row's document."""

    update: Annotated[
        str,
        Meta(
            description="What loro-crdt exports, an update or a snapshot, as hex",
            extra_json_schema={
                "pattern": "^([0-9a-fA-F]{2})*$", "maxLength": 2 * limits.DOCUMENT_UPDATE_BYTES,
            },
        ),
        Refusal(MissingUpdate, hint='Send {"update": "<hex>"}'),
    ]


PULL: Final = BodyType(
    PullBody, '{"since": 0, "entities": ["Room"], "scope": {"Room": {"id": {"$in": ["..."]}}}}'
)
PUSH: Final = BodyType(PushBody, '{"changes": [{"kind", "entity", "row_id", "data"}, ...]}')
DOCUMENT_UPDATE: Final = BodyType(DocumentUpdateBody, '{"update": "<hex>"}')
