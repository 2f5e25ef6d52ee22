"""Known devices: browsers in which a user has signed in before.

A sign-in from a page of a trusted origin sets a cookie with 256 random bits; the store has its hash
with the user, so one cookie marks a browser for several users. It signs nobody in. It keeps
strangers from locking an account: attempts from a known device count in a bucket of their own, so
the account's bucket, which anybody can empty, does not stop the owner (spec/identity.md §4).

A sign-in from anywhere else sends the owner a notice (NEW_DEVICE), unless it is the first of the
account, or a code or link of a mail proved the mailbox that would get it. Clients without cookies
cannot be told apart, so theirs counts as new if the user has no other session of such a client.

Invariants: the cookie is set with a session only. The store is asked in the same way for accounts
that do not exist. Called by `sign_in` and the password flows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from pylon.auth.cookies import DEVICE, identity_cookie_name, session_cookie
from pylon.auth.keys import hash_token
from pylon.auth.transactions import Step
from pylon.storage.auth_ops import Condition, PutRecord
from workers.identity.identity import Call, Identity
from workers.identity.stored_addresses import stored_address

PURPOSE: Final = "device"  # of `tokens`
LIFE_S: Final = 365 * 86_400
_TOKEN_BYTES: Final = 32
_LONGEST_CHARS: Final = 128  # of a cookie that is looked up
_NOBODY: Final = "nobody"
_BY_MAIL: Final = frozenset({"magic_code", "magic_link", "password_reset"})  # first factors


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


def new_device_notice(
    identity: Identity, call: Call, user_id: str, method: str
) -> list[PutRecord]:
    """Return the step that tells a user of a sign-in from a device that is new, or none.

    Args:
        method: of the first factor.
    """
    if method in _BY_MAIL or not identity.mails.is_configured:
        return []
    if known_device(identity, call, user_id) is not None:
        return []
    of_user = Condition("user_id", "=", user_id)
    is_live = Condition("expires_at", ">", identity.now_s())
    sessions = identity.store.point(lambda reader: reader.records("sessions", [of_user]))
    devices = identity.store.point(lambda reader: reader.count_records(
        "tokens", [of_user, Condition("purpose", "=", PURPOSE), is_live]
    ))
    if not sessions and not devices:
        return []  # the first sign-in of the account
    if not call.facts.is_trusted_origin and any(
        session["device"] == call.facts.device for session in sessions
    ):
        return []
    address = stored_address(identity, user_id)
    if address is None:
        return []
    now = datetime.fromtimestamp(identity.now_s(), UTC)
    return identity.mails.notices(
        "NEW_DEVICE", address, device=call.facts.device or "an app or a script",
        time=now.strftime("%Y-%m-%d %H:%M UTC"),
    )


def _hash(token: str, user_id: str) -> str:
    return hash_token(f"{user_id} {token}")


def _cookie(identity: Identity, token: str) -> str:
    session = session_cookie(identity.app.config, identity.app.manifest)
    name = identity_cookie_name(DEVICE, session.name)
    return f"{name}={token}; {session.attributes}; Max-Age={LIFE_S}"
