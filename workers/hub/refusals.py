"""Refusals of the socket ports: the response to a request that opens no socket or stream.

`workers.net.response` makes the bytes. A refusal ends its connection. Called by the acceptor and
the handlers of the socket roles.
"""

from __future__ import annotations

from pylon.auth.response_headers import SocketHeaders
from pylon.errors import PylonError
from workers.hub.request import Request
from workers.net.response import Headers, encode_headers, error_response, status_line


def refusal(error: PylonError, headers: Headers = (), status: int | None = None) -> bytes:
    """Return the whole response for an error.

    Args:
        status: the HTTP status, if it is not that of the error.
    """
    return error_response(
        status_line(error.status if status is None else status), error.body(),
        encode_headers(headers),
        retry_after_s=error.retry_after_s if error.retryable else None,
    )


def refusal_headers(headers: SocketHeaders, request: Request | None) -> Headers:
    """Return the headers of a refusal: security, and CORS if a trusted page sent the request.

    Args:
        request: None if its head could not be read.
    """
    return headers.of(None if request is None else request.origin)
