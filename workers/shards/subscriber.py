"""A connection as a subscriber of a shard (`pylon.realtime.shard.Sink`), and its frames.

On a WebSocket a snapshot is a binary frame: the tick number in eight bytes (big-endian), then the
payload. All other messages are text frames (spec/realtime.md §4.2). On an event stream a snapshot
is an event with the tick as its id. Called by `workers.shards.handler`; the shard calls `Sink`'s
methods.
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
        """Return a binary frame."""
        return frames.encode(frames.BINARY, tick.to_bytes(8, "big") + payload)


class StreamWire:
    """`pylon.realtime.snapshots.Wire` for event streams, which are JSON."""

    __slots__ = ()
    format = Format.JSON

    def frame(self, tick: int, payload: bytes) -> bytes:
        """Return an event whose id is the tick, so that `Last-Event-ID` names a tick."""
        return b"id: %d\ndata: %b\n\n" % (tick, payload)


WEBSOCKET: Final[dict[Format, Wire]] = {form: WebSocketWire(form) for form in Format}
STREAM: Final[Wire] = StreamWire()


class _Message(msgspec.Struct):
    """An input of a client (spec/realtime.md §4.2)."""

    input: msgspec.Raw
    client_seq: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None


_MESSAGES: Final[
    dict[Format, msgspec.json.Decoder[_Message] | msgspec.msgpack.Decoder[_Message]]
] = {
    Format.JSON: msgspec.json.Decoder(_Message),
    Format.MSGPACK: msgspec.msgpack.Decoder(_Message),
}


class Subscriber:
    """One connection that is subscribed to one shard."""

    __slots__ = (
        "_held", "acks", "auth", "connection", "delta", "reconnect_token", "shard", "sid",
        "skip_to", "wire",
    )

    def __init__(
        self, connection: Connection, shard: Shard, sid: str, wire: Wire, *,
        delta: bool = False, acks: bool = False, skip_to: int = 0, holds: bool = False,
    ) -> None:
        """
        Args:
            skip_to: the last tick that the client has seen; older snapshots are not sent.
            holds: buffer all frames until `begin`.
        """
        self._held: list[bytes] | None = [] if holds else None
        self.connection = connection
        self.reconnect_token: str | None = None  # reconnect token, if the kind issues them
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

    def begin(self, head: bytes) -> None:
        """Send the head of an event stream, then the buffered frames."""
        held, self._held = self._held or [], None
        self.connection.send(head + b"".join(held), 1 + len(held))

    def reject(self, client_seq: int | None, reason: str) -> None:
        """Send `Sink.reject`'s refusal as a text frame, which older clients ignore."""
        self.send_message({"type": "input-rejected", "client_seq": client_seq, "reason": reason})

    def send_message(self, message: dict[str, Any]) -> None:
        """Send a text message. Event streams carry snapshots only, so they get none."""
        if self.wire is not STREAM:
            self.connection.send(frames.encode(frames.TEXT, msgspec.json.encode(message)))

    def end(self, code: int, reason: str) -> None:
        """`Sink.end`. Before `begin` it is the handler's to answer."""
        if self._held is not None:
            return
        self.connection.close(code, reason, awaits_peer=self.wire is not STREAM)

    def on_message(self, data: str | bytes, now_s: float) -> None:
        """Submit an input of the client. The client receives a refusal; the connection stays."""
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
