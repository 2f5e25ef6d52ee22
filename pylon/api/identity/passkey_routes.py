"""The routes of passkeys. See `pylon.api.identity.routes`."""

from __future__ import annotations

from typing import Final

from pylon import errors
from pylon.api.identity import passkey_bodies as bodies
from pylon.api.identity.route import IdentityRoute
from pylon.api.identity.totp_bodies import SessionAnswer

PASSKEY_ROUTES: Final[tuple[IdentityRoute, ...]] = (
    IdentityRoute(
        "POST", "/api/auth/passkey/register/begin", "passkey_register_begin", "fresh",
        "Make a challenge for a new passkey of the caller", {200: bodies.RegisterOptions},
        bodies.BEGIN,
        (errors.WebauthnNotConfigured, errors.LimitExceeded, errors.ReauthRequired,
         errors.RateLimited),
    ),
    IdentityRoute(
        "POST", "/api/auth/passkey/register/finish", "passkey_register_finish", "session",
        "Register a passkey of the caller", {200: bodies.RegisteredAnswer}, bodies.REGISTER,
        (errors.WebauthnNotConfigured, errors.MissingField, errors.InvalidName,
         errors.PasskeyRegisterFailed, errors.LimitExceeded, errors.RateLimited,
         errors.Unavailable),
    ),
    IdentityRoute(
        "POST", "/api/auth/passkey/login/begin", "passkey_login_begin", "anyone",
        "Make a challenge for a sign-in by passkey", {200: bodies.SignInOptions}, bodies.BEGIN,
        (errors.WebauthnNotConfigured, errors.RateLimited),
    ),
    IdentityRoute(
        "POST", "/api/auth/passkey/login/finish", "passkey_login_finish", "anyone",
        "Sign in by passkey", {200: SessionAnswer}, bodies.SIGN_IN,
        (errors.WebauthnNotConfigured, errors.MissingField, errors.PasskeyVerifyFailed,
         errors.AccountLocked, errors.RateLimited),
    ),
    IdentityRoute(
        "GET", "/api/auth/passkey/keys", "passkeys", "session", "The caller's passkeys",
        {200: list[bodies.PasskeyAnswer]},
    ),
    IdentityRoute(
        "PATCH", "/api/auth/passkey/keys/{key_id}", "passkey_rename", "session",
        "Give a passkey of the caller another name", {200: bodies.RenamedAnswer}, bodies.RENAME,
        (errors.MissingName, errors.InvalidName, errors.NotFound),
    ),
    IdentityRoute(
        "DELETE", "/api/auth/passkey/keys/{key_id}", "passkey_delete", "fresh",
        "Remove a passkey of the caller", {200: bodies.DeletedAnswer},
        raises=(errors.NotFound, errors.LastSignInMethod, errors.ReauthRequired,
                errors.Unavailable),
    ),
)
