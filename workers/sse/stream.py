"""Server-sent events as bytes, and as a transport of the hub (spec/realtime.md §3).

A stream has no Content-Length and no chunks, and ends with its connection. An event is
``id: <seq>`` and one ``data:`` line, because JSON text has no line breaks. So `Last-Event-ID` is a
cursor.

Invariants: a stream's head names the origin of its page only if it is trusted. All receivers share
the bytes of an event. Bound: limits.SSE_IGNORED_BYTES of input behind the request, which the
transport ignores. Used by `workers.sse.server` and `workers.shards.server`.
"""

from __future__ import annotations

from pylon import limits
from pylon.auth.origin import PREFLIGHT_MAX_AGE_S
from pylon.errors import PylonError
from workers.hub import refusals
from workers.hub.close_codes import GOING_AWAY, NORMAL, SERVICE_RESTART
from workers.hub.connection import Connection
from workers.net.response import Headers, encode_head

CONNECTED = b": connected\n\n"
KEEPALIVE = b": keepalive\n\n"
RETRY = b"retry: 1000\n\n"  # milliseconds; sent when the server goes away


def preflight(headers: Headers) -> Headers:
    """Return the headers of the response to OPTIONS."""
    return (
        *headers,
        ("Access-Control-Allow-Methods", "GET, OPTIONS"),
        ("Access-Control-Allow-Headers", "Authorization, Last-Event-ID, Cache-Control"),
        ("Access-Control-Max-Age", PREFLIGHT_MAX_AGE_S),
    )


class EventStreamTransport:
    """`workers.hub.connection.Transport` and `workers.hub.admission.StreamTransport` for SSE."""

    role = "sse"
    expects_replies = False
    heartbeat = KEEPALIVE

    def __init__(self, heartbeat_s: float = limits.SSE_KEEPALIVE_S) -> None:
        self.heartbeat_s = heartbeat_s

    def stream_head(self, headers: Headers) -> bytes:
        """Return the head of the response, and a comment that shows the client that it is open."""
        return _stream_head(headers) + CONNECTED

    def frame(self, seq: int, wire: bytes) -> bytes:
        """Return the event as one block."""
        return b"id: %d\ndata: %b\n\n" % (seq, wire)

    def close_frame(self, code: int, reason: str) -> bytes:
        """Return when to reconnect if the server ends; otherwise nothing."""
        return RETRY if code in (GOING_AWAY, SERVICE_RESTART) else b""

    def compress(self, frame: bytes, deflate_window: int) -> bytes:
        """Return the frame. Never called: streams are not compressed."""
        return frame

    def received(self, connection: Connection, data: bytes) -> None:
        """Ignore bytes behind the request, up to a bound."""
        ignored_bytes = (connection.receiver or 0) + len(data)
        connection.receiver = ignored_bytes
        if ignored_bytes > limits.SSE_IGNORED_BYTES:
            connection.abort()

    def resumed(self, connection: Connection) -> None:
        """Never called: streams are not paused."""

    def charge(
        self, connection: Connection, answer_bytes: int = 0, *, work_bytes: int = 0
    ) -> None:
        """Never called: streams send no messages."""

    def refuse(
        self, connection: Connection, error: PylonError, headers: Headers = (), *, has_begun: bool
    ) -> None:
        """Send an HTTP error before the stream. In the stream, end it: the reconnect gets it."""
        if not has_begun:
            connection.send(refusals.refusal(error, headers))
        connection.close(NORMAL, awaits_peer=False)


def head_alone(headers: Headers) -> bytes:
    """Return the response to HEAD: the headers of a stream, with ``Connection: close``."""
    return _stream_head(headers, connection="close")


def _stream_head(headers: Headers, *, connection: str = "keep-alive") -> bytes:
    return encode_head(200, (
        ("Content-Type", "text/event-stream"),
        ("Cache-Control", "no-cache"),
        ("Connection", connection),
        *headers,
        ("X-Accel-Buffering", "no"),
    ))
