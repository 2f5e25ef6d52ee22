"""Operations of sync: pull and push (spec/http.md §3.9, spec/realtime.md §1.4, §1.5)."""

from __future__ import annotations

from typing import Any, Final

from pylon import errors
from pylon.api.sync.bodies import PullBody, PushBody, PushedChange
from pylon.manifest.model import Manifest
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    STORE_ERRORS,
    WRITE_ERRORS,
    Paths,
    Schema,
    listed,
    obj,
    operation,
    query,
    ref,
    response,
    shared,
)

_SEQ: Final[Schema] = {"type": "integer", "minimum": 0}
_ANY: Final[Schema] = {}
_CURSOR: Final = obj({"last_seq": _SEQ})


def sync_schemas(manifest: Manifest) -> dict[str, Schema]:
    """Return the schemas of changes, pulled and pushed."""
    row = {"type": "object", "description": "The row; of an update, the fields that it changes"}
    return {
        "ChangeEvent": obj(
            {
                "seq": _SEQ,
                "entity": {"type": "string"},
                "row_id": {"type": "string"},
                "kind": {"enum": ["insert", "update", "delete"]},
                "data": row,
                "timestamp": {"type": "string"},
            },
            ("seq", "entity", "row_id", "kind", "timestamp"),
        ),
        "PushedChange": body_schema(
            PushedChange, {"entity": {"enum": [entity.name for entity in manifest.entities]}},
            required=("kind", "entity"),
        ),
        "PushResult": obj(
            {
                "op_id": _ANY, "entity": _ANY, "kind": _ANY, "row_id": _ANY,
                "seq": _SEQ,
                "status": {"enum": ["applied", "replayed", "error"]},
                "error": {"$ref": "#/components/schemas/Error/properties/error"},
            },
            ("op_id", "entity", "kind", "row_id", "seq", "status"),
        ),
    }


def sync_paths() -> Paths:
    """Return the paths under /api/sync."""
    pulled = obj(
        {
            "changes": listed(ref("ChangeEvent")),
            "cursor": _CURSOR,
            "has_more": {"type": "boolean"},
            "snapshot_after": {"type": "null"},
        },
        ("changes", "cursor", "has_more"),
    )
    pushed = obj(
        {
            "applied": _SEQ, "deduped": _SEQ, "remaining": _SEQ,
            "errors": listed({"type": "string"}),
            "cursor": _CURSOR,
            "results": listed(ref("PushResult")),
        },
        ("applied", "deduped", "errors", "cursor", "results"),
    )
    return {
        "/api/sync/pull": {**_pull_scope(pulled), **operation(
            "get", "pull", "sync", "The changes after a cursor; with since=0 all rows",
            {200: response("Changes that the caller may see", pulled)},
            raises=(
                *STORE_ERRORS, errors.ResyncRequired, errors.SnapshotCursorInvalid,
                errors.InvalidQuery,
            ),
            parameters=[
                query(
                    "entities", {"type": "string", "examples": ["Room,Member"]},
                    "The entities of the answer; without it all",
                ),
                query(
                    "since", {"type": "string", "examples": ["0"]},
                    "The cursor; a missing or unreadable one counts as 0",
                ),
                query(
                    "snapshot_after", {"type": "string", "maxLength": 0},
                    "This server issues none: a snapshot is one response",
                ),
            ],
        )},
        "/api/sync/push": operation(
            "post", "push", "sync", "Execute the queued changes of a client, each by itself",
            {200: response(
                "The outcome of each change", pushed, headers=("Idempotency-Replayed",),
            )},
            raises=(*WRITE_ERRORS, errors.IdempotencyKeyReused, errors.RateLimited),
            body=body_schema(PushBody),
            parameters=[shared("IdempotencyKey")],
        ),
        "/api/sync/ws": operation(
            "get", "openSocket", "sync",
            "The WebSocket of the ws port, for proxies with a single port: send an upgrade",
            {}, raises=(errors.BadUpgrade, errors.RoleMissing, errors.Unavailable),
        ),
    }


def _pull_scope(pulled: Schema) -> dict[str, Any]:
    """Return the operation of a pull whose scope has filters."""
    return operation(
        "post", "pullScope", "sync",
        "The changes after a cursor, of some entities and of the rows that meet a filter",
        {200: response("Changes of the scope that the caller may see", pulled)},
        raises=(
            *STORE_ERRORS, errors.ResyncRequired, errors.InvalidQuery, errors.InvalidData,
            errors.InvalidColumn, errors.InvalidValue, errors.LimitExceeded,
        ),
        body=body_schema(PullBody),
    )
