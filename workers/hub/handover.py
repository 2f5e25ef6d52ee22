"""From pywsgi to the hub: what the handshakes of ws, sse and shards share.

pywsgi accepts and parses the request in a greenlet; then the socket leaves it, with whatever
the client has sent already, and belongs to a `Connection`. Requests that are not taken over are
answered once and closed: these ports serve nothing else.
"""

from __future__ import annotations

import _socket
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from gevent.pywsgi import WSGIHandler, WSGIServer

from pylon import log
from pylon.auth.forwarded import client_address
from pylon.errors import PylonError

Headers = tuple[tuple[str, str], ...]

_log = log.get_logger("sockets")


class _ErrorLog:
    """Where pywsgi writes what it thinks of bad requests."""

    def write(self, text: str) -> None:
        _log.debug("socket.bad_request", message=text.strip())

    def flush(self) -> None:
        """Nothing is buffered."""


def _no_application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """pywsgi wants one; the handlers answer every request themselves."""
    return []


def make_server(
    listener: socket.socket, handler: Callable[[Any, Any, Any], WSGIHandler]
) -> WSGIServer:
    """A server on a listening socket that sibling processes share. Not started."""
    return WSGIServer(
        listener,
        application=_no_application,
        handler_class=handler,
        log=None,
        error_log=_ErrorLog(),
        # Accept one at a time, so that one process does not take what a sibling is idle for.
        environ={"wsgi.multiprocess": True},
    )


def address_of(environ: dict[str, Any], hops: int) -> str:
    """The client's address, behind `hops` trusted proxies."""
    return client_address(
        environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR"), hops
    )


def parameters_of(environ: dict[str, Any]) -> dict[str, str]:
    """The query's parameters, decoded; of several with one name the first counts."""
    found: dict[str, str] = {}
    # pywsgi gives the raw query as latin-1 text; what is not UTF-8 below becomes U+FFFD.
    for name, value in parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True):
        found.setdefault(name, value)
    return found


def cursor_of(text: str | None) -> int | None:
    """A cursor as text, or None for what is no cursor."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:
        return None
    return int(text)


def bearer_of(environ: dict[str, Any]) -> str | None:
    """The token of an ``Authorization: Bearer`` header."""
    scheme, _, token = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def take_over(handler: WSGIHandler) -> tuple[_socket.socket, bytes]:
    """Take the socket out of pywsgi's hands, non-blocking, and what was read past the headers.

    The descriptor is kept, not duplicated: with a duplicate, epoll would go on reporting the
    number that gevent has closed.
    """
    sock = handler.socket
    sock.settimeout(0.0)
    early = bytes(handler.rfile.peek())
    if early:
        early = bytes(handler.rfile.read(len(early)))
    family, kind = sock.family, sock.type
    handler.rfile.close()
    descriptor = sock.detach()
    handler.socket = None
    handler.close_connection = True
    handler.wsgi_input.content_length = 0  # pywsgi would read the rest of a body
    handler.wsgi_input.chunked_input = False
    raw = _socket.socket(family, kind, 0, descriptor)
    raw.setblocking(False)
    if family in (socket.AF_INET, socket.AF_INET6):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return raw, early


def answer(
    handler: WSGIHandler, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()
) -> None:
    """Answer the request as plain HTTP, and close."""
    handler.close_connection = True
    handler.start_response(
        f"{status} {HTTPStatus(status).phrase}",
        [*headers, ("Connection", "close"), ("Content-Length", str(len(body)))],
    )
    handler.write(body)


def refuse(
    handler: WSGIHandler, error: PylonError, headers: Headers = (), status: int | None = None
) -> None:
    """Answer with an error body, and close."""
    answer(
        handler, error.status if status is None else status, error_body(error),
        (("Content-Type", "application/json"), *headers),
    )


def error_body(error: PylonError) -> bytes:
    """``{"error": {...}}`` as JSON."""
    return msgspec.json.encode(error.body())
