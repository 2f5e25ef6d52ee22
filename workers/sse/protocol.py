"""Requests of the SSE port: the caller, and the cursor from which the stream begins.

A token comes from the first of ``Authorization: Bearer``, ``?token=`` and the session cookie. The
cookie counts only for a trusted page, and the admin token only in the field. A client without a
token is anonymous. The cursor is `Last-Event-ID`, which an automatic reconnect
sends, else ``?since=``. Called by `workers.sse.server`.
"""

from __future__ import annotations

from pylon.auth.origin import Origins
from pylon.auth.response_headers import SocketHeaders
from pylon.changelog.scope import Scope
from workers.hub.admission import ConnectRequest
from workers.hub.request import Request, cursor_of


def read_connect_request(
    request: Request, early: bytes, cookie_name: str, hops: int, headers: SocketHeaders,
    scope: Scope | None = None,
) -> ConnectRequest:
    """Return a request's address, token and cursor.

    Args:
        early: the bytes that arrived behind it.
        hops: the number of trusted proxies in front.
        headers: those of the port.
        scope: the part of the data that the client asks for.

    Raises:
        InvalidApiKey, InvalidJwt: the Authorization field has such a credential.
    """
    parameters = request.parameters
    cursor = cursor_of(request.field(b"last-event-id"))
    if cursor is None:
        cursor = cursor_of(parameters.get("since"))
    return ConnectRequest(
        address=request.address(hops),
        token=stream_token(request, cookie_name, headers.origins),
        cursor=cursor,
        early=early,
        scope=scope,
        headers=headers.of(request.origin),
    )


def stream_token(request: Request, cookie_name: str, origins: Origins) -> str | None:
    """Return the token of an event stream's request, which may be empty; None without one.

    Raises:
        InvalidApiKey, InvalidJwt: the Authorization field has such a credential.
    """
    token = request.bearer
    if token is None:
        token = request.url_token() or request.cookie_token(cookie_name, origins)
    return token
