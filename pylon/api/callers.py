"""Callers: who sends a request, resolved once and kept on it (spec/http.md §4.1).

The bearer header wins; without one the session cookie counts. Resolution is lazy, so that
answers that are the same for everybody cost no look-up.
"""

from __future__ import annotations

import falcon

from pylon.api.services import Services
from pylon.auth.context import Caller
from pylon.auth.cookies import cookie_value
from pylon.auth.forwarded import client_address
from pylon.auth.sessions import resolve
from pylon.auth.tokens import bearer_token
from pylon.storage.contract import SessionRow


def token_of(req: falcon.Request, services: Services) -> str | None:
    """The token that the request carries, from wherever it carries it."""
    token = bearer_token(req.env.get("HTTP_AUTHORIZATION"))
    if token is not None:
        return token
    return cookie_value(req.env.get("HTTP_COOKIE"), services.cookie.name)


def caller_of(req: falcon.Request, services: Services) -> Caller:
    """Who asks."""
    caller: Caller | None = getattr(req.context, "caller", None)
    if caller is None:

        def look_up(session_id: str) -> SessionRow | None:
            return services.store.point(lambda reader: reader.session(session_id))

        caller = resolve(
            token_of(req, services), services.app.config, look_up, services.app.clock
        )
        req.context.caller = caller
    return caller


def address_of(req: falcon.Request, services: Services) -> str:
    """The client's address, seen through the trusted proxies."""
    return client_address(
        req.env.get("REMOTE_ADDR", ""),
        req.env.get("HTTP_X_FORWARDED_FOR"),
        services.app.config.trust_proxy_hops,
    )
