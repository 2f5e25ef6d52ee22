"""JWTs: the caller of a token whose signature the identity process has checked (identity.md §1.8).

A JWT acts as a user without a look-up of a session: one that this server has minted, or one of the
foreign issuer of PYLON_JWT_JWKS_URL. It counts in the Authorization header only. Its rights are
those of its user, less what its scopes and `readonly` take away; it is never an administrator.

The sockets of a JWT have a family, as those of a session do. The family names what ends the token:
the time of its issue, its end, and its user (`jwt_family`).

Invariants: a token is dead at its `exp`; once its user is locked; once `tokens_valid_from` of its
user is later than its `iat` (all sessions revoked, password changed); and, if this server has
minted it, once the user has no row. Called by `pylon.auth.session_cache`, `workers.hub.sessions`
and the identity process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from pylon.auth_context import ADMIN_USER_ID, AuthContext, Caller
from pylon.config import Config
from pylon.errors import InvalidJwt
from pylon.manifest.model import Manifest
from pylon.storage.auth_ops import Condition
from pylon.storage.interface import Reader

TENANT: Final = "https://pylonsync.com/tenant"  # claims
ROLES: Final = "https://pylonsync.com/roles"
SCOPES: Final = "https://pylonsync.com/scopes"
READONLY: Final = "https://pylonsync.com/readonly"

_FAMILY: Final = "jwt_"
_GUEST: Final = "guest_"


class JwtClaims(msgspec.Struct, frozen=True, array_like=True):
    """The claims of a JWT, after all checks that need no store. Times are Unix seconds.

    `is_own`: this server has minted it, not the foreign issuer.
    """

    user_id: str
    issued_at_s: int
    ends_at_s: int
    is_own: bool
    tenant_id: str | None = None
    roles: tuple[str, ...] = ()
    scopes: str | None = None
    readonly: bool = False

    def __repr__(self) -> str:
        return f"JwtClaims(user_id={self.user_id!r})"


def takes_jwts(config: Config) -> bool:
    """Whether JWTs count on this server."""
    return (
        config.jwt_secret is not None or config.jwt_jwks_url is not None
        or config.jwt_issuers_file is not None
    )


def is_of_jwt(family: str) -> bool:
    """Whether a family is of a JWT, and not of a session or an API key."""
    return family.startswith(_FAMILY)


def may_be_subject(user_id: str) -> bool:
    """Whether a JWT may stand for a user of this id: not for the administrator, and no guest."""
    return user_id != ADMIN_USER_ID and not user_id.startswith(_GUEST)


def jwt_family(claims: JwtClaims) -> str:
    """Return the family of the sockets of a JWT."""
    kind = "own" if claims.is_own else "foreign"
    return f"{_FAMILY}{kind}.{claims.issued_at_s}.{claims.ends_at_s}.{claims.user_id}"


def caller_of_jwt(reader: Reader, manifest: Manifest, claims: JwtClaims, now_s: float) -> Caller:
    """Return the caller of a JWT.

    Args:
        now_s: Unix time.

    Raises:
        InvalidJwt: it is dead.
    """
    if claims.ends_at_s <= now_s or not _is_alive(
        reader, manifest, claims.user_id, claims.issued_at_s, is_own=claims.is_own
    ):
        raise invalid_jwt()
    return Caller(
        AuthContext(
            user_id=claims.user_id, tenant_id=claims.tenant_id, roles=claims.roles,
            api_key_scopes=claims.scopes, readonly=claims.readonly,
        ),
        family=jwt_family(claims),
    )


def jwt_ends(reader: Reader, manifest: Manifest, families: Iterable[str]) -> dict[str, int]:
    """Return when the JWTs of families end in Unix seconds, without the dead ones."""
    ends: dict[str, int] = {}
    for family in families:
        kind, issued_at, ends_at, user_id = family.removeprefix(_FAMILY).split(".", 3)
        if _is_alive(reader, manifest, user_id, int(issued_at), is_own=kind == "own"):
            ends[family] = int(ends_at)
    return ends


def invalid_jwt() -> InvalidJwt:
    """Return the error of every JWT that does not count, whatever the reason."""
    return InvalidJwt("Bearer token is malformed, expired, or revoked")


def _is_alive(
    reader: Reader, manifest: Manifest, user_id: str, issued_at_s: int, *, is_own: bool
) -> bool:
    users = reader.records("users", [Condition("user_id", "=", user_id)])
    if users:
        valid_from = users[0]["tokens_valid_from"]
        if users[0]["locked_at"] is not None or (
            isinstance(valid_from, int) and issued_at_s < valid_from
        ):
            return False
    entity = manifest.by_name.get(manifest.auth.user_entity)
    return not is_own or entity is None or reader.get(entity.name, user_id) is not None
