"""Answers of the audit log, and of the end and the export of accounts (spec/identity.md §1.10).

Called by `pylon.api.identity.routes` and the flows of the identity process.
"""

from __future__ import annotations

from typing import Any

import msgspec


class AuditEntry(msgspec.Struct):
    """A record of what happened to an account. `created_at`: Unix seconds."""

    id: str
    created_at: int
    action: str
    user_id: str | None
    actor_id: str | None
    tenant_id: str | None
    ip: str | None
    user_agent: str | None
    success: bool
    reason: str | None
    metadata: dict[str, Any] | None


class AccountDeleted(msgspec.Struct):
    """An account has ended. `deleted`: whether it had a row."""

    deleted: bool
    revoked_sessions: int
    revoked_api_keys: int
    unlinked_accounts: int


class AccountExport(msgspec.Struct):
    """All that is kept of an account, without secrets. `rows`: those that refer to the user
    and that the user may read, by "Entity.field"; not all where `is_complete` is false."""

    user: dict[str, Any] | None
    identities: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    api_keys: list[dict[str, Any]]
    passkeys: list[dict[str, Any]]
    audit: list[AuditEntry]
    rows: dict[str, list[dict[str, Any]]]
    is_complete: bool
