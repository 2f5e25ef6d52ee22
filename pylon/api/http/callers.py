"""The caller of a request, found once and kept in its environ (spec/http.md §4.1).

The bearer header wins; without one the session cookie counts. A caller is found when a resource
first asks for it, so that a response that is the same for everybody costs no lookup. The session
cache (`pylon.auth.session_cache`) keeps the callers found last.

Called by the resources and the middleware.
"""

from __future__ import annotations

from collections.abc import Iterator

import falcon

from pylon import limits, rates
from pylon.api.services import RequestServices
from pylon.auth.cookies import cookie_value
from pylon.auth.forwarded import client_address
from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.auth.tokens import UnprivilegedToken, bearer_token
from pylon.auth_context import Caller
from pylon.errors import SessionExpired


def token_of(req: falcon.Request, services: RequestServices) -> str | None:
    """Return the token of the bearer header, or of the session cookie."""
    token = bearer_token(req.env.get("HTTP_AUTHORIZATION"))
    if token is not None:
        return token
    return cookie_value(req.env.get("HTTP_COOKIE"), services.cookie.name)


def caller_of(req: falcon.Request, services: RequestServices) -> Caller:
    """Return the caller of the request.

    Raises:
        InvalidApiKey, InvalidJwt: the header has such a credential, and it is bad.
        StoreUnavailable: the session could not be read.
        Unavailable: a JWT cannot be checked now.
        RateLimited: the user has sent too many requests.
    """
    env = req.env
    caller: Caller | None = env.get("pylon.caller")
    if caller is not None:
        return caller
    credentials = (env.get("HTTP_AUTHORIZATION"), env.get("HTTP_COOKIE"))
    if credentials == (None, None):
        caller = ANONYMOUS_CALLER
    else:
        caller = services.session_cache.find(credentials)
        if caller is None:
            token = token_of(req, services)

            def renew_cookie() -> None:
                if isinstance(token, UnprivilegedToken):
                    env["pylon.prolonged_token"] = token

            caller = services.session_cache.look_up(credentials, token, renew_cookie)
    env["pylon.caller"] = caller
    services.rates.admit_caller(env, caller)
    return caller


def while_caller_lasts(
    req: falcon.Request, services: RequestServices, pieces: Iterator[bytes]
) -> Iterator[bytes]:
    """Yield the pieces of a long response to a caller, as long as the credentials count.

    Raises:
        SessionExpired: they no longer do, or stand for somebody else; the response is cut off.
    """
    env = req.env
    caller: Caller = env["pylon.caller"]
    if caller is ANONYMOUS_CALLER or caller.auth.is_admin:
        yield from pieces
        return
    clock = services.app.clock
    checked_s = clock.monotonic_s()
    for piece in pieces:
        if clock.monotonic_s() - checked_s >= limits.SESSION_CACHE_S:
            checked_s = clock.monotonic_s()
            require_caller(req, services, caller)
        yield piece


def require_caller(req: falcon.Request, services: RequestServices, caller: Caller) -> None:
    """Check that the credentials of a long request still stand for its caller.

    Raises:
        SessionExpired: they no longer count, or stand for somebody else.
    """
    credentials = (req.env.get("HTTP_AUTHORIZATION"), req.env.get("HTTP_COOKIE"))
    present = services.session_cache.find(credentials)
    if present is None:
        present = services.session_cache.look_up(credentials, token_of(req, services))
    if present.auth != caller.auth:
        raise SessionExpired("The session has ended during the request")


def subject_of(req: falcon.Request, services: RequestServices) -> str:
    """Return the subject whose share of the worker the request counts against."""
    return rates.subject_of(caller_of(req, services).auth, address_of(req, services))


def address_of(req: falcon.Request, services: RequestServices) -> str:
    """Return the client's address, as the trusted proxies report it."""
    return client_address(
        req.env.get("REMOTE_ADDR", ""),
        req.env.get("HTTP_X_FORWARDED_FOR"),
        services.app.config.trust_proxy_hops,
    )
