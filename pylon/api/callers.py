"""Callers: who sends a request, resolved once and kept on it (spec/http.md §4.1).

The bearer header wins; without one the session cookie counts. Resolution is lazy, so that
answers that are the same for everybody cost no look-up.

`Callers` remembers for each process whom a header or a cookie stands for. Invariants: never
longer than limits.CALLER_S after the session was read from the store, so that a revoked session
is dead everywhere within a second even where the signal was lost; never beyond the session's own
end; and what stood for nobody is not remembered at all. At limits.CALLERS entries all are
forgotten.
"""

from __future__ import annotations

import falcon

from pylon import limits
from pylon.api.services import Services
from pylon.auth.context import Caller
from pylon.auth.cookies import cookie_value
from pylon.auth.forwarded import client_address
from pylon.auth.sessions import NOBODY, resolve
from pylon.auth.tokens import bearer_token
from pylon.storage.contract import SessionRow

_NS_PER_S = 1_000_000_000


def token_of(req: falcon.Request, services: Services) -> str | None:
    """The token that the request carries, from wherever it carries it."""
    token = bearer_token(req.env.get("HTTP_AUTHORIZATION"))
    if token is not None:
        return token
    return cookie_value(req.env.get("HTTP_COOKIE"), services.cookie.name)


def caller_of(req: falcon.Request, services: Services) -> Caller:
    """Who asks."""
    env = req.env
    caller: Caller | None = env.get("pylon.caller")
    if caller is not None:
        return caller
    carried = (env.get("HTTP_AUTHORIZATION"), env.get("HTTP_COOKIE"))
    if carried == (None, None):
        caller = NOBODY
    else:
        now_s = services.app.clock.monotonic_s()
        caller = services.callers.find(carried, now_s)
        if caller is None:
            caller = _resolved(req, services, carried, now_s)
    env["pylon.caller"] = caller
    return caller


def address_of(req: falcon.Request, services: Services) -> str:
    """The client's address, seen through the trusted proxies."""
    return client_address(
        req.env.get("REMOTE_ADDR", ""),
        req.env.get("HTTP_X_FORWARDED_FOR"),
        services.app.config.trust_proxy_hops,
    )


def _resolved(
    req: falcon.Request, services: Services, carried: tuple[str | None, str | None], now_s: float
) -> Caller:
    clock = services.app.clock
    until_s = now_s + limits.CALLER_S

    def look_up(session_id: str) -> SessionRow | None:
        nonlocal until_s
        session = services.store.point(lambda reader: reader.session(session_id))
        if session is not None and session.expires_at_s:
            left_ns = session.expires_at_s * _NS_PER_S - clock.wall_ns()
            until_s = min(until_s, now_s + left_ns / _NS_PER_S)
        return session

    caller = resolve(token_of(req, services), services.app.config, look_up, clock)
    if caller is not NOBODY:
        services.callers.remember(carried, caller, until_s)
    return caller
