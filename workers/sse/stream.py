"""Server-sent events as bytes, and as a transport of the hub (spec/realtime.md §3).

Raw until close: no Content-Length, no chunks. An event is ``id: <seq>`` and one ``data:`` line
(JSON text has no line breaks), so that `Last-Event-ID` is a cursor.

Invariants: the CORS origin is the configured one, never the request's; an event's block is made
once and shared. Bytes that a client sends after its request are ignored, up to
`limits.SSE_IGNORED_BYTES`. Used by `workers.sse.server`.
"""

from __future__ import annotations

from pylon import limits
from pylon.config import Config
from pylon.errors import PylonError
from workers.hub import refusals
from workers.hub.close_codes import GOING_AWAY
from workers.hub.connection import Connection
from workers.net.response import Headers, encode_head

CONNECTED = b": connected\n\n"
KEEPALIVE = b": keepalive\n\n"
RETRY = b"retry: 1000\n\n"  # milliseconds; sent when the server goes away
_ENDED = 1000


def cors_of(config: Config) -> Headers:
    """The CORS headers of this port: the configured origin, with cookies if it is a single one."""
    if config.cors_origin is None:
        return ()
    origin = (("Access-Control-Allow-Origin", config.cors_origin),)
    if config.cors_origin == "*":
        return origin
    return (*origin, ("Access-Control-Allow-Credentials", "true"), ("Vary", "Origin"))


def preflight(cors: Headers) -> Headers:
    """The headers that answer OPTIONS."""
    return (
        *cors,
        ("Access-Control-Allow-Methods", "GET, OPTIONS"),
        ("Access-Control-Allow-Headers", "Authorization, Last-Event-ID, Cache-Control"),
        ("Access-Control-Max-Age", "86400"),
    )


class EventStreamTransport:
    """`workers.hub.connection.Transport` and `workers.hub.admission.StreamTransport` for SSE."""

    role = "sse"
    expects_replies = False
    heartbeat = KEEPALIVE

    def __init__(self, cors: Headers, heartbeat_s: float = limits.SSE_KEEPALIVE_S) -> None:
        self.heartbeat_s = heartbeat_s
        self._cors = cors
        self.preamble = _stream_head(cors) + CONNECTED

    def frame(self, seq: int, wire: bytes) -> bytes:
        """The event as one block."""
        return b"id: %d\ndata: %b\n\n" % (seq, wire)

    def close_frame(self, code: int, reason: str) -> bytes:
        """A stream just ends; when the server goes away it says when to come back."""
        return RETRY if code == GOING_AWAY else b""

    def packed(self, frame: bytes, deflate_window: int) -> bytes:
        """Never asked for: streams are not packed."""
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
        """Never called: streams ask for nothing."""

    def refuse(self, connection: Connection, error: PylonError, *, greeted: bool) -> None:
        """Before the stream an HTTP error; within it the end: the reconnect gets the error."""
        if not greeted:
            connection.send(refusals.refusal(error, self._cors))
        connection.close(_ENDED, awaits_peer=False)


def head_alone(cors: Headers) -> bytes:
    """The answer to HEAD: the headers of a stream, and the end of the connection."""
    return _stream_head(cors, connection="close")


def _stream_head(cors: Headers, *, connection: str = "keep-alive") -> bytes:
    return encode_head(200, (
        ("Content-Type", "text/event-stream"),
        ("Cache-Control", "no-cache"),
        ("Connection", connection),
        *cors,
        ("X-Content-Type-Options", "nosniff"),
        ("X-Accel-Buffering", "no"),
    ))
