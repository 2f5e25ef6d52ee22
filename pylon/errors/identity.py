"""Errors about who asks: not known, not allowed, too many.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class AuthRequired(PylonError):
    """The route needs a session, and the request carries no token.

    Remedy: sign in and send Authorization: Bearer <token>.
    """

    code = "AUTH_REQUIRED"
    status = 401


class Unauthorized(PylonError):
    """The token is not one that this route takes.

    Remedy: send the token that the message names.
    """

    code = "UNAUTHORIZED"
    status = 401


class InvalidApiKey(PylonError):
    """The bearer token begins with `pk.`, and is no valid API key: unknown, revoked or expired.

    Remedy: send a session token or a valid key; without a token the caller is anonymous.
    """

    code = "INVALID_API_KEY"
    status = 401


class InvalidJwt(PylonError):
    """The bearer token has the form of a JWT, and is not valid here, or this server takes none.

    Remedy: send a session token; without a token the caller is anonymous.
    """

    code = "INVALID_JWT"
    status = 401


class JwtNotConfigured(PylonError):
    """The server has no secret to make JWTs with.

    Remedy: an operator sets PYLON_JWT_SECRET to 32 characters or more, for example of openssl rand
    -hex 32.
    """

    code = "JWT_NOT_CONFIGURED"
    status = 501


class SessionExpired(PylonError):
    """The token to refresh is unknown, has expired, was replaced, or has been signed out. Or a
    session ended in the middle of a long response.

    Remedy: sign in again.
    """

    code = "SESSION_EXPIRED"
    status = 401


class UpgradeFailed(PylonError):
    """There is no session of a guest that could become a user's.

    Remedy: send the token of a guest whose session lasts.
    """

    code = "UPGRADE_FAILED"
    status = 400


class ReauthRequired(PylonError):
    """The change needs a fresh proof of who the user is, and the last one is too old
    (`auth.reauth_s` of the manifest).

    Remedy: call POST /api/auth/reauth with the password or a code, or sign in again.
    """

    code = "REAUTH_REQUIRED"
    status = 403


class Forbidden(PylonError):
    """The route is for admins, and the caller is not one.

    Remedy: send PYLON_ADMIN_TOKEN as the bearer token, from a server and never from a browser.
    """

    code = "FORBIDDEN"
    status = 403


class LastOwner(PylonError):
    """An organisation would have members and no owner.

    Remedy: make another member an owner first, or delete the organisation.
    """

    code = "LAST_OWNER"
    status = 409


class NoActiveTenant(PylonError):
    """The route is about the selected organisation, and the session has selected none.

    Remedy: select one with POST /api/auth/select-org.
    """

    code = "NO_ACTIVE_TENANT"
    status = 400


class PolicyDenied(PylonError):
    """The manifest's policies do not allow the action to this caller. Without a policy for an
    action it is denied.

    Remedy: check the token that was sent, then the entity's policies in the manifest. In dev mode
    the error names the policy, the rule and its place, and the comparison that failed with its
    values, or what is missing where no policy is declared; elsewhere `pylonctl policy explain`
    says so.
    """

    code = "POLICY_DENIED"
    status = 403


class IdentityChanged(PylonError):
    """A connection has another user now, and a live query of the one before has ended.

    Remedy: subscribe again.
    """

    code = "IDENTITY_CHANGED"
    status = 409
    retryable = True


class CsrfRejected(PylonError):
    """A write without a bearer token from a page whose origin is not trusted, or with a session
    cookie and a body that is no JSON: it might ride on a cookie.

    Remedy: add the origin to PYLON_CORS_ORIGIN, PYLON_CSRF_ORIGINS or auth.trusted_origins in the
    manifest, send JSON with Content-Type: application/json, or send a bearer token.
    """

    code = "CSRF_REJECTED"
    status = 403


class AccountLocked(PylonError):
    """The credentials are right, and an administrator has locked the account.

    Remedy: ask the operator, who unlocks it with pylonctl user unlock.
    """

    code = "ACCOUNT_LOCKED"
    status = 403


class TotpRequired(PylonError):
    """The first proof of the sign-in is right, and the account also asks for a code. The error has
    a `challenge`, the seconds until it expires, and the `methods` that answer it.

    Remedy: ask the user for the code of their authenticator app or a backup code, and send it with
    the challenge to POST /api/auth/totp/challenge.
    """

    code = "TOTP_REQUIRED"
    status = 401


class InvalidTotpCode(PylonError):
    """The code is not that of the authenticator app now, was used before, or is no backup code.

    Remedy: wait for the next code, and check the clock of the device.
    """

    code = "INVALID_TOTP_CODE"
    status = 401


class InvalidChallenge(PylonError):
    """The challenge of a sign-in is unknown, has expired, was answered, or had five wrong codes.

    Remedy: sign in again.
    """

    code = "INVALID_CHALLENGE"
    status = 401


class TotpNotEnrolled(PylonError):
    """The account has no authenticator app.

    Remedy: enrol one first: POST /api/auth/totp/enroll, then /verify with its code.
    """

    code = "TOTP_NOT_ENROLLED"
    status = 400


class SealBroken(PylonError):
    """A value that the server keeps encrypted does not open: its secret key is not here, or the
    value was changed in the database.

    Remedy: an operator sets PYLON_SECRET_KEY_PREVIOUS to the secret key before.
    """

    code = "SEAL_BROKEN"
    status = 500


class ResetRefused(PylonError):
    """The test reset is open only in dev mode, for an in-memory database, from this machine.

    Remedy: start a test server with PYLON_DEV_MODE=true and PYLON_IN_MEMORY=true.
    """

    code = "RESET_REFUSED"
    status = 403


class SocketLimit(PylonError):
    """Too many sockets from one address.

    Remedy: close sockets that are not used; an operator raises PYLON_SOCKETS_PER_IP, or sets
    PYLON_TRUST_PROXY_HOPS where a proxy stands in front.
    """

    code = "SOCKET_LIMIT"
    status = 429
    retryable = True
