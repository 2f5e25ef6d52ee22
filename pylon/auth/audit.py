"""Audit: the record of an event of sign-in, written with its effect (spec/identity.md §1.10).

The step that this module makes belongs into the transaction that has the effect. So the table has
an event exactly if the effect was committed. A record names no secret.

Called by the resources of sessions, the flows of the identity workers, and `pylonctl`.
"""

from __future__ import annotations

from typing import Any

import orjson

from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.storage.auth_ops import PutRecord

_ID_BYTES = 12


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
    metadata: dict[str, Any] | None = None,
) -> PutRecord:
    """Return the step that records an event.

    Args:
        action: a word of the list in spec/http.md §3.11.9 or spec/identity.md §1.10.
        user_id: the user that it is about.
        actor_id: who has done it, where that is somebody else.
        user_agent: the label of the client (`pylon.auth.devices`), not the header.
    """
    return PutRecord("audit", {
        "id": f"aud_{random.token_hex(_ID_BYTES)}",
        "created_at": clock.wall_ns() // NS_PER_S,
        "action": action,
        "user_id": user_id,
        "actor_id": actor_id if actor_id is not None else user_id,
        "tenant_id": tenant_id,
        "ip": ip,
        "user_agent": user_agent,
        "success": int(success),
        "reason": reason,
        "metadata": None if metadata is None else orjson.dumps(metadata).decode(),
    })
