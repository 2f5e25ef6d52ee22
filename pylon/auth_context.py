"""Who is asking: the auth context that policies see (spec/http.md §3.11.1, §4).

Two requests with equal contexts may see the same rows, so the hub keeps its receivers by
context. The session that a context came from is kept beside it, not in it.
"""

from __future__ import annotations

from typing import Any

import msgspec

ADMIN_USER_ID = "__admin__"


class AuthContext(msgspec.Struct, frozen=True, array_like=True):
    """What a policy may know of the caller."""

    user_id: str | None = None
    is_admin: bool = False
    is_guest: bool = False
    tenant_id: str | None = None
    roles: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Scopes op_ids: the user, the admin, or everyone without a name."""
        return self.user_id or ""

    def to_json(self) -> dict[str, Any]:
        """The answer of ``GET /api/auth/me``."""
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
        return out


class Caller(msgspec.Struct, frozen=True):
    """A resolved request: its context, and the hash of its session token if it has one."""

    auth: AuthContext
    session_id: str | None = None


ANONYMOUS = AuthContext()
ADMIN = AuthContext(user_id=ADMIN_USER_ID, is_admin=True, roles=("admin",))
