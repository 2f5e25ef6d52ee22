"""Sessions: resolves a token to a caller, and makes new sessions (spec/http.md §4.1, §4.2).

Invariants: the caller of an unknown, malformed or expired token is anonymous; such a token is no
error. The lifetime of a session is fixed when it is made. No session gives the rights of the
administrator: only an admin token does, and only in a header (or a WebSocket's subprotocol).

Called for each request and each socket handshake. `PutSession` and `DropSession` are operations of
the writer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pylon import metrics
from pylon.auth.tokens import (
    UnprivilegedToken,
    is_session_token,
    new_session_token,
    same_token,
    session_id_of,
)
from pylon.auth_context import (
    ADMIN,
    ANONYMOUS,
    AuthContext,
    Caller,
)
from pylon.clock import NS_PER_S, Clock, RandomSource, SystemClock
from pylon.config import Config
from pylon.storage.ops import PutSession
from pylon.storage.records import SessionRow

ANONYMOUS_CALLER: Final = Caller(ANONYMOUS)
_ADMIN_CALLER: Final = Caller(ADMIN)
_SYSTEM_CLOCK: Final = SystemClock()
_ATTEMPTS: Final = {
    result: metrics.AUTH_ATTEMPTS.labels(result=result)
    for result in ("admin", "session", "expired", "unknown")
}

SessionLookup = Callable[[str], SessionRow | None]


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to store, and its token, which only its owner receives."""

    token: str
    put: PutSession


def resolve(
    token: str | None, config: Config, lookup: SessionLookup, clock: Clock = _SYSTEM_CLOCK
) -> Caller:
    """Return the caller of a token.

    Args:
        token: the token of the request, or None.
        lookup: returns the stored session of a session id (the token's hash), or None.

    Raises:
        PylonError: of `lookup`. A caller that cannot be checked is not anonymous.
    """
    if not token:
        return ANONYMOUS_CALLER
    if not isinstance(token, UnprivilegedToken) and is_admin_token(token, config):
        _ATTEMPTS["admin"].inc()
        return _ADMIN_CALLER
    session = lookup(session_id_of(token)) if is_session_token(token) else None
    if session is None:
        _ATTEMPTS["unknown"].inc()
        return ANONYMOUS_CALLER
    if session.expires_at_s and session.expires_at_s * NS_PER_S <= clock.wall_ns():
        _ATTEMPTS["expired"].inc()
        return ANONYMOUS_CALLER
    _ATTEMPTS["session"].inc()
    auth = AuthContext(
        user_id=session.user_id, is_guest=session.is_guest, tenant_id=session.tenant_id
    )
    return Caller(auth, session.session_id)


def is_admin_token(token: str, config: Config) -> bool:
    """Whether a token of a header is the admin token, or the one before (a rotation)."""
    is_present = same_token(token, config.admin_token)
    return same_token(token, config.admin_token_previous) or is_present


def count_again() -> None:
    """Count a caller that `SessionCache` has found without `resolve`."""
    _ATTEMPTS["session"].inc()


def new_session(
    user_id: str,
    *,
    is_guest: bool,
    device: str,
    tenant_id: str | None,
    expires_in_s: int,
    clock: Clock,
    random: RandomSource,
) -> NewSession:
    """Return a new session for `user_id`. Store it before the client receives the token.

    Args:
        expires_in_s: lifetime from now in seconds; 0 means no end.
    """
    token = new_session_token(random)
    now_s = clock.wall_ns() // NS_PER_S
    put = PutSession(
        session_id=session_id_of(token),
        user_id=user_id,
        is_guest=is_guest,
        created_at_s=now_s,
        expires_at_s=now_s + expires_in_s if expires_in_s else 0,
        device=device,
        tenant_id=tenant_id,
    )
    return NewSession(token, put)
