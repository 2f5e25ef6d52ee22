"""Texts of errors at the return from a provider: what a redirect and the sign-in page say.

Invariant: they are fixed. So no text of a provider, and none that the author of a link has chosen,
gets onto a page. Called by the flows of providers and the sign-in page.
"""

from __future__ import annotations

from typing import Final

from pylon.errors import (
    AccessDenied,
    AccountLocked,
    AlreadyLinked,
    DisposableEmail,
    OauthEmailNotVerified,
    OauthProviderBroken,
    OauthTokenExchangeFailed,
    RateLimited,
    TotpRequired,
    Unavailable,
)

_TEXTS: Final[dict[str, str]] = {
    AccessDenied.code: "The sign-in was cancelled",
    AccountLocked.code: "This account is locked",
    AlreadyLinked.code: "This sign-in is linked to an account already",
    DisposableEmail.code: "Accounts here need an address that you keep",
    OauthEmailNotVerified.code: "The provider has not verified this e-mail address",
    OauthProviderBroken.code: "The provider cannot be used now",
    OauthTokenExchangeFailed.code: "The provider did not confirm the sign-in",
    RateLimited.code: "Too many attempts: wait, and try again",
    TotpRequired.code: "Enter the code of your authenticator app",
    Unavailable.code: "The server is busy: try again",
}
_OTHER_TEXT: Final = "The sign-in failed"


def provider_error_text(code: str) -> str:
    """Return the text of an error code; a general one for codes that have none."""
    return _TEXTS.get(code, _OTHER_TEXT)
