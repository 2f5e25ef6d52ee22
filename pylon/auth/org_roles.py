"""Roles in organisations: which role a user has in the organisation of a session.

A session has the id of the organisation that its user works in (`tenant_id`), and not the role: the
role is read with the caller. So a role that changes counts within a second, and a user who is no
member any more has no tenant. `workers.hub.sessions` closes the sockets of both.

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
        auth = msgspec.structs.replace(auth, tenant_id=None, roles=())
    else:
        auth = msgspec.structs.replace(auth, roles=(str(member["role"]),))
    return msgspec.structs.replace(caller, auth=auth)
