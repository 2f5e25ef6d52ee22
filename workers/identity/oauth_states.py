"""States of sign-ins with a provider: what is kept between the start and the return of a browser.

A state is a record of `tokens` with the purpose `oauth_state`, by its hash. What it needs later
(nonce, PKCE verifier, pages to return to) is sealed. It is bound to the browser by the cookie
`<app>_oauth`, so nobody can make another browser finish a sign-in that they began (login CSRF).

Invariants: a state is used up before the provider is asked, once, by a conditional write, and only
by a request for its own provider from its own browser. It lives for `limits.OAUTH_STATE_S`. Called
by `workers.identity.flows.providers`.
"""

from __future__ import annotations

import hmac
import re
from typing import Final

import msgspec

from pylon import limits
from pylon.auth.cookies import OAUTH, SessionCookie, identity_cookie_name, session_cookie
from pylon.auth.keys import hash_token
from pylon.auth.transactions import carry_out
from pylon.errors import OauthInvalidState, RecordConflict, SealBroken
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from workers.identity.identity import Call, Identity
from workers.identity.providers.client import Start, new_start

_PURPOSE: Final = "oauth_state"
_COOKIE_BYTES: Final = 32
_COOKIE_VALUE: Final = re.compile(r"[0-9a-f]{64}")
_PATH: Final = "/api/auth/callback"
_INVALID: Final = "The state of this sign-in is unknown, used, too old, or of another browser"


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A sign-in that waits for its browser.

    `user_id`, `family`: of the session that links the provider's account; None: a sign-in.
    `challenge`: of the native app that gets a code in place of a session (PKCE, S256).
    """

    provider: str
    nonce: str
    verifier: str
    redirect_uri: str
    callback: str
    error_callback: str
    browser: str  # the hash of the cookie
    user_id: str | None = None
    family: str | None = None
    challenge: str | None = None

    def __repr__(self) -> str:
        return f"Pending(provider={self.provider!r})"

    def start(self, state: str) -> Start:
        """Return the secrets that the sign-in began with."""
        return Start(state, self.nonce, self.verifier)


def browser_cookie(identity: Identity, call: Call, *, is_cross_site: bool) -> tuple[str, str]:
    """Return the value of the cookie that binds a state, and the Set-Cookie line.

    A browser keeps its value, so that two tabs can sign in at once.

    Args:
        is_cross_site: the provider comes back with a form (Apple), with which browsers send only
            cookies that are marked for that.
    """
    value = call.facts.cookies.get(OAUTH, "")
    if _COOKIE_VALUE.fullmatch(value) is None:
        value = identity.app.random.token_hex(_COOKIE_BYTES)
    cookie = session_cookie(identity.app.config, identity.app.manifest)
    name = identity_cookie_name(OAUTH, cookie.name)
    path = "/" if name.startswith("__Host-") else _PATH
    return value, (
        f"{name}={value}; Path={path}; Max-Age={limits.OAUTH_STATE_S}; HttpOnly; "
        + ("Secure; SameSite=None" if is_cross_site else _lax(cookie))
    )


def put_state(identity: Identity, start: Start, pending: Pending) -> PutRecord:
    """Return the step that stores a state."""
    now_s, hashed = identity.now_s(), hash_token(start.state)
    return PutRecord("tokens", {
        "hash": hashed, "purpose": _PURPOSE, "user_id": pending.user_id,
        "data": identity.keys.seal("tokens", "data", hashed, msgspec.json.encode(pending)),
        "attempts": 0, "created_at": now_s, "expires_at": now_s + limits.OAUTH_STATE_S,
    })


def take_state(
    identity: Identity, call: Call, provider: str, state: str | None, *, takes_origin: bool
) -> Pending:
    """Use a state up, and return what was kept with it.

    Args:
        takes_origin: a page of a trusted origin may do without the cookie, since it sends the state
            that it was given itself.

    Raises:
        OauthInvalidState: see `_INVALID`. A request of another browser uses nothing up.
    """
    hashed = hash_token(state or "")
    is_open = [
        Condition("hash", "=", hashed), Condition("purpose", "=", _PURPOSE),
        Condition("used_at", "null"), Condition("expires_at", ">", identity.now_s()),
    ]
    found = identity.store.point(lambda reader: reader.records("tokens", is_open))
    if not found:
        raise _invalid()
    try:
        pending = msgspec.json.decode(
            identity.keys.open("tokens", "data", hashed, str(found[0]["data"])), type=Pending
        )
    except SealBroken:  # the secret key is another one by now
        raise _invalid() from None
    if pending.provider != provider or not _is_own_browser(
        call, pending, takes_origin=takes_origin
    ):
        raise _invalid()
    try:
        carry_out(identity.writer.submit, [
            SetRecords("tokens", is_open, {"used_at": identity.now_s()}, 1)
        ])
    except RecordConflict:  # another request was first
        raise _invalid() from None
    return pending


def begin(identity: Identity) -> Start:
    """Return the secrets of a new sign-in."""
    return new_start(identity.app.random)


def _is_own_browser(call: Call, pending: Pending, *, takes_origin: bool) -> bool:
    value = call.facts.cookies.get(OAUTH)
    if value is None:
        return takes_origin and call.facts.is_trusted_origin
    return hmac.compare_digest(hash_token(value), pending.browser)


def _lax(cookie: SessionCookie) -> str:
    return "Secure; SameSite=Lax" if "Secure" in cookie.flags else "SameSite=Lax"


def _invalid() -> OauthInvalidState:
    return OauthInvalidState(_INVALID, hint="Begin the sign-in again")
