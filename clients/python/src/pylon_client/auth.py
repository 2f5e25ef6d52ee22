"""Signing in and out. Each sign-in gives the client's session its token. Called by both shells."""

from __future__ import annotations

from typing import Any

import msgspec

from pylon_client.effects import Answer, Steps
from pylon_client.errors import APIError
from pylon_client.requests import Core, decode_object, refresh, send_json


class SignedIn(msgspec.Struct, frozen=True):
    """A session. `expires_at` is Unix time in seconds; None: the server did not say."""

    token: str
    user_id: str
    expires_at: float | None = None
    guest: bool = False


class Caller(msgspec.Struct, frozen=True):
    """The identity that the server sees in this client. Without a session `user_id` is None."""

    user_id: str | None = None
    tenant_id: str | None = None
    is_admin: bool = False
    is_guest: bool = False
    roles: list[str] = []


def guest(core: Core) -> Steps[SignedIn]:
    """Begin a session of a new guest."""
    return _sign_in(core, "/api/auth/guest", {})


def password(core: Core, email: str, password: str, totp: str | None) -> Steps[SignedIn]:
    """Sign in. Raises: AuthenticationError: with code TOTP_REQUIRED, give `totp`."""
    body = {"email": email, "password": password}
    return _sign_in(
        core, "/api/auth/password/login", body if totp is None else {**body, "totp": totp}
    )


def register(core: Core, email: str, password: str, fields: dict[str, Any]) -> Steps[SignedIn]:
    """Make an account and sign in. `fields`: further members, such as displayName."""
    body = {**fields, "email": email, "password": password}
    return _sign_in(core, "/api/auth/password/register", body)


def send_code(core: Core, email: str) -> Steps[None]:
    """Have a code sent by e-mail."""
    yield from send_json(
        core, "POST", "/api/auth/magic/send", {"email": email}, is_repeatable=False
    )


def code(core: Core, email: str, code: str) -> Steps[SignedIn]:
    """Sign in with a code of an e-mail."""
    return _sign_in(core, "/api/auth/magic/verify", {"email": email, "code": code})


def renew(core: Core) -> Steps[SignedIn]:
    """Take a new token for the session. Long before its end this happens by itself."""
    body = yield from refresh(core)
    return msgspec.convert(body, SignedIn)


def me(core: Core) -> Steps[Caller]:
    """Return who the server takes this client for."""
    answer = yield from send_json(core, "GET", "/api/auth/me")
    return msgspec.convert(decode_object(answer), Caller)


def sign_out(core: Core) -> Steps[None]:
    """End the session on the server, and forget its token."""
    yield from send_json(core, "DELETE", "/api/auth/session")
    core.session.set(None)


def _sign_in(core: Core, path: str, body: dict[str, Any]) -> Steps[SignedIn]:
    answer: Answer = yield from send_json(core, "POST", path, body, is_repeatable=False)
    decoded = decode_object(answer)
    try:
        found = msgspec.convert(decoded, SignedIn)
    except msgspec.ValidationError as ex:
        # For example 202: the address has to be confirmed first.
        error = APIError(f"the server began no session: {decoded}")
        error.body = decoded
        raise error from ex
    core.session.set(found.token, found.expires_at)
    return found
