"""Requests of the SSE port: the caller, and the cursor from which the stream begins.

A token comes from the first of ``Authorization: Bearer``, ``?token=`` and the session cookie. A
client without a token is anonymous. The cursor is `Last-Event-ID`, which an automatic reconnect
sends, else ``?since=``. Called by `workers.sse.server`.
"""

from __future__ import annotations

from pylon.auth.cookies import cookie_value
from pylon.changelog.scope import Scope
from workers.hub.admission import ConnectRequest
from workers.hub.request import Request, cursor_of


def read_connect_request(
    request: Request, early: bytes, cookie_name: str, hops: int, scope: Scope | None = None
) -> ConnectRequest:
    """Return a request's address, token and cursor.

    Args:
        early: the bytes that arrived behind it.
        hops: the number of trusted proxies in front.
        scope: the part of the data that the client asks for.
    """
    parameters = request.parameters
    cursor = cursor_of(request.field(b"last-event-id"))
    if cursor is None:
        cursor = cursor_of(parameters.get("since"))
    return ConnectRequest(
        address=request.address(hops),
        token=(
            request.bearer
            or parameters.get("token")
            or cookie_value(request.field(b"cookie"), cookie_name)
        ),
        cursor=cursor,
        early=early,
        scope=scope,
    )
