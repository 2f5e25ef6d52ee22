"""Roles in organisations: which role a user has in the organisation of a session.

A session has the id of the organisation that its user works in (`tenant_id`), and not the role: the
role is read with the caller. So a role that changes counts within a second, and a user who is no
member any more has no tenant. A role of `auth.totp.required_roles` counts only for users with an
authenticator app. `workers.hub.sessions` closes the sockets of all whose tenant or role changes.

Called by `session_cache`, by the watch of sockets, and by the flows of organisations.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from pylon.auth_context import Caller
from pylon.manifest.model import Manifest
from pylon.manifest.org_entities import org_entities
from pylon.query.conditions import and_, equal
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition
from pylon.storage.interface import Reader


def find_member(
    reader: Reader, manifest: Manifest, org_id: str, user_id: str
) -> dict[str, Any] | None:
    """Return the row of a member of an organisation; None if the user is none, or if the app has
    no organisations."""
    entities = org_entities(manifest)
    if entities is None:
        return None
    where = and_(equal("orgId", org_id), equal("userId", user_id))
    found = reader.rows(entities.member.name, Query(where, limit=1))
    row: dict[str, Any] | None = orjson.loads(found[0]) if found else None
    return row


def in_its_org(reader: Reader, manifest: Manifest, caller: Caller) -> Caller:
    """Return a caller with the role in its tenant, or without the tenant if it is no member."""
    auth = caller.auth
    if auth.tenant_id is None or auth.user_id is None:
        return caller
    member = find_member(reader, manifest, auth.tenant_id, auth.user_id)
    if member is None:
        auth = msgspec.structs.replace(auth, tenant_id=None, roles=(), needs_totp=False)
    else:
        role = str(member["role"])
        is_held = holds_role(reader, manifest, str(member["userId"]), role)
        auth = msgspec.structs.replace(
            auth, roles=(role,) if is_held else (), needs_totp=not is_held
        )
    return msgspec.structs.replace(caller, auth=auth)


def holds_role(reader: Reader, manifest: Manifest, user_id: str, role: str) -> bool:
    """Whether a member's role counts: it needs no authenticator app, or the user has one."""
    return role not in manifest.auth.totp_required_roles or (
        reader.count_records("totp", [Condition("user_id", "=", user_id)]) > 0
    )
