"""Responses that the server makes itself, without the app: heads, and errors with a JSON body.

`encode_head` makes any head. `error_response` makes the whole response for an error: the body
``{"error": {...}}``, `Retry-After` if another attempt can succeed, and `Connection: close`.

Invariant: a connection ends after an error response, because the server may not know where the
next request begins. Called by `workers.http.response`, `workers.hub.refusals` and the handlers of
the socket roles.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from pylon.errors import InternalError, InvalidRequest, PayloadTooLarge, RequestTimeout, Unavailable
from workers.net.head import RequestError

Headers = tuple[tuple[str, str], ...]

_CODE_BY_STATUS: Final = {
    error.status: error.code
    for error in (PayloadTooLarge, RequestTimeout, Unavailable, InternalError)
}
_RETRY_AFTER: Final = b"Retry-After: %d\r\n"
_ERROR_HEAD: Final = (
    b"%bContent-Type: application/json\r\n%b%bConnection: close\r\nContent-Length: %d\r\n\r\n%b"
)


def status_text(status: int) -> str:
    """Return a status code with its phrase: ``404 Not Found``."""
    return f"{status} {HTTPStatus(status).phrase}"


def status_line(status: int) -> bytes:
    """Return the first line of a response, with its line end."""
    return f"HTTP/1.1 {status_text(status)}\r\n".encode()


def encode_headers(headers: Headers) -> bytes:
    """Return header lines, each with its line end."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")


def encode_head(status: int, headers: Headers) -> bytes:
    """Return a response's status line, its header lines and the empty line."""
    return b"%b%b\r\n" % (status_line(status), encode_headers(headers))


def error_response(
    first_lines: bytes, body: Mapping[str, Any], header_lines: bytes = b"", *,
    retry_after_s: int | None = None, with_body: bool = True, lower_case: bool = False,
) -> bytes:
    """Return the whole response for an error.

    Args:
        first_lines: the status line, and header lines that stand before all others.
        body: the JSON object to send.
        header_lines: more header lines, each with its line end.
        retry_after_s: the value of Retry-After; None leaves the field out.
        with_body: False for the response to HEAD, whose Content-Length is that of GET.
        lower_case: write field names in lower case, as the app's own responses have them.
    """
    encoded = msgspec.json.encode(body)
    head, retry = _ERROR_HEAD, b""
    if retry_after_s is not None:
        retry = _RETRY_AFTER % retry_after_s
    if lower_case:
        head, retry = head.lower(), retry.lower()
    return head % (first_lines, header_lines, retry, len(encoded), encoded if with_body else b"")


def request_error_body(error: RequestError) -> dict[str, Any]:
    """Return the JSON object for a request that the app never sees."""
    return {"error": {"code": error_code(error), "message": error.message}}


def error_code(error: RequestError) -> str:
    """Return the error code of a request that the app never sees."""
    return _CODE_BY_STATUS.get(error.status, InvalidRequest.code)


def without_body(response: bytes) -> bytes:
    """Return the response to HEAD where `response` is the response to GET (RFC 9110 §9.3.2)."""
    return response[: response.index(b"\r\n\r\n") + 4]
