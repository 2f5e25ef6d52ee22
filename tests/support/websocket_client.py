"""A WebSocket client that hides nothing, and frames as clients make them.

`WebSocketClient` answers no ping and no close by itself, so that a test sees each frame that the
server sends. Used by the tests of ws workers, of the main port and of attacks.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any, Final

from tests.support.wire import Wire, parse_head
from workers.ws import frames

_MASK: Final = b"\x0a\x0b\x0c\x0d"


class WebSocketClient(Wire):
    """A connection after its handshake."""

    def __init__(
        self, port: int, *, token: str | None = None, path: str = "/",
        headers: dict[str, str] | None = None, receive_buffer_bytes: int | None = None,
        early: bytes = b"", upgraded: bool = True,
    ) -> None:
        """Connect and send the handshake.

        Args:
            headers: added to those of the handshake, or instead of them; "" leaves one out.
            early: bytes that follow the handshake at once.
            upgraded: whether the server must accept it.
        """
        super().__init__(port, receive_buffer_bytes=receive_buffer_bytes)
        lines = {
            "Host": f"127.0.0.1:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            **({"Authorization": f"Bearer {token}"} if token else {}),
            **(headers or {}),
        }
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value != "")
        self.send(f"GET {path} HTTP/1.1\r\n{text}\r\n".encode("latin-1") + early)
        self.head = self.read_until(b"\r\n\r\n")
        self.status, self.headers = parse_head(self.head)
        if upgraded:
            assert self.status == 101, self.head

    def read_frame(self) -> tuple[int, bytes]:
        """Return the next frame: opcode and payload."""
        first, size_bytes = self.read_exactly(2)
        assert first & 0xF0 == 0x80, "server frames are whole, without reserved bits"
        assert not size_bytes & 0x80, "server frames are not masked"
        if size_bytes == 126:
            size_bytes = int.from_bytes(self.read_exactly(2), "big")
        elif size_bytes == 127:
            size_bytes = int.from_bytes(self.read_exactly(8), "big")
        return first & 0x0F, self.read_exactly(size_bytes)

    def read_frame_except(self, *opcodes: int) -> tuple[int, bytes]:
        """Return the next frame that has none of `opcodes`; the server's pings never count."""
        while True:
            opcode, payload = self.read_frame()
            if opcode != frames.PING and opcode not in opcodes:
                return opcode, payload

    def read_control(self) -> tuple[int, bytes]:
        """Return the next frame that is no text."""
        return self.read_frame_except(frames.TEXT)

    def read_json(self) -> Any:
        """Return the next text message, decoded."""
        opcode, payload = self.read_frame_except()
        assert opcode == frames.TEXT, (opcode, payload)
        return json.loads(payload)

    def read_events(self, count: int) -> list[tuple[str, str]]:
        """Return the next `count` events as (kind, text of the row)."""
        events = [self.read_json() for _ in range(count)]
        return [
            (e["kind"], e["data"]["text"] if "data" in e else e["row_id"]) for e in events
        ]

    def read_close(self) -> tuple[int, str]:
        """Return code and reason of the close frame."""
        opcode, payload = self.read_control()
        assert opcode == frames.CLOSE, (opcode, payload)
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def send_frame(
        self, opcode: int, payload: bytes, *, mask: bool = True, fin: bool = True
    ) -> None:
        self.send(client_frame(opcode, payload, mask=mask, fin=fin))


def client_frame(opcode: int, payload: bytes, *, mask: bool = True, fin: bool = True) -> bytes:
    """Return a frame as clients make them."""
    size_bytes = len(payload)
    mask_bit = 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | opcode])
    if size_bytes < 126:
        head += bytes([mask_bit | size_bytes])
    elif size_bytes < 65_536:
        head += bytes([mask_bit | 126]) + size_bytes.to_bytes(2, "big")
    else:
        head += bytes([mask_bit | 127]) + size_bytes.to_bytes(8, "big")
    if not mask:
        return head + payload
    return head + _MASK + bytes(byte ^ _MASK[i % 4] for i, byte in enumerate(payload))
