"""Known devices: browsers in which a user has signed in before.

A sign-in from a page of a trusted origin sets a cookie with 256 random bits; the store has its hash
with the user, so one cookie marks a browser for several users. It signs nobody in. It keeps
strangers from locking an account: attempts from a known device count in a bucket of their own, so
the account's bucket, which anybody can empty, does not stop the owner (spec/identity.md §4).

Invariants: the cookie is set with a session only. The store is asked in the same way for accounts
that do not exist. Called by `sign_in` and the password flows.
"""

from __future__ import annotations

from typing import Final

from pylon.auth.cookies import DEVICE, identity_cookie_name, session_cookie
from pylon.auth.keys import hash_token
from pylon.auth.transactions import Step
from pylon.storage.auth_ops import Condition, PutRecord
from workers.identity.identity import Call, Identity

PURPOSE: Final = "device"  # of `tokens`
LIFE_S: Final = 365 * 86_400
_TOKEN_BYTES: Final = 32
_LONGEST_CHARS: Final = 128  # of a cookie that is looked up
_NOBODY: Final = "nobody"


def known_device(identity: Identity, call: Call, user_id: str | None) -> str | None:
    """Return the hash of the call's device if the user has signed in there, else None.

    Args:
        user_id: None for an account that does not exist: the store is asked all the same.
    """
    token = call.facts.cookies.get(DEVICE)
    if token is None or len(token) > _LONGEST_CHARS:
        return None
    hashed = _hash(token, user_id or _NOBODY)
    count = identity.store.point(lambda reader: reader.count_records("tokens", [
        Condition("hash", "=", hashed), Condition("purpose", "=", PURPOSE),
        Condition("expires_at", ">", identity.now_s()),
    ]))
    return hashed if count and user_id is not None else None


def remember_device(
    identity: Identity, call: Call, user_id: str
) -> tuple[list[Step], tuple[str, ...]]:
    """Return the steps that note the device of a sign-in, and the Set-Cookie values for it.

    Both are empty for clients that are no pages of a trusted origin.
    """
    if not call.facts.is_trusted_origin:
        return [], ()
    given = call.facts.cookies.get(DEVICE)
    token = given
    if token is None or len(token) > _LONGEST_CHARS:
        token = identity.app.random.token_hex(_TOKEN_BYTES)
    now_s = identity.now_s()
    put = PutRecord("tokens", {
        "hash": _hash(token, user_id), "purpose": PURPOSE, "user_id": user_id, "attempts": 0,
        "created_at": now_s, "expires_at": now_s + LIFE_S,
    }, replace=True)
    return [put], (_cookie(identity, token),)


def _hash(token: str, user_id: str) -> str:
    return hash_token(f"{user_id} {token}")


def _cookie(identity: Identity, token: str) -> str:
    session = session_cookie(identity.app.config, identity.app.manifest)
    name = identity_cookie_name(DEVICE, session.name)
    return f"{name}={token}; {session.attributes}; Max-Age={LIFE_S}"
