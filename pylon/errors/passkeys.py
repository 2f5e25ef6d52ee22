"""Errors of passkeys (WebAuthn).

Their texts say nothing of accounts: a stranger learns no more of a passkey than that it does not
sign them in. Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class WebauthnNotConfigured(PylonError):
    """The server does not know the pages that may use passkeys.

    Remedy: an operator sets PYLON_WEBAUTHN_ORIGIN to the origins of those pages, for example
    https://app.example.com.
    """

    code = "WEBAUTHN_NOT_CONFIGURED"
    status = 501


class PasskeyRegisterFailed(PylonError):
    """A new passkey was not accepted: its challenge is unknown, used, older than five minutes or of
    another session, it comes from a page or domain that is not allowed, the user was not verified,
    or the passkey is registered already.

    Remedy: begin again with POST /api/auth/passkey/register/begin, on a page of
    PYLON_WEBAUTHN_ORIGIN.
    """

    code = "PASSKEY_REGISTER_FAILED"
    status = 400


class PasskeyVerifyFailed(PylonError):
    """A passkey does not sign in: it is unknown here, its signature or challenge is not valid, the
    challenge was used or is older than five minutes, it comes from a page or domain that is not
    allowed, the user was not verified, or its counter went back.

    Remedy: begin again with POST /api/auth/passkey/login/begin, or sign in in another way.
    """

    code = "PASSKEY_VERIFY_FAILED"
    status = 401
