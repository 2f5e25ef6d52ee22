"""The auth context: the facts about a caller that policies use (spec/http.md §3.11.1, §4).

Two callers with equal contexts may read the same rows, so the hub groups its connections by
context. The session is part of `Caller` and not of the context. What an API key may do is part of
it: `pylon.key_scopes` checks it before policies judge. Called by `pylon.auth`, policies and writes.
"""

from __future__ import annotations

from typing import Any

import msgspec

ADMIN_USER_ID = "__admin__"


class AuthContext(msgspec.Struct, frozen=True, array_like=True):
    """The facts about a caller that a policy may use.

    `api_key_scopes` are the scopes of its API key or JWT; None: all, or it has neither. A
    `readonly` caller changes nothing. `needs_totp`: the caller's role in the organisation is left
    out until the user has an authenticator app.
    """

    user_id: str | None = None
    is_admin: bool = False
    is_guest: bool = False
    tenant_id: str | None = None
    roles: tuple[str, ...] = ()
    api_key_id: str | None = None
    api_key_scopes: str | None = None
    readonly: bool = False
    needs_totp: bool = False

    @property
    def identity(self) -> str:
        """Return the scope of the caller's op_ids; all callers without a user share one."""
        return self.user_id or ""

    def to_json(self) -> dict[str, Any]:
        """Return the body of ``GET /api/auth/me``."""
        out: dict[str, Any] = {
            "avatar_url": None,
            "is_admin": self.is_admin,
            "roles": list(self.roles),
            "user_id": self.user_id,
        }
        if self.is_guest:
            out["is_guest"] = True
        if self.tenant_id is not None:
            out["tenant_id"] = self.tenant_id
        if self.api_key_id is not None:
            out["api_key_id"] = self.api_key_id
        if self.api_key_id is not None or self.api_key_scopes is not None:
            out["api_key_scopes"] = self.api_key_scopes
        if self.readonly:
            out["readonly"] = True
        if self.needs_totp:
            out["totp_setup_required"] = True
        return out


class Caller(msgspec.Struct, frozen=True):
    """The caller of a request: its context, and of its session, if it has one, the id, the family,
    and when the user last proved who they are.

    The sessions of a family have the same sockets and cursors, since they differ in the token only.
    """

    auth: AuthContext
    session_id: str | None = None
    family: str | None = None
    auth_time_s: int = 0  # Unix time


ANONYMOUS = AuthContext()
ADMIN = AuthContext(user_id=ADMIN_USER_ID, is_admin=True, roles=("admin",))
