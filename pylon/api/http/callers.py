"""Callers: who sends a request, resolved once and kept on it (spec/http.md §4.1).

The bearer header wins; without one the session cookie counts. Resolution is lazy, so that
answers that are the same for everybody cost no look-up.

Who was found is remembered for a moment (`pylon.auth.session_cache`).
"""

from __future__ import annotations

import falcon

from pylon import rates
from pylon.api.services import RequestServices
from pylon.auth.cookies import cookie_value
from pylon.auth.forwarded import client_address
from pylon.auth.sessions import ANONYMOUS_CALLER
from pylon.auth.tokens import bearer_token
from pylon.auth_context import Caller


def token_of(req: falcon.Request, services: RequestServices) -> str | None:
    """The token that the request carries, from wherever it carries it."""
    token = bearer_token(req.env.get("HTTP_AUTHORIZATION"))
    if token is not None:
        return token
    return cookie_value(req.env.get("HTTP_COOKIE"), services.cookie.name)


def caller_of(req: falcon.Request, services: RequestServices) -> Caller:
    """Who asks."""
    env = req.env
    caller: Caller | None = env.get("pylon.caller")
    if caller is not None:
        return caller
    carried = (env.get("HTTP_AUTHORIZATION"), env.get("HTTP_COOKIE"))
    if carried == (None, None):
        caller = ANONYMOUS_CALLER
    else:
        caller = services.session_cache.find(carried)
        if caller is None:
            caller = services.session_cache.look_up(carried, token_of(req, services))
    env["pylon.caller"] = caller
    return caller


def subject_of(req: falcon.Request, services: RequestServices) -> str:
    """The caller against whose share of the worker a request counts."""
    return rates.subject_of(caller_of(req, services).auth, address_of(req, services))


def address_of(req: falcon.Request, services: RequestServices) -> str:
    """The client's address, seen through the trusted proxies."""
    return client_address(
        req.env.get("REMOTE_ADDR", ""),
        req.env.get("HTTP_X_FORWARDED_FOR"),
        services.app.config.trust_proxy_hops,
    )
