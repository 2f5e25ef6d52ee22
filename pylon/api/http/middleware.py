"""The middleware: runs before and after every request, whatever its route.

Before: it marks a path with an encoded slash (`routing`), takes or makes the request id, takes the
trace of the request (`pylon.trace_context`), clears two session cookies that differ, answers a CORS
preflight, and checks the origin, and with a session cookie the type of the body (CSRF); once the
route is known, the names of the query parameters, and whether an API key reaches the route
(`route_access`).
After: it sets the session cookie again whose session this use prolongs, the security and CORS
headers, and `no-store` on responses of the API. It counts the request (`request_metrics`), writes a
line of the access log (`access_log`) and a span (`request_spans`), and logs a request that was
slow.

Probes (/health, /livez, /readyz) are not counted (spec/http.md §7).

Log: `request`, `request.slow`. Called by falcon.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import falcon

from pylon import limits
from pylon.api.files.tus import TUS, TUS_HEADERS
from pylon.api.http import request_spans
from pylon.api.http.access_log import AccessLog, line_of
from pylon.api.http.callers import caller_of
from pylon.api.http.parameters import check_names
from pylon.api.http.request_metrics import RequestMetrics
from pylon.api.http.route_access import RouteAccess
from pylon.api.http.routing import mark_page_name, mark_slashes
from pylon.api.identity.routes import takes_any_origin, takes_form
from pylon.api.services import RequestServices
from pylon.auth.cookies import cookie_value, has_conflict
from pylon.auth.origin import PREFLIGHT_MAX_AGE_S, SAFE_METHODS, check_body_type
from pylon.auth.response_headers import api_headers, file_headers, fixed_headers
from pylon.auth.tokens import bearer_token
from pylon.errors import RequestQuarantined
from pylon.log import get_logger
from pylon.trace_context import TraceContext, parse_traceparent

_log = get_logger("http")

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._\-]{1,128}", re.ASCII)
_VARY_LINE: Final = b"vary: Origin\r\n"
_CACHE_LINE: Final = b"cache-control: no-store\r\n"
_REFERRER_LINE: Final = b"referrer-policy: strict-origin-when-cross-origin\r\n"
_OWN: Final = frozenset({"referrer-policy", "cache-control"})  # a response may have another one
_FILES: Final = "/api/files"
_PROBES: Final = frozenset({"/health", "/livez", "/readyz"})


class RequestMiddleware:
    """falcon middleware. One for each app."""

    def __init__(self, services: RequestServices, access: RouteAccess) -> None:
        self._services = services
        self._access = access
        self._clock = services.app.clock
        self._is_dev = services.app.config.dev_mode
        self._origins = services.origins
        self._cookie = services.cookie
        self._plain_headers = fixed_headers(services.app.config)
        self._api_headers = api_headers(services.app.config)
        self._file_headers = file_headers(services.app.config)
        self._file_lines = header_lines(self._file_headers)
        self._tus_max_bytes = str(services.app.config.file_resumable_max_bytes)
        self._plain_lines = header_lines(self._plain_headers)
        self._api_lines = header_lines(self._api_headers)
        self._lines_without_origin = header_lines(self._origins.cors(None))
        # Unique enough to find a request in a log, at no cost: eight digits of the process
        # (`RequestServices.request_id_prefix`) and a counter of eight digits.
        self._ids = itertools.count(1)
        self._metrics = RequestMetrics()
        self._random = services.app.random
        self._access_log = AccessLog(services.app.config.access_log, self._random)
        self._log_all = _log.enabled("debug")

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        context = req.context
        context.started_s = self._clock.monotonic_s()
        env = req.env
        if "pylon.raw_path" in env or "pylon.head" not in env:
            mark_slashes(req)
        given = env.get("HTTP_X_REQUEST_ID")
        if given is not None and _REQUEST_ID.fullmatch(given):
            context.request_id = given
        else:
            prefix = self._services.request_id_prefix
            context.request_id = f"{prefix}{next(self._ids) & 0xFFFFFFFF:08x}"
        traceparent = env.get("HTTP_TRACEPARENT")
        if traceparent is not None:
            context.trace = parse_traceparent(traceparent)
        if self._services.spans is not None:
            request_spans.begin(req, self._services.spans, self._clock, self._random)
        if "pylon.quarantined" in env:
            raise RequestQuarantined(
                "A request like this one has ended server processes; it is refused for now",
                hint="Do not repeat it; tell the operator its fingerprint",
                fingerprint=env["pylon.quarantined"],
            )
        cookies = env.get("HTTP_COOKIE")
        if cookies is not None and has_conflict(cookies, self._cookie.name):
            for line in self._cookie.cleared_everywhere(env.get("HTTP_HOST"), req.path):
                resp.append_header("set-cookie", line)  # before any that the resource sets
        method = req.method
        if method == "OPTIONS":
            resp.status = 204
            resp.set_header("access-control-max-age", PREFLIGHT_MAX_AGE_S)
            if req.path.startswith(TUS):
                for name, value in (*TUS_HEADERS, ("tus-max-size", self._tus_max_bytes)):
                    resp.set_header(name, value)
            resp.complete = True
            return
        self._services.rates.admit(req, lambda: caller_of(req, self._services).auth)
        if method not in SAFE_METHODS:
            if method != "POST":
                mark_page_name(req)
            origin, referer = env.get("HTTP_ORIGIN"), env.get("HTTP_REFERER")
            fetch_site = env.get("HTTP_SEC_FETCH_SITE")
            # None of these headers: the client is no browser, and the checks would pass.
            if not (origin is referer is fetch_site is cookies is None):
                has_bearer = bearer_token(env.get("HTTP_AUTHORIZATION")) is not None
                if not takes_any_origin(req.path):
                    self._origins.check(
                        method, origin, referer, has_bearer=has_bearer, fetch_site=fetch_site
                    )
                if (
                    not has_bearer and _has_body(env) and not takes_form(req.path)
                    and cookie_value(cookies, self._cookie.name)
                    and not (origin is not None and takes_bytes(req.path))
                ):
                    check_body_type(env.get("CONTENT_TYPE"))

    def process_resource(
        self, req: falcon.Request, resp: falcon.Response, resource: object, params: dict[str, Any]
    ) -> None:
        if req.query_string:
            check_names(req, refuses=self._is_dev)
        self._access.check(req, params)

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        path, env, context = req.path, req.env, req.context
        prolonged = env.get("pylon.prolonged_token")
        if prolonged is not None and not _sets_cookie(resp):
            resp.append_header("set-cookie", self._cookie.set(prolonged))
        noted = env.get("pylon.rate")
        if noted is not None:
            rate, left = noted
            for name, value in rate.headers(left):
                resp.set_header(name, value)
        is_api = path.startswith("/api/")
        request_id = getattr(context, "request_id", None)
        origin = env.get("HTTP_ORIGIN")
        if "pylon.head" in env:  # our HTTP server takes header lines as they go on the wire
            lines = self._api_lines if is_api else self._plain_lines
            if path.startswith(_FILES):
                lines = self._file_lines
            if getattr(context, "has_vary", False) and _VARY_LINE in lines:
                lines = lines.replace(_VARY_LINE, b"")
                resp.append_header("vary", "Origin")  # one field for both
            if resp.get_header("referrer-policy") is not None:  # a page has a stricter one
                lines = lines.replace(_REFERRER_LINE, b"")
            if resp.get_header("cache-control") is not None:  # a file says how long it lasts
                lines = lines.replace(_CACHE_LINE, b"")
            if request_id is not None:
                lines += b"x-request-id: %b\r\n" % request_id.encode()
            if resp.get_header("access-control-allow-origin") is not None:
                pass  # the same for every origin: the client's files
            elif origin is None:
                lines += self._lines_without_origin
            else:
                lines += header_lines(self._origins.cors(origin))
            env["pylon.head"] += lines
        else:
            headers = self._api_headers if is_api else self._plain_headers
            for name, value in self._file_headers if path.startswith(_FILES) else headers:
                add = resp.append_header if name == "vary" else resp.set_header
                if name not in _OWN or resp.get_header(name) is None:
                    add(name, value)
            if resp.get_header("access-control-allow-origin") is None:
                for name, value in self._origins.cors(origin):
                    resp.set_header(name, value)
            if request_id is not None:
                resp.set_header("x-request-id", request_id)
        if request_id is None:  # falcon refuses some methods before it calls `process_request`
            self._metrics.count(req, resp, 0.0)
            return
        elapsed_s = self._clock.monotonic_s() - context.started_s
        if path not in _PROBES:
            trace: TraceContext | None = getattr(context, "trace", None)
            is_logged = self._access_log.takes()
            finish = None
            if is_logged or self._services.spans is not None:
                finish = partial(self._finish, req, resp, is_logged)
            self._metrics.count(
                req, resp, elapsed_s,
                {"trace_id": trace.trace_id} if trace is not None and trace.is_sampled else None,
                finish,
            )
        if elapsed_s > limits.SLOW_REQUEST_S:
            _log.warning("request.slow", **line_of(req, resp, elapsed_s))
        elif self._log_all:
            _log.debug("request", **line_of(req, resp, elapsed_s))

    def _finish(
        self, req: falcon.Request, resp: falcon.Response, is_logged: bool, size_bytes: int
    ) -> None:
        """Write the log line and the span of a request whose response is complete."""
        elapsed_s = self._clock.monotonic_s() - req.context.started_s
        if is_logged:
            self._access_log.write(req, resp, elapsed_s, size_bytes)
        if self._services.spans is not None:
            request_spans.finish(req, resp, self._services.spans, elapsed_s, size_bytes)


def takes_bytes(path: str) -> bool:
    """Whether a route takes bodies of any type: uploads. Their Origin was checked, and a page must
    send one for its session cookie to count."""
    return path.startswith(("/api/files/upload", "/api/files/tus"))


def _sets_cookie(resp: falcon.Response) -> bool:
    """Whether the response sets a cookie already: a sign-in or a logout counts more."""
    # falcon has no public way to ask.
    return any(name == "set-cookie" for name, _ in resp._extra_headers or ())


def _has_body(env: dict[str, Any]) -> bool:
    if "HTTP_TRANSFER_ENCODING" in env:
        return True
    return env.get("CONTENT_LENGTH") not in (None, "", "0")


def header_lines(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return header lines as they go on the wire.

    Raises:
        ValueError: a value, of a setting then, would break out of its line.
    """
    lines = [f"{name}: {value}" for name, value in headers]
    if any(not line.isprintable() for line in lines):
        raise ValueError("a header value holds a control character")
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1")
