"""Errors of sign-in by a provider (OAuth 2, OpenID Connect).

Their texts are fixed: no text of a provider, and nothing about the network of the server, reaches a
client or a redirect. Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class ProviderNotFound(PylonError):
    """No sign-in provider of this name is configured.

    Remedy: set PYLON_OAUTH_<NAME>_CLIENT_ID and _CLIENT_SECRET, or add the provider to
    PYLON_OAUTH_FILE; GET /api/auth/providers lists those that are configured.
    """

    code = "PROVIDER_NOT_FOUND"
    status = 404


class MissingCallback(PylonError):
    """A sign-in by a provider names no page to return to.

    Remedy: add callback=<URL>: a path of this server, or a URL of a trusted origin.
    """

    code = "MISSING_CALLBACK"
    status = 400


class UntrustedRedirect(PylonError):
    """A page to return to is neither a path of this server nor of a trusted origin.

    Remedy: send a path that begins with one slash, or add the origin of the URL to
    PYLON_CORS_ORIGIN, PYLON_CSRF_ORIGINS or auth.trusted_origins in the manifest.
    """

    code = "UNTRUSTED_REDIRECT"
    status = 403


class OauthProviderBroken(PylonError):
    """The provider's description of itself (discovery) cannot be read, or is not the one of the
    configured issuer. The server's log says why.

    Remedy: try again; an operator compares the issuer of PYLON_OAUTH_<NAME>_ISSUER with the member
    `issuer` of <issuer>/.well-known/openid-configuration.
    """

    code = "OAUTH_PROVIDER_BROKEN"
    status = 500


class OauthInvalidState(PylonError):
    """The state of a sign-in is unknown, used, older than 10 minutes, of another provider, or of
    another browser.

    Remedy: begin the sign-in again, in the browser that is to be signed in.
    """

    code = "OAUTH_INVALID_STATE"
    status = 403


class OauthTokenExchangeFailed(PylonError):
    """The provider did not confirm the sign-in: it refused the code, did not answer, or its answer
    failed a check. The server's log says which.

    Remedy: begin the sign-in again; an operator checks client id, secret and redirect URI.
    """

    code = "OAUTH_TOKEN_EXCHANGE_FAILED"
    status = 502


class AccessDenied(PylonError):
    """The provider reports that the sign-in was cancelled or refused.

    Remedy: begin the sign-in again and agree to it.
    """

    code = "ACCESS_DENIED"
    status = 403


class OauthEmailNotVerified(PylonError):
    """The provider does not vouch for the e-mail address, and the address belongs to an account.

    Remedy: sign in to that account in another way, then link the provider; or verify the address
    with the provider.
    """

    code = "OAUTH_EMAIL_NOT_VERIFIED"
    status = 403


class AlreadyLinked(PylonError):
    """The account of the provider belongs to another user, or the user has another account of the
    provider.

    Remedy: sign in with it, or unlink it first (DELETE /api/auth/accounts/<provider>).
    """

    code = "ALREADY_LINKED"
    status = 409


class LastSignInMethod(PylonError):
    """The account of a provider, or the passkey, is the last way in which the user can sign in.

    Remedy: set a password, verify an e-mail address, link a provider or add a passkey first.
    """

    code = "LAST_SIGN_IN_METHOD"
    status = 409


class AccountNotFound(PylonError):
    """The user has no account of this provider linked.

    Remedy: link it: GET /api/auth/login/<provider>?link=1; GET /api/auth/accounts lists them.
    """

    code = "ACCOUNT_NOT_FOUND"
    status = 404


class MissingProvider(PylonError):
    """The request names no provider.

    Remedy: name one of GET /api/auth/providers.
    """

    code = "MISSING_PROVIDER"
    status = 400


class ProviderNotConfigured(PylonError):
    """The provider is not configured, or its tokens are not stored.

    Remedy: configure it, and set PYLON_OAUTH_<NAME>_STORE_TOKENS=true.
    """

    code = "PROVIDER_NOT_CONFIGURED"
    status = 501


class NoRefreshToken(PylonError):
    """The provider gave no refresh token for this user.

    Remedy: sign in with the provider again; some give one only if the scopes ask for it
    (PYLON_OAUTH_<NAME>_SCOPES, often offline_access).
    """

    code = "NO_REFRESH_TOKEN"
    status = 400


class RefreshFailed(PylonError):
    """The provider did not exchange the stored refresh token for a new access token.

    Remedy: try again; sign in with the provider again if the error persists.
    """

    code = "REFRESH_FAILED"
    status = 502


class InvalidIdToken(PylonError):
    """The ID token of a native app failed a check: its signature, issuer, audience, time or nonce.

    Remedy: send the ID token of a new sign-in, for a client id of PYLON_<NAME>_NATIVE_CLIENT_IDS.
    """

    code = "INVALID_ID_TOKEN"
    status = 401


class ProviderKeysUnavailable(PylonError):
    """The keys of a sign-in provider cannot be fetched, so its ID tokens cannot be checked.

    Remedy: try again later.
    """

    code = "PROVIDER_KEYS_UNAVAILABLE"
    status = 502


class UserCreateFailed(PylonError):
    """A new user cannot be made: the manifest has no user entity, or one with a field that sign-in
    does not fill.

    Remedy: declare the entity of auth.user.entity; make its fields optional or give them defaults,
    except email, displayName, emailVerified, avatarUrl and createdAt.
    """

    code = "USER_CREATE_FAILED"
    status = 500
