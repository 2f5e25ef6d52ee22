"""A sync client that keeps the seqs of accepted events, to compare them with the log."""

from __future__ import annotations

from typing import Any

import websocket

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient
from workers.ws import frames


class SeqRecorder(SyncClient):
    """A client that keeps the seqs of what it accepted, pulled or live, and no rows."""

    def __init__(self, server: PylonServer, transport: str, token: str | None) -> None:
        super().__init__(server, transport, token, backoff_s=0.02)
        self.seqs: list[int] = []

    def _apply(self, change: dict[str, Any]) -> None:
        self.seqs.append(change["seq"])

    def _live_ws(self) -> None:
        """The same conversation, read in large pieces: the library's two reads for each frame
        would make this process the slowest part by far."""
        ws = websocket.WebSocket()
        ws.connect(
            f"ws://127.0.0.1:{self.server.port + 1}/",
            subprotocols=[f"bearer.{self.token}"] if self.token else None, timeout=60,
        )
        self._socket = ws
        self._opened()
        try:
            data = b""
            while not self._stop.is_set() and (more := ws.sock.recv(65_536)):
                data, at = data + more, 0
                while (frame := frame_at(data, at)) is not None:
                    opcode, payload, at = frame
                    if opcode == frames.TEXT:
                        self._on_live(payload.decode())
                    elif opcode == frames.PING:
                        ws.pong(payload)
                    elif opcode == frames.CLOSE:
                        self.close_codes.append(int.from_bytes(payload[:2], "big"))
                        return
                data = data[at:]
        finally:
            self._socket = None
            ws.close(timeout=0)


def frame_at(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Opcode and payload of the server's frame that begins there, and where it ends."""
    if len(data) < at + 2:
        return None
    size, start = data[at + 1], at + 2
    if size == 126:
        if len(data) < at + 4:
            return None
        size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
    assert size < 65_536, "rows here are small"
    end = start + size
    return (data[at] & 0x0F, data[start:end], end) if len(data) >= end else None


def seqs_of_the_log(server: PylonServer, cursor: int) -> list[int]:
    """Every seq after `cursor`, as pulls give them."""
    found: list[int] = []
    while True:
        _, body, _ = server.request("GET", f"/api/sync/pull?since={cursor}", token=ADMIN_TOKEN)
        found += [change["seq"] for change in body["changes"]]
        cursor = body["cursor"]["last_seq"]
        if not body["has_more"]:
            return found
