"""The export of an account: ``GET /api/auth/account/export``, and that of an administrator
(identity.md §1.10).

It has what the server keeps of the caller: the row, identities, sessions, API keys, passkeys, audit
records, and the rows whose fields refer to the caller. Of these it has the rows that the caller may
read, so a row about somebody that is hidden from them stays hidden. No secret is in it.

Bounds: `limits.ACCOUNT_EXPORT_ROWS` rows of a field, and `limits.ACCOUNT_EXPORT_BYTES` of all.
Called by `workers.identity`.
"""

from __future__ import annotations

from operator import methodcaller
from typing import Any

import msgspec
import orjson

from pylon import limits
from pylon.api.identity.account_bodies import AccountExport, AuditEntry
from pylon.auth.audit import audit_json, audit_step
from pylon.auth_context import AuthContext
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.manifest.owned_fields import owned_fields
from pylon.query.conditions import and_, equal
from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from pylon.storage.auth_ops import Condition
from workers.identity.flows.account import require_account
from workers.identity.identity import Call, Identity

_IDENTITIES = ("kind", "subject", "verified_at", "created_at")
_SESSIONS = (
    "created_at", "expires_at", "device", "tenant_id", "methods", "last_seen_at", "token_hint",
)
_PASSKEYS = (
    "credential_id", "name", "created_at", "last_used_at", "sign_count", "transports", "aaguid",
    "backed_up",
)
_API_KEYS = ("id", "name", "prefix", "scopes", "created_at", "expires_at", "last_used_at")


def export_account(identity: Identity, call: Call) -> IdentityAnswer:
    """Return all that the server keeps of the caller."""
    user_id = call.facts.auth.user_id
    assert user_id is not None, "the route needs a session"
    return _export(identity, call, user_id)


def export_account_of(identity: Identity, call: Call) -> IdentityAnswer:
    """Return all that the server keeps of the user of the path, for an administrator. Their rows
    are those that an administrator may read.

    Raises:
        NotFound
    """
    require_account(identity, call.params["user_id"])
    return _export(identity, call, call.params["user_id"])


def _export(identity: Identity, call: Call, user_id: str) -> IdentityAnswer:
    facts = call.facts
    audit, has_all_records = _records(identity, "audit", user_id)
    rows, has_all_rows = _rows(identity, user_id, facts.auth)
    identity.writer.submit(audit_step(
        "account_export", identity.app.clock, identity.app.random, user_id=user_id,
        actor_id=facts.auth.user_id, ip=facts.address, user_agent=facts.device,
    ))
    return json_answer(AccountExport(
        _user(identity, user_id),
        _parts(identity, "identities", user_id, _IDENTITIES),
        _parts(identity, "sessions", user_id, _SESSIONS),
        _parts(identity, "api_keys", user_id, _API_KEYS),
        _parts(identity, "passkeys", user_id, _PASSKEYS),
        msgspec.convert([audit_json(record) for record in audit], list[AuditEntry]),
        rows, has_all_records and has_all_rows,
    ))


def _user(identity: Identity, user_id: str) -> dict[str, Any] | None:
    """Return the row of the user without its hidden fields, which the store leaves out."""
    manifest = identity.app.manifest
    name = manifest.auth.user_entity
    if name not in manifest.by_name:
        return None
    row = identity.store.point(lambda reader: reader.get(name, user_id))
    found: dict[str, Any] | None = None if row is None else orjson.loads(row)
    return found


def _records(
    identity: Identity, table: str, user_id: str
) -> tuple[list[dict[str, Any]], bool]:
    """Return the records of a user, the newest first, and whether these are all."""
    most = limits.ACCOUNT_EXPORT_ROWS
    where = [Condition("user_id", "=", user_id)]
    records: list[dict[str, Any]] = [*identity.store.scan(
        lambda reader: reader.records(table, where, ("-created_at",), most + 1)
    )]
    return records[:most], len(records) <= most


def _parts(
    identity: Identity, table: str, user_id: str, columns: tuple[str, ...]
) -> list[dict[str, Any]]:
    records, _ = _records(identity, table, user_id)
    return [{column: record[column] for column in columns} for record in records]


def _rows(
    identity: Identity, user_id: str, auth: AuthContext
) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    """Return the rows that refer to a user and that the caller may read, by "Entity.field", and
    whether these are all."""
    bytes_left = limits.ACCOUNT_EXPORT_BYTES
    found: dict[str, list[dict[str, Any]]] = {}
    is_complete = True
    for field in owned_fields(identity.app.manifest):
        name = field.entity.name
        allowed = TRUE if auth.is_admin else (
            identity.app.rules.for_entity(name).readable_by(auth)
        )
        where = and_(equal(field.name, user_id), allowed)
        query = Query(where, limits.ACCOUNT_EXPORT_ROWS + 1)
        raws, has_more = identity.store.scan(
            methodcaller("rows_within", name, query, max(1, bytes_left))
        )
        is_complete = is_complete and not has_more and len(raws) <= limits.ACCOUNT_EXPORT_ROWS
        raws = raws[: limits.ACCOUNT_EXPORT_ROWS]
        bytes_left -= sum(map(len, raws))
        found[f"{name}.{field.name}"] = [orjson.loads(raw) for raw in raws]
    return found, is_complete
