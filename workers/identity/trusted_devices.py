"""Trusted devices: browsers that are not asked for a code for 30 days.

A browser gets a cookie with 256 random bits; the store has their SHA-256, the user and the label.

Invariants: a device is trusted for one user only. A change or reset of the password, and the end of
TOTP, drop the devices of the user (`drop_devices`). The cookie is set for pages of trusted origins
only. Called by `sign_in` and the flows.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Final

from pylon.auth.cookies import TRUSTED_DEVICE, identity_cookie_name, session_cookie
from pylon.auth.keys import hash_token
from pylon.auth.transactions import Step
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord
from pylon.storage.auth_tables import Value
from workers.identity.identity import Call, Identity

LIFE_S: Final = 30 * 86_400
_ID_BYTES: Final = 12
_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device to trust: the step that stores it, and its Set-Cookie value."""

    put: PutRecord
    cookie: str = field(repr=False)


def trust_device(identity: Identity, call: Call, user_id: str) -> NewDevice:
    """Return a device that is trusted from now on."""
    app, now_s = identity.app, identity.now_s()
    token = random_token(identity)
    return NewDevice(
        PutRecord("trusted_devices", {
            "hash": hash_token(token), "id": f"dev_{app.random.token_hex(_ID_BYTES)}",
            "user_id": user_id, "label": call.facts.device, "created_at": now_s,
            "expires_at": now_s + LIFE_S,
        }),
        _cookie(identity, token, LIFE_S),
    )


def trusted_check(identity: Identity, call: Call, user_id: str) -> CheckRecords | None:
    """Return the step that holds while the browser of the call is trusted by this user; None: it is
    not."""
    token = call.facts.cookies.get(TRUSTED_DEVICE)
    if token is None:
        return None
    check = CheckRecords("trusted_devices", [
        Condition("hash", "=", hash_token(token)), Condition("user_id", "=", user_id),
        Condition("expires_at", ">", identity.now_s()),
    ], 1)
    count = identity.store.point(
        lambda reader: reader.count_records("trusted_devices", check.where)
    )
    return check if count == 1 else None


def list_devices(identity: Identity, user_id: str) -> list[dict[str, Value]]:
    """Return the trusted devices of a user, the newest first."""
    where = [
        Condition("user_id", "=", user_id), Condition("expires_at", ">", identity.now_s())
    ]
    return identity.store.point(
        lambda reader: reader.records("trusted_devices", where, ("-created_at", "id"))
    )


def drop_devices(user_id: str, device_id: str | None = None) -> Step:
    """Return the step that drops one trusted device of a user, or all."""
    where = [Condition("user_id", "=", user_id)]
    if device_id is not None:
        where.append(Condition("id", "=", device_id))
    return DropRecords("trusted_devices", where)


def cleared_cookie(identity: Identity) -> str:
    """Return the Set-Cookie value that clears the cookie."""
    return _cookie(identity, "", 0)


def _cookie(identity: Identity, value: str, max_age_s: int) -> str:
    cookie = session_cookie(identity.app.config, identity.app.manifest)
    name = identity_cookie_name(TRUSTED_DEVICE, cookie.name)
    return f"{name}={value}; Path=/; {cookie.flags}; Max-Age={max_age_s}"


def random_token(identity: Identity) -> str:
    """Return 256 random bits as 43 characters."""
    raw = bytes.fromhex(identity.app.random.token_hex(_TOKEN_BYTES))
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
