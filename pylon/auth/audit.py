"""Audit: the record of an event of sign-in: what happened, who did it, from where, and whether it
worked.

`audit_step` makes the step that stores a record. A caller commits it in the `Transact` that has the
effect, so the table has an event exactly if the effect was committed. A refusal has no effect; its
record is submitted alone. Records stay for PYLON_AUDIT_RETAIN_DAYS, also those of an account that
was deleted.

Invariants: a record names no secret. A text of a client is cut, and on one line. Ids sort by time.
Called by the resources of sessions, the flows of the identity workers, and `pylonctl`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.ids import make_uuid
from pylon.storage.auth_ops import PutRecord
from pylon.storage.auth_tables import Value

TEXT_CHARS: Final = 256  # of an address, a client and a reason
METADATA_BYTES: Final = 2_048

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def audit_step(
    action: str,
    clock: Clock,
    random: RandomSource,
    *,
    user_id: str | None,
    actor_id: str | None = None,
    tenant_id: str | None = None,
    ip: str | None = None,
    user_agent: str | None = None,
    success: bool = True,
    reason: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> PutRecord:
    """Return the step that records an event.

    Args:
        action: a word of spec/http.md §3.11.9 or spec/identity.md §1.10, or one like them.
        user_id: the user that it is about.
        actor_id: who has done it, where that is somebody else (`__admin__` for the admin token).
            None: the user, or nobody known where it failed, since nobody proved to be the user.
        user_agent: the label of the client (`pylon.auth.devices`), not the header.
        reason: why it failed: a code, such as `INVALID_CREDENTIALS`.
        metadata: further facts; left out if they are larger than `METADATA_BYTES` as JSON.
    """
    encoded = None if metadata is None else orjson.dumps(metadata)
    if encoded is not None and len(encoded) > METADATA_BYTES:
        encoded = b'{"truncated":true}'
    return PutRecord("audit", {
        "id": f"aud_{make_uuid(clock, random).replace('-', '')}",
        "created_at": clock.wall_ns() // NS_PER_S,
        "action": action,
        "user_id": user_id,
        "actor_id": user_id if actor_id is None and success else actor_id,
        "tenant_id": tenant_id,
        "ip": _line(ip),
        "user_agent": _line(user_agent),
        "success": int(success),
        "reason": _line(reason),
        "metadata": None if encoded is None else encoded.decode(),
    })


def audit_json(record: Mapping[str, Value]) -> dict[str, Any]:
    """Return a stored record as the API sends it."""
    metadata = record["metadata"]
    return {
        "id": record["id"],
        "created_at": record["created_at"],
        "action": record["action"],
        "user_id": record["user_id"],
        "actor_id": record["actor_id"],
        "tenant_id": record["tenant_id"],
        "ip": record["ip"],
        "user_agent": record["user_agent"],
        "success": bool(record["success"]),
        "reason": record["reason"],
        "metadata": None if metadata is None else orjson.loads(str(metadata)),
    }


def _line(text: str | None) -> str | None:
    return None if text is None else _CONTROLS.sub(" ", text)[:TEXT_CHARS]
