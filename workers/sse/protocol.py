"""The SSE port's requests: who asks, from which cursor, and the hand-over of the socket.

Any path and any method is a subscription, except OPTIONS, which is answered as a preflight.
Token sources, first wins: ``Authorization: Bearer``, ``?token=``, the session cookie. Anonymous
clients are let in and see what anonymous may read. The cursor is `Last-Event-ID` (an automatic
reconnect knows best), else ``?since=``.
"""

from __future__ import annotations

import _socket
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent.pywsgi import WSGIHandler

from pylon import limits
from pylon.auth.cookies import cookie_value
from pylon.errors import PylonError
from workers.hub import handover
from workers.hub.handover import Headers
from workers.hub.reception import Visitor
from workers.sse.stream import preflight


class Door(Protocol):
    """Where the sockets go."""

    def check(self, address: str) -> None:
        """Pass, or raise the `PylonError` that is answered as plain HTTP."""

    def accept(self, raw: _socket.socket, early: bytes, visitor: Visitor) -> None:
        """Take a socket whose request has been read and not answered."""


def handler_for(
    door: Door, cookie_name: str, cors: Headers, trust_proxy_hops: int
) -> Callable[[Any, Any, Any], WSGIHandler]:
    """What makes pywsgi's handlers: one for each accepted connection."""

    def make(sock: Any, address: Any, server: Any) -> WSGIHandler:
        return _Handler(sock, address, server, door, cookie_name, cors, trust_proxy_hops)

    return make


def visitor_of(environ: dict[str, Any], cookie_name: str, hops: int) -> Visitor:
    """Read a request's address, token and cursor."""
    parameters = handover.parameters_of(environ)
    cursor = handover.cursor_of(environ.get("HTTP_LAST_EVENT_ID"))
    if cursor is None:
        cursor = handover.cursor_of(parameters.get("since"))
    return Visitor(
        address=handover.address_of(environ, hops),
        token=(
            handover.bearer_of(environ)
            or parameters.get("token")
            or cookie_value(environ.get("HTTP_COOKIE"), cookie_name)
        ),
        cursor=cursor,
    )


class _Handler(WSGIHandler):  # type: ignore[misc]  # the library has no types
    def __init__(
        self, sock: Any, address: Any, server: Any, door: Door, cookie_name: str,
        cors: Headers, hops: int,
    ) -> None:
        super().__init__(sock, address, server)
        self._door = door
        self._cookie_name = cookie_name
        self._cors = cors
        self._hops = hops
        self._deadline: Any = None

    def handle(self) -> None:
        """One request, whose headers must arrive in time."""
        with gevent.Timeout(limits.SOCKET_HEADER_S, False) as self._deadline:
            super().handle()

    def log_request(self) -> None:
        """Streams are counted, not logged."""

    def run_application(self) -> None:
        """Hand the socket over, or answer."""
        self._deadline.close()
        if self.command == "OPTIONS":
            self.close_connection = True
            self.start_response(
                "204 No Content", [*preflight(self._cors), ("Connection", "close")]
            )
            self.write(b"")
            return
        visitor = visitor_of(self.environ, self._cookie_name, self._hops)
        try:
            self._door.check(visitor.address)
        except PylonError as ex:
            handover.refuse(self, ex, self._cors)
            return
        raw, early = handover.take_over(self)
        self._door.accept(raw, early, visitor)
