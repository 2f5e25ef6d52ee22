"""Errors of sign-in by password.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class MissingPassword(PylonError):
    """The body lacks a password.

    Remedy: send the member that the message names.
    """

    code = "MISSING_PASSWORD"
    status = 400


class InvalidCredentials(PylonError):
    """The address is unknown, it has no password, or the password is another one. The answer is the
    same for all three, and takes the same time.

    Remedy: check both, or sign in by a code or link of a mail; a forgotten password can be reset.
    """

    code = "INVALID_CREDENTIALS"
    status = 401


class WrongPassword(PylonError):
    """The current password of a change is not that of the account.

    Remedy: type the present password; a forgotten one can be reset.
    """

    code = "WRONG_PASSWORD"
    status = 401


class NoPasswordSet(PylonError):
    """The account has no password to change: it signs in by mail, a provider or a passkey.

    Remedy: set one with POST /api/auth/password/reset/request.
    """

    code = "NO_PASSWORD_SET"
    status = 400


class EmailNotVerified(PylonError):
    """The password is right, but the address of the account was never confirmed, and this server
    asks for that (PYLON_REQUIRE_EMAIL_VERIFICATION).

    Remedy: enter the code of the mail, or ask for a code to sign in with.
    """

    code = "EMAIL_NOT_VERIFIED"
    status = 403
