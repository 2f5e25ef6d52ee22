"""Messages of sockets as the matrix reads them: what a caller gets up to the answer of a ping.

A ping's answer follows everything that the socket was to get before it (docs/sync.md), so a driver
can tell "nothing" from "not yet". Every text is searched for the value of a hidden field.
"""

from __future__ import annotations

import json
from typing import Any

from tests.matrix.app import MARK
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames


def send_message(socket: WebSocketClient, message: dict[str, Any]) -> None:
    """Send a message."""
    socket.send_frame(frames.TEXT, json.dumps(message).encode())


def read_until_pong(
    socket: WebSocketClient, seq: int = 0
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Send a ping, and return the messages and the documents that come before its answer.

    Args:
        seq: send pings until an answer says that the socket has had all changes up to this one.
    """
    send_message(socket, {"type": "ping", "id": "end"})
    messages: list[dict[str, Any]] = []
    documents: list[bytes] = []
    while True:
        opcode, payload = socket.read_frame_except()
        if opcode == frames.BINARY:
            documents.append(payload)
            continue
        assert opcode == frames.TEXT, (opcode, payload)
        assert MARK not in payload.decode()
        message = json.loads(payload)
        if message.get("type") != "pong":
            messages.append(message)
        elif message["seq"] < seq:
            send_message(socket, {"type": "ping", "id": "end"})
        else:
            return messages, documents


def content_of(document: bytes, entity: str, row_id: str) -> bytes:
    """Return Loro's bytes of a frame of a document."""
    head = b"\x10" + b"".join(
        len(text).to_bytes(2, "big") + text.encode() for text in (entity, row_id)
    )
    assert document.startswith(head), document[:100]
    return document[len(head):]
