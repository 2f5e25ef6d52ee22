"""A connection as a subscriber of a shard (`pylon.realtime.shard.Sink`), and its frames.

On a WebSocket a snapshot is a binary frame, eight bytes of tick number (big-endian) and the
payload, and everything else is text (spec/realtime.md §4.2). On an event stream it is a block
with the tick as its id.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from pylon import metrics
from pylon.auth_context import AuthContext
from pylon.errors import InputRejected, PylonError
from pylon.realtime.shard import Shard
from pylon.realtime.snapshots import Format, Wire
from workers.hub.connection import Connection
from workers.ws import frames


class WebSocketWire:
    """`pylon.realtime.snapshots.Wire` for WebSockets."""

    __slots__ = ("format",)

    def __init__(self, format: Format) -> None:  # noqa: A002  the protocol's name
        self.format = format

    def frame(self, tick: int, payload: bytes) -> bytes:
        """A binary frame."""
        return frames.encode(frames.BINARY, tick.to_bytes(8, "big") + payload)


class StreamWire:
    """`pylon.realtime.snapshots.Wire` for event streams, which are JSON."""

    __slots__ = ()
    format = Format.JSON

    def frame(self, tick: int, payload: bytes) -> bytes:
        """A block with an id, so that `Last-Event-ID` is a tick."""
        return b"id: %d\ndata: %b\n\n" % (tick, payload)


WEBSOCKET: Final[dict[Format, Wire]] = {form: WebSocketWire(form) for form in Format}
STREAM: Final[Wire] = StreamWire()


class _Message(msgspec.Struct):
    """What a client sends (spec/realtime.md §4.2)."""

    input: msgspec.Raw
    client_seq: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None


_MESSAGES: Final[
    dict[Format, msgspec.json.Decoder[_Message] | msgspec.msgpack.Decoder[_Message]]
] = {
    Format.JSON: msgspec.json.Decoder(_Message),
    Format.MSGPACK: msgspec.msgpack.Decoder(_Message),
}


class Subscriber:
    """One connection, from its entry into a shard to its end."""

    __slots__ = (
        "_held", "acks", "auth", "connection", "delta", "seat_token", "shard", "sid", "skip_to",
        "wire",
    )

    def __init__(
        self, connection: Connection, shard: Shard, sid: str, wire: Wire, *,
        delta: bool = False, acks: bool = False, skip_to: int = 0, holds: bool = False,
    ) -> None:
        """
        Args:
            skip_to: the client has seen this tick, and wants newer ones only.
            holds: send nothing before `begin`.
        """
        self._held: list[bytes] | None = [] if holds else None
        self.connection = connection
        self.seat_token: str | None = None  # where its place is kept after the connection
        self.shard = shard
        self.sid = sid
        self.auth: AuthContext = connection.caller.auth
        self.wire = wire
        self.delta = delta
        self.acks = acks
        self.skip_to = skip_to

    def send(self, frame: bytes) -> None:
        """`Sink.send`."""
        if self.shard.tick <= self.skip_to:
            return
        if self._held is not None:
            self._held.append(frame)
        else:
            self.connection.send(frame)

    def begin(self, preamble: bytes) -> None:
        """Send the greeting, and what was held behind it."""
        held, self._held = self._held or [], None
        self.connection.send(preamble + b"".join(held), 1 + len(held))

    def reject(self, client_seq: int | None, reason: str) -> None:
        """`Sink.reject`: a text frame, which clients that do not know it ignore."""
        self.tell({"type": "input-rejected", "client_seq": client_seq, "reason": reason})

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that is no snapshot; on event streams there are none."""
        if self.wire is not STREAM:
            self.connection.send(frames.encode(frames.TEXT, msgspec.json.encode(message)))

    def end(self, code: int, reason: str) -> None:
        """`Sink.end`. Before `begin` it is the handler's to answer."""
        if self._held is not None:
            return
        self.connection.close(code, reason, awaits_peer=self.wire is not STREAM)

    def on_message(self, data: str | bytes, now_s: float) -> None:
        """The client has sent an input. A refusal is told, and ends nothing."""
        form = self.wire.format if isinstance(data, bytes) else Format.JSON
        client_seq = None
        try:
            try:
                message = _MESSAGES[form].decode(data.encode() if isinstance(data, str) else data)
            except (msgspec.MsgspecError, RecursionError, UnicodeError) as ex:
                raise InputRejected(f"invalid message: {ex}") from ex
            client_seq = message.client_seq
            self.shard.submit(
                self.sid, self.auth, message.input, now_s, sink=self, client_seq=client_seq,
                format=form,
            )
        except PylonError as ex:
            metrics.SHARD_INPUTS_REJECTED.labels(ex.code).inc()
            self.reject(client_seq, ex.message)
