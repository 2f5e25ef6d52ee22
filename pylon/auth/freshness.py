"""Freshness: whether the user has proved lately who they are (spec/identity.md §1.1).

Changes that let a thief keep an account (another e-mail address, a new key for everything) need a
sign-in that is not older than `auth.reauth_s`. `POST /api/auth/reauth` renews it without a new
session. Called by the resources and the flows of such changes.
"""

from __future__ import annotations

from pylon.auth_context import Caller
from pylon.clock import NS_PER_S, Clock
from pylon.errors import ReauthRequired
from pylon.storage.interface import PointRead


def is_fresh(auth_time_s: int, reauth_s: int, clock: Clock) -> bool:
    """Return whether a proof of identity at `auth_time_s` (Unix time) still counts."""
    return clock.wall_ns() // NS_PER_S - auth_time_s <= reauth_s


def require_fresh(caller: Caller, reauth_s: int, clock: Clock, point: PointRead) -> None:
    """Raise unless the caller's session has a fresh proof of identity.

    A cached caller may lag behind `POST /api/auth/reauth`, so the store is asked before a refusal.

    Args:
        reauth_s: how long a proof counts (`AuthConfig.reauth_s`).
        point: reads the store.

    Raises:
        ReauthRequired: it is too old, or the caller has no session.
        StoreUnavailable, QueryTimeout: the store cannot be read now.
    """
    session_id = caller.session_id
    if session_id is not None:
        if is_fresh(caller.auth_time_s, reauth_s, clock):
            return
        session = point(lambda reader: reader.session(session_id))
        if session is not None and is_fresh(session.auth_time_s, reauth_s, clock):
            return
    raise ReauthRequired(
        f"This needs a sign-in that is not older than {reauth_s // 60} minutes",
        hint="Prove who you are with POST /api/auth/reauth, or sign in again",
    )
