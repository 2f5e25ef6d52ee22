"""WebSocket as a transport of the hub: text frames out, and the conversation with the client.

Invariants: an event's frame is made once and shared, and packed (permessage-deflate) once for
all who agreed to the same window; frames below `limits.DEFLATE_MIN_BYTES` go as they are. Every
ping is answered, every close is answered with its own code, every breach of the protocol with
the code that RFC 6455 names. Messages go to `on_text` (the ws worker's is
`workers.ws.conversation`) and `on_binary`; without one they are counted and ignored
(spec/realtime.md §2.3). Used by the ws and the shards workers; all methods run in the poller's
callbacks or in the feed and never block.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pylon import limits, metrics
from pylon.errors import PylonError, ResyncRequired
from workers.hub.connection import OVERFLOW, Connection
from workers.hub.feed import SERVICE_RESTART
from workers.ws import deflate, frames

_NO_STATUS = 1005  # a close frame without a code; itself never on the wire


class WebSocketTransport:
    """`workers.hub.connection.Transport` and `workers.hub.reception.Greeter` for WebSocket."""

    expects_replies = True
    greeting = b""  # the handshake's 101 was all
    heartbeat = frames.encode(frames.PING, b"")

    def __init__(
        self, role: str, max_message_bytes: int, heartbeat_s: float = limits.SOCKET_PING_S
    ) -> None:
        self.role = role
        self.heartbeat_s = heartbeat_s
        self._max_message_bytes = max_message_bytes
        self.on_text: Callable[[Connection, str], None] = _ignore
        self.on_binary: Callable[[Connection, bytes], None] = _ignore

    def frame(self, seq: int, wire: bytes) -> bytes:
        """The event's JSON as one text frame."""
        return frames.encode(frames.TEXT, wire)

    def packed(self, frame: bytes, packing: int) -> bytes:
        """See the function."""
        return packed(frame, packing)

    def farewell(self, code: int, reason: str) -> bytes:
        """A close frame."""
        if code == _NO_STATUS:
            return frames.encode(frames.CLOSE, b"")
        return frames.encode_close(code, reason)

    def received(self, connection: Connection, data: bytes) -> None:
        """Take part in the conversation."""
        parser = connection.receiver
        if parser is None:  # most clients never send more than pongs
            if frames.is_pong(data):
                return
            parser = connection.receiver = frames.Parser(
                self._max_message_bytes, unpacks=connection.packing != 0
            )
        pongs: list[bytes] = []  # leave in one write: who floods with pings costs one call
        for item in parser.feed(data):
            if isinstance(item, frames.Ping):
                pongs.append(frames.encode(frames.PONG, item.data))
                continue
            if pongs:
                connection.send(b"".join(pongs), len(pongs))
                pongs.clear()
            if isinstance(item, frames.Text):
                self.on_text(connection, item.text)
            elif isinstance(item, frames.Binary):
                self.on_binary(connection, item.data)
            elif isinstance(item, frames.Close):
                _answer_close(connection, item)
            elif isinstance(item, frames.Violation):
                connection.close(item.code, item.reason, awaits_peer=False)
        if pongs:
            connection.send(b"".join(pongs), len(pongs))

    def refuse(self, connection: Connection, error: PylonError, *, greeted: bool) -> None:
        """Tell a client that it must pull anew, or come again later."""
        if isinstance(error, ResyncRequired):
            connection.send(frames.encode(frames.TEXT, _resync(error)))
            connection.close(SERVICE_RESTART, "resync required")
        else:
            connection.close(OVERFLOW, error.code)


def packed(frame: bytes, packing: int) -> bytes:
    """The frame compressed with a window of `packing` bits, if that makes it smaller."""
    if not packing or len(frame) < limits.DEFLATE_MIN_BYTES:
        return frame
    payload = deflate.pack(frames.payload_of(frame), packing)
    made = frames.encode(frame[0] & 0x0F, payload, packed=True)
    if len(made) >= len(frame):
        return frame
    metrics.PACKING_SAVED.inc(len(frame) - len(made))
    return made


def _ignore(connection: Connection, message: str | bytes) -> None:
    metrics.MESSAGES_RECEIVED.labels("ignored").inc()


def _answer_close(connection: Connection, close: frames.Close) -> None:
    if connection.is_open:
        connection.close(
            _NO_STATUS if close.code is None else close.code, close.reason, awaits_peer=False
        )
    else:
        connection.finish()


def _resync(error: ResyncRequired) -> bytes:
    return msgspec.json.encode(
        {"type": "resync", "code": error.code, "oldest_seq": error.details.get("oldest_seq", 0)}
    )
