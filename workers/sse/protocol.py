"""The SSE port's requests: who asks, and from which cursor.

GET opens a stream on any path. `workers.sse.server` answers OPTIONS as a preflight and HEAD with
the stream's headers; it refuses every other method with 405.
Token sources, first wins: ``Authorization: Bearer``, ``?token=``, the session cookie. Anonymous
clients are let in and see what anonymous may read. The cursor is `Last-Event-ID` (an automatic
reconnect knows best), else ``?since=``. Called by `workers.sse.server`.
"""

from __future__ import annotations

from pylon.auth.cookies import cookie_value
from workers.hub.admission import ConnectRequest
from workers.hub.request import Request, cursor_of


def visitor_of(request: Request, early: bytes, cookie_name: str, hops: int) -> ConnectRequest:
    """Read a request's address, token and cursor.

    Args:
        early: what has arrived behind it.
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
    )
