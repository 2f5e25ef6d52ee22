"""Sessions: resolves a token to a caller (spec/http.md §4.1, §4.2; spec/identity.md §1.1).

Invariants: the caller of an unknown, malformed, expired or replaced token is anonymous; such a
token is no error. No session gives the rights of the administrator: only an admin token does, and
only in a header (or a WebSocket's subprotocol).

Called for each request and each socket handshake. `pylon.auth.issue` makes sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pylon import metrics
from pylon.auth.jwts import is_of_jwt
from pylon.auth.session_life import is_over
from pylon.auth.tokens import UnprivilegedToken, is_session_token, same_token, session_id_of
from pylon.auth_context import (
    ADMIN,
    ANONYMOUS,
    AuthContext,
    Caller,
)
from pylon.clock import NS_PER_S, Clock, SystemClock
from pylon.config import Config
from pylon.storage.records import SessionRow

ANONYMOUS_CALLER: Final = Caller(ANONYMOUS)
_ADMIN_CALLER: Final = Caller(ADMIN)
_SYSTEM_CLOCK: Final = SystemClock()
_ATTEMPTS: Final = {
    result: metrics.AUTH_ATTEMPTS.labels(result=result)
    for result in ("admin", "session", "expired", "unknown", "api_key", "jwt")
}

SessionLookup = Callable[[str], SessionRow | None]


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
    if is_over(session, clock.wall_ns() / NS_PER_S):
        _ATTEMPTS["expired"].inc()
        return ANONYMOUS_CALLER
    _ATTEMPTS["session"].inc()
    auth = AuthContext(
        user_id=session.user_id, is_guest=session.is_guest, tenant_id=session.tenant_id
    )
    return Caller(auth, session.session_id, session.family, session.auth_time_s)


def is_admin_token(token: str, config: Config) -> bool:
    """Whether a token of a header is the admin token, or the one before (a rotation)."""
    is_present = same_token(token, config.admin_token)
    return same_token(token, config.admin_token_previous) or is_present


def count_again(caller: Caller) -> None:
    """Count a caller that `SessionCache` has found without `resolve`."""
    if caller.session_id is not None:
        _ATTEMPTS["session"].inc()
    else:
        _ATTEMPTS["jwt" if is_of_jwt(caller.family or "") else "api_key"].inc()


def count_jwt() -> None:
    """Count a caller with a JWT, which `resolve` never sees."""
    _ATTEMPTS["jwt"].inc()


def count_key() -> None:
    """Count a caller with an API key, which `resolve` never sees."""
    _ATTEMPTS["api_key"].inc()
