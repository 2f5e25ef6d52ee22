"""A client of shards over WebSocket, as an app's own would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import websocket

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S


class Player:
    """A client of a shard."""

    def __init__(
        self, server: PylonServer, shard: str, *, token: str | None = None, sid: str | None = None,
        main_port: bool = False, seat: str | None = None, **options: str,
    ) -> None:
        """
        Args:
            token: of a session; the socket is anonymous without one.
            seat: the token of a seat that an earlier connection had.
            options: further members of the query string.
        """
        query = "&".join(
            f"{key}={value}" for key, value in {"shard": shard, "sid": sid, **options}.items()
            if value is not None
        )
        port, path = (server.port, "/api/shards/ws") if main_port else (server.port + 3, "/")
        headers = [] if token is None else [f"Authorization: Bearer {token}"]
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}{path}?{query}", timeout=WAIT_S, header=headers,
            subprotocols=None if seat is None else [f"seat.{seat}"],
        )
        self.packed = options.get("format") == "msgpack"
        self.texts: list[Any] = []

    def frame(self) -> tuple[int, Any]:
        """The next snapshot: tick and body. Texts before it are kept in `texts`."""
        while True:
            opcode, data = self.socket.recv_data()
            if opcode == websocket.ABNF.OPCODE_BINARY:
                body = data[8:]
                value = msgspec.msgpack.decode(body) if self.packed else json.loads(body)
                return struct.unpack(">Q", data[:8])[0], value
            if opcode == websocket.ABNF.OPCODE_TEXT:
                self.texts.append(json.loads(data))
                continue
            raise AssertionError(f"closed: {self._reason(data)}")

    def until(self, seen: Callable[[Any], bool]) -> Any:
        """The first snapshot for which `seen` holds."""
        for _ in range(1_000):
            _, body = self.frame()
            if seen(body):
                return body
        raise AssertionError("never seen")

    def text(self) -> Any:
        """The next text frame."""
        while not self.texts:
            self.frame()
        return self.texts.pop(0)

    def closed(self) -> tuple[int, str]:
        """The close code and reason that the server ends with."""
        while True:
            # Not recv_data, which answers the close: a server that has ended takes no answer.
            frame = self.socket.recv_frame()
            if frame is not None and frame.opcode == websocket.ABNF.OPCODE_CLOSE:
                return self._reason(frame.data)

    def say(self, value: Any, client_seq: int | None = None) -> None:
        message = {"input": value}
        if client_seq is not None:
            message["client_seq"] = client_seq
        self.socket.send(json.dumps(message))

    @staticmethod
    def _reason(data: bytes) -> tuple[int, str]:
        return struct.unpack(">H", data[:2])[0], data[2:].decode()


def user(server: PylonServer, name: str) -> str:
    """The token of a new session of the user `name`."""
    status, body, _ = server.request(
        "POST", "/api/auth/session", {"user_id": name}, token=ADMIN_TOKEN
    )
    assert status in (200, 201), body
    token: str = body["token"]
    return token
