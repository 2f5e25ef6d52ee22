"""Sends JSON, and every exception as the error envelope of spec/http.md §3.0.

Invariants: a body is JSON text in UTF-8 with sorted keys. An error shows no more than its own
message, hint and details. An unexpected exception is a 500 without details; its traceback goes to
the log with the id of the request.

Metric: pylon_http_errors_total. Log: `request.defect`, `request.internal_error`. Called by the
resources and by falcon.
"""

from __future__ import annotations

from typing import Any, Final

import falcon
import orjson

from pylon.api.http.request_metrics import NO_ROUTE, count_error
from pylon.errors import (
    InternalError,
    InvalidData,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    PylonError,
    RateLimited,
)
from pylon.log import get_logger

_log = get_logger("http")
_CHALLENGE: Final = 'Bearer realm="pylon"'  # RFC 9110 §15.5.2; browsers show no dialogue for it


def send_json(resp: falcon.Response, value: object, status: int = 200) -> None:
    """Send `value` as JSON."""
    resp.status = status
    resp.data = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def send_text(resp: falcon.Response, json_text: bytes) -> None:
    """Send text that is JSON already, with status 200."""
    resp.data = json_text


def join_rows(rows: list[bytes]) -> bytes:
    """Return a JSON array of rows that are JSON texts."""
    return b"[" + b",".join(rows) + b"]"


def on_pylon_error(
    req: falcon.Request, resp: falcon.Response, ex: PylonError, params: dict[str, Any]
) -> None:
    """Send the envelope of an error of ours."""
    if isinstance(ex, InternalError):
        _log.error(
            "request.internal_error", request_id=_id(req), route=_route(req), error=ex.message
        )
        ex = InternalError("Internal error", hint=_log_hint(req))
    count_error(ex.code)
    req.context.error_code = ex.code
    resp.stream = None
    resp.text = None
    send_json(resp, ex.body(), ex.status)
    if ex.retryable:
        resp.set_header("retry-after", str(ex.retry_after_s))
    if isinstance(ex, RateLimited):
        req.env.pop("pylon.rate", None)
        for name, value in ex.headers:
            resp.set_header(name, value)
    if ex.status == 401:
        resp.set_header("www-authenticate", _CHALLENGE)


def on_falcon_error(
    req: falcon.Request, resp: falcon.Response, ex: falcon.HTTPError, params: dict[str, Any]
) -> None:
    """Send the envelope for an error of falcon: no such route or method, unreadable headers."""
    if ex.status_code == 405:
        headers = dict(ex.headers or {})
        resp.set_header("allow", headers.get("Allow", ""))
        on_pylon_error(req, resp, MethodNotAllowed("Method not allowed"), params)
    elif ex.status_code == 404:
        on_pylon_error(req, resp, NotFound("Not found"), params)
    elif ex.status_code == 413:
        on_pylon_error(req, resp, PayloadTooLarge("Request too large"), params)
    else:
        on_pylon_error(req, resp, InvalidData(ex.title or "Bad request"), params)


def on_defect(
    req: falcon.Request, resp: falcon.Response, ex: Exception, params: dict[str, Any]
) -> None:
    """Send a 500 for an unexpected exception, and log its traceback."""
    _log.exception(
        "request.defect", error=ex, request_id=_id(req), method=req.method,
        route=_route(req),
    )
    count_error(InternalError.code)
    req.context.error_code = InternalError.code
    resp.stream = None
    resp.text = None
    send_json(resp, InternalError("Internal error", hint=_log_hint(req)).body(), 500)


def _log_hint(req: falcon.Request) -> str:
    return f"The server's log has the details under request id {_id(req)}"


def _route(req: falcon.Request) -> str:
    return req.uri_template or NO_ROUTE


def _id(req: falcon.Request) -> str:
    return getattr(req.context, "request_id", "-")
