"""A WebSocket without IO: the handshake, messages, pings and the end of a connection.

The frames are those of the websockets package; the bytes come and go as effects. A socket that is
silent for 25 s is pinged; after a second silent ping it counts as lost. Any byte is a sign of life.

Invariants: messages come in the order of the server. Messages that came before a close are returned
before the close is raised. Called by `links`, `changes` and `shards`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from pylon_client.effects import (
    WOKEN,
    Channel,
    Connect,
    EffectFailed,
    Receive,
    Shut,
    Steps,
    Transmit,
    Wake,
)

OPEN_TIMEOUT_S: Final = 8.0
PING_S: Final = 25.0
_UNANSWERED_PINGS: Final = 2
_NORMAL: Final = 1000
_LOST: Final = 1006

# The package logs the headers of the handshake, and so the token, at the level DEBUG.
_frames_log: Final = logging.getLogger("pylon_client.frames")
_frames_log.setLevel(logging.WARNING)


class SocketClosed(Exception):
    """The connection has ended. 1006: without a close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code} {reason}".strip())
        self.code = code
        self.reason = reason


class HandshakeRefused(Exception):
    """The server answered the handshake with another status than 101."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(f"the handshake was answered with {status}")
        self.status = status
        self.content = content


class Message(NamedTuple):
    """A message of the server; a text is its UTF-8."""

    is_binary: bool
    data: bytes


class Socket:
    """An open WebSocket. `wake` ends its waits."""

    def __init__(self, protocol: ClientProtocol, channel: Channel, wake: Wake | None) -> None:
        self._protocol = protocol
        self._channel = channel
        self._wake = wake
        self._heard_at_s = time.monotonic()
        self._pings = 0
        self._parts: list[bytes] = []
        self._parts_are_binary = False

    @property
    def subprotocol(self) -> str | None:
        return self._protocol.subprotocol

    def read(self, timeout_s: float = PING_S) -> Steps[list[Message]]:
        """Return the messages that have come; an empty list after the timeout or a wake.

        Raises:
            SocketClosed: the connection has ended.
            EffectFailed: the network failed.
        """
        ends_at_s = time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            ping_at_s = self._heard_at_s + PING_S * (self._pings + 1)
            if now_s >= ping_at_s:
                if self._pings == _UNANSWERED_PINGS:
                    raise SocketClosed(_LOST, "the server did not answer two pings")
                self._pings += 1
                self._protocol.send_ping(b"")
                yield from self._flush()
                continue
            wait_s = min(ping_at_s, ends_at_s) - now_s
            data = yield Receive(self._channel, max(wait_s, 0.0), self._wake)
            if data is WOKEN:
                return []
            if data is None:
                if time.monotonic() >= ends_at_s:
                    return []
                continue
            self._heard_at_s = time.monotonic()
            self._pings = 0
            messages = self._feed(data)
            yield from self._flush()
            if messages:
                return messages
            self._raise_if_closed()

    def _feed(self, data: bytes) -> list[Message]:
        protocol = self._protocol
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        found: list[Message] = []
        for event in protocol.events_received():
            if not isinstance(event, Frame):
                continue
            opcode = event.opcode
            if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
                if event.fin:
                    found.append(Message(opcode is Opcode.BINARY, bytes(event.data)))
                else:
                    self._parts = [bytes(event.data)]
                    self._parts_are_binary = opcode is Opcode.BINARY
            elif opcode is Opcode.CONT:
                self._parts.append(bytes(event.data))
                if event.fin:
                    found.append(Message(self._parts_are_binary, b"".join(self._parts)))
                    self._parts = []
        return found

    def _raise_if_closed(self) -> None:
        protocol = self._protocol
        if protocol.state is not State.OPEN:
            received = protocol.close_rcvd
            if received is None:
                raise SocketClosed(_LOST, "")
            raise SocketClosed(received.code, received.reason)

    def send(self, texts: Sequence[bytes]) -> Steps[None]:
        """Send texts in UTF-8. Raises: SocketClosed, EffectFailed."""
        self._raise_if_closed()
        for text in texts:
            self._protocol.send_text(text)
        yield from self._flush()

    def close(self, code: int = _NORMAL) -> Steps[None]:
        """Send a close frame, and close the connection. Never fails."""
        try:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(code)
                yield from self._flush()
        except EffectFailed:
            pass
        yield Shut(self._channel)

    def _flush(self) -> Steps[None]:
        data = b"".join(self._protocol.data_to_send())
        if data:
            yield Transmit(self._channel, data)


def open_socket(
    url: str, token: str | None, wake: Wake | None = None, subprotocols: Sequence[str] = (),
) -> Steps[Socket]:
    """Open a WebSocket within `OPEN_TIMEOUT_S` seconds.

    Raises:
        HandshakeRefused: another answer than 101.
        EffectFailed: the network failed, or no answer came in time.
    """
    parts = urlsplit(url)
    is_tls = parts.scheme == "wss"
    port = parts.port or (443 if is_tls else 80)
    ends_at_s = time.monotonic() + OPEN_TIMEOUT_S
    channel = yield Connect(parts.hostname or "", port, is_tls, OPEN_TIMEOUT_S)
    try:
        deflate = ClientPerMessageDeflateFactory(
            server_no_context_takeover=True, client_no_context_takeover=True
        )
        protocol = ClientProtocol(
            parse_uri(url), extensions=[deflate], max_size=None, logger=_frames_log,
            subprotocols=[Subprotocol(each) for each in subprotocols] or None,
        )
        request = protocol.connect()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        protocol.send_request(request)
        yield Transmit(channel, b"".join(protocol.data_to_send()))
        socket = Socket(protocol, channel, wake)
        while protocol.state is State.CONNECTING:
            left_s = ends_at_s - time.monotonic()
            data = yield Receive(channel, max(left_s, 0.0))
            if data is None:
                raise EffectFailed(f"no handshake within {OPEN_TIMEOUT_S:g} s", is_timeout=True)
            if data:
                protocol.receive_data(data)
            else:
                protocol.receive_eof()
            if protocol.handshake_exc is not None:
                raise _handshake_error(protocol)
            if not data:
                raise EffectFailed("the server closed the connection during the handshake")
    except BaseException:
        yield Shut(channel)
        raise
    return socket


def _handshake_error(protocol: ClientProtocol) -> Exception:
    for event in protocol.events_received():
        if isinstance(event, Response):
            return HandshakeRefused(event.status_code, bytes(event.body or b""))
    return EffectFailed(f"the handshake failed: {protocol.handshake_exc}")
