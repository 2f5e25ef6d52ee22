"""Resources of sign-in: each checks its request, and lets the identity process answer it.

One resource serves all methods of a path. It checks who calls, spends the route's rate, decodes the
body into the struct of the route, and calls the identity process (`pylon.bus.identity`). Then it
sets the cookies and sends the answer.

Invariants: an answer of sign-in is never cached. The session cookie is set only if the request has
a trusted Origin, or for a redirect, which a browser follows. A body is at most
`limits.IDENTITY_BODY_BYTES`. Without an identity process the routes answer 503. Called by falcon.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import groupby
from typing import Any, Final
from urllib.parse import parse_qsl

import falcon
import gevent
import msgspec

from pylon import limits
from pylon.api.http.body import decode_json, read_body
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.parameters import read_text
from pylon.api.http.route_access import MethodAccess, Methods
from pylon.api.identity.route import IdentityRoute
from pylon.api.identity.routes import ROUTES
from pylon.api.services import IdentityServices
from pylon.auth.cookies import identity_cookies
from pylon.auth.devices import device_label
from pylon.auth.tokens import bearer_token
from pylon.auth_context import Caller
from pylon.bus.identity import CallFacts, IdentityAnswer
from pylon.errors import (
    AuthRequired,
    Forbidden,
    InvalidJson,
    PayloadTooLarge,
)
from pylon.rates import address_subject
from pylon.trace_context import TraceContext

_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_FORM_FIELDS: Final = 32


def identity_resources(services: IdentityServices) -> Iterable[tuple[str, object, Methods]]:
    """Yield each path of `ROUTES`, its resource, and the access of API keys to its methods."""
    by_path = sorted(ROUTES, key=lambda route: route.path)
    for path, found in groupby(by_path, key=lambda route: route.path):
        routes = list(found)
        methods: Methods = {str(route.method): _access_of(route) for route in routes}
        yield path, _IdentityResource(services, routes), methods


def _access_of(route: IdentityRoute) -> MethodAccess:
    is_session_only = route.who in ("session", "fresh")
    changes = route.method != "GET" and route.who != "anyone"
    return MethodAccess(None, changes=changes, takes_keys=not is_session_only)


class _IdentityResource:
    """All methods of one path. It has a responder for each (`on_post`, ...)."""

    def __init__(self, services: IdentityServices, routes: list[IdentityRoute]) -> None:
        self._services = services
        config = services.app.config
        self._rates = {r.action: r.rate(config) for r in routes if r.rate is not None}
        for route in routes:
            responder = partial(self._respond, route)
            setattr(self, f"on_{route.method.lower()}", responder)
            if route.method == "GET":
                self.on_head = responder

    def _respond(
        self, route: IdentityRoute, req: falcon.Request, resp: falcon.Response, **params: str
    ) -> None:
        services = self._services
        caller = caller_of(req, services.requests)
        check_caller(route, caller)
        address = address_of(req, services.requests)
        rate = self._rates.get(route.action)
        if rate is not None:
            services.requests.limiter.require(rate, address_subject(address))
        body, is_form = self._read(route, req)
        given = {name: read_text(req, name) for name in route.params}
        params.update((name, value) for name, value in given.items() if value is not None)
        facts = facts_of(req, services, caller, address, is_form=is_form)
        self._send(resp, facts, call_route(services, route, body, params, facts))
        if not req.path.startswith("/api/"):  # below it the middleware sends this for all
            resp.set_header("cache-control", "no-store")

    def _read(self, route: IdentityRoute, req: falcon.Request) -> tuple[bytes, bool]:
        """Return the body as JSON of the route's type, and whether it came as a form."""
        if route.body is None:
            return b"", False
        raw = read_body(req)
        if len(raw) > limits.IDENTITY_BODY_BYTES:
            raise PayloadTooLarge(
                f"The body has {len(raw)} bytes (limit {limits.IDENTITY_BODY_BYTES})"
            )
        kind = req.env.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        is_form = route.takes_form and kind == _FORM_TYPE
        value: Any
        if is_form:
            value = decode_form(raw)
        elif raw:
            value = decode_json(req, self._services.requests, raw)
        else:
            value = {}
        return msgspec.json.encode(route.body.convert(value)), is_form

    def _send(self, resp: falcon.Response, facts: CallFacts, answer: IdentityAnswer) -> None:
        cookie = self._services.requests.cookie
        if answer.ends_sessions:  # other workers learn it by a signal
            self._services.requests.session_cache.forget()
        resp.status = answer.status
        resp.data = answer.body
        resp.content_type = answer.content_type
        for name, value in answer.headers:
            resp.set_header(name, value)
        if answer.location is not None:
            resp.set_header("location", answer.location)
        for line in answer.cookies:
            resp.append_header("set-cookie", line)
        if answer.session_token is not None and (
            facts.is_trusted_origin or answer.location is not None
        ):
            resp.append_header("set-cookie", cookie.set(answer.session_token))
        elif answer.clears_session:
            resp.append_header("set-cookie", cookie.cleared())


def call_route(
    services: IdentityServices, route: IdentityRoute, body: bytes, params: dict[str, str],
    facts: CallFacts,
) -> IdentityAnswer:
    """Call the identity process, and wait with an answer that hides an account.

    Raises:
        PylonError: the flow has refused the call, or the process is not reached.
    """
    clock = services.app.clock
    due_s = clock.monotonic_s() + limits.MAIL_ANSWER_S
    answer = services.identity.call(route.action, body, params, facts)
    if route.hides_account:
        gevent.sleep(max(0.0, due_s - clock.monotonic_s()))
    return answer


def facts_of(
    req: falcon.Request, services: IdentityServices, caller: Caller, address: str, *,
    is_form: bool = False,
) -> CallFacts:
    """Return what the identity process is told of a request."""
    origin = req.env.get("HTTP_ORIGIN")
    trace: TraceContext | None = getattr(req.context, "trace", None)
    has_header = bearer_token(req.env.get("HTTP_AUTHORIZATION")) is not None
    return CallFacts(
        auth=caller.auth, session_id=caller.session_id,
        family=caller.family, auth_time_s=caller.auth_time_s,
        is_by_cookie=caller.session_id is not None and not has_header,
        address=address, device=device_label(req.env.get("HTTP_USER_AGENT")), origin=origin,
        is_trusted_origin=services.requests.origins.allows(origin),
        cookies=identity_cookies(req.env.get("HTTP_COOKIE"), services.requests.cookie.name),
        is_form=is_form,
        is_cross_site=req.env.get("HTTP_SEC_FETCH_SITE", "").strip() == "cross-site",
        traceparent=None if trace is None else trace.traceparent(),
    )


def check_caller(route: IdentityRoute, caller: Caller) -> None:
    """Check that this caller may call the route. `route_access` has checked API keys and JWTs.

    Raises:
        AuthRequired, Forbidden: it may not.
    """
    if route.who == "anyone":
        return
    if route.who == "admin":
        if not caller.auth.is_admin:
            raise Forbidden("this endpoint requires admin auth (PYLON_ADMIN_TOKEN)")
        return
    needs_session = route.who in ("session", "fresh")
    if caller.auth.user_id is None or (needs_session and caller.session_id is None):
        raise AuthRequired("Login required")


def decode_form(raw: bytes) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        InvalidJson: it is no text, or has too many fields.
    """
    try:
        pairs = parse_qsl(
            raw.decode(), keep_blank_values=True, max_num_fields=_FORM_FIELDS, errors="strict"
        )
    except ValueError as ex:
        raise InvalidJson("Invalid request body", hint="Send a form in UTF-8") from ex
    return dict(pairs)
