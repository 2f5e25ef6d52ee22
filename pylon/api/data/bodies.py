"""Request bodies of rows: batch, transaction, links, import, search (spec/http.md §3.7, §3.8).

The bodies of inserts and updates are rows, and those of queries, aggregates and graphs are trees:
`pylon.values` and `pylon.query` check them by the manifest, and `pylon.openapi` describes them
for each entity.

Called by the resources of `pylon.api.data`; `pylon.openapi` derives their schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon import limits
from pylon.body_types import BodyType, Refusal
from pylon.errors import MissingField, MissingOperations

_KINDS: Final = {"enum": ["insert", "update", "delete"]}
_TEXT_OR_NULL: Final = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_DATA: Final = {"anyOf": [{"type": "object"}, {"type": "null"}]}
_OPERATION: Final = {"$ref": "#/components/schemas/Operation"}
_SomeText = Annotated[
    str, Meta(min_length=1), Refusal(MissingField, expected="a string", names_field=True)
]


class Operation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An update or delete needs id, an insert or update data."""

    # Each operation is judged by itself, so none can make the body as a whole unreadable:
    # `pylon.api.data.operations` checks these members.
    kind: Annotated[Any, Meta(extra_json_schema=_KINDS)] = msgspec.field(default=None, name="op")
    entity: Any = None
    row_id: Annotated[
        Any, Meta(extra_json_schema=_TEXT_OR_NULL)
    ] = msgspec.field(default=None, name="id")
    data: Annotated[Any, Meta(extra_json_schema=_DATA)] = None


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """Operations, each of which succeeds or fails alone."""

    operations: Annotated[
        list[Any],
        Meta(extra_json_schema={
            "items": {
                "anyOf": [_OPERATION, {}],
                "description": "An operation that cannot be executed has an error in its result",
            },
            "maxItems": limits.BATCH_OPS,
        }),
        Refusal(
            MissingOperations, text="operations array is required",
            hint='Send {"operations": [{"op", "entity", "id", "data"}, ...]}',
        ),
    ]


class LinkBody(msgspec.Struct, frozen=True, kw_only=True):
    """A row, one of its relations, and the row to link."""

    entity: _SomeText
    id: _SomeText
    relation: _SomeText
    target_id: _SomeText


class UnlinkBody(msgspec.Struct, frozen=True, kw_only=True):
    """A row, and one of its relations to clear; a to-many relation needs target_id too."""

    entity: _SomeText
    id: _SomeText
    relation: _SomeText
    # Only a to-many relation needs it; of others it is ignored.
    target_id: Annotated[Any, Meta(extra_json_schema={"type": "string", "minLength": 1})] = None


class ImportBody(msgspec.Struct, frozen=True, kw_only=True):
    """Rows by entity, as an export returns them."""

    # Each row is decoded when its turn comes: a document may have more values than one body.
    entities: dict[str, list[msgspec.Raw]]


BATCH: Final = BodyType(
    BatchBody, '{"operations": [{"op", "entity", "id", "data"}, ...]}', is_lenient=True
)
LINK: Final = BodyType(LinkBody, '{"entity", "id", "relation", ...}')
UNLINK: Final = BodyType(UnlinkBody, '{"entity", "id", "relation", ...}')
