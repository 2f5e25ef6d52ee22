"""A stage whose ws workers write documents, and clients that follow documents over WebSocket.

`DocumentStage` serves the writer's port in a thread of the test's process, so that a push of a
worker and a write of the test are applied one after the other.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from pylon.bus.writer_port import WriterPort
from tests.support import stage
from tests.support.documents import LoroClient
from tests.support.stage import ADMIN_TOKEN, Stage
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames

FIELDS = [*stage.FIELDS, {"name": "body", "type": "richtext", "optional": True,
                            "unique": False}]
MANIFEST = {
    **stage.MANIFEST,
    "entities": [
        {"name": name, "fields": FIELDS, "indexes": [], "crdt": name != "Member"}
        for name in stage.READ_RULES
    ],
}


class DocumentStage(Stage):
    """A stage whose workers can write, through a writer's port in the test's process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, MANIFEST)
        self._one = threading.Lock()
        self._port = WriterPort(self.runtime)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            for peer, requests in self._port.receive(0.05):
                with self._one:
                    self._port.reply(peer, self.engine.apply(requests).replies)
        self._port.close()

    def write(self, *ops: Any, publish: bool = True) -> Any:
        with self._one:
            return super().write(*ops, publish=publish)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        super().close()


class Follower:
    """A socket and the documents that it follows."""

    def __init__(self, port: int, token: str | None = ADMIN_TOKEN) -> None:
        self.socket = WebSocketClient(port, token=token)
        self.copies: dict[str, LoroClient] = {}

    def say(self, kind: str, entity: str, row_id: str, name: str = "rowId") -> None:
        message = {"type": kind, "entity": entity, name: row_id}
        self.socket.send_frame(frames.TEXT, json.dumps(message).encode())

    def follow(self, entity: str, row_id: str, name: str = "rowId") -> LoroClient:
        """Subscribe, and take the first frame."""
        self.say("crdt-subscribe", entity, row_id, name)
        self.copies[row_id] = LoroClient(self.binary(entity, row_id))
        return self.copies[row_id]

    def binary(self, entity: str, row_id: str) -> bytes:
        """The payload of the next message, which is a frame of this document."""
        opcode, data = self.socket.read_frame_except()
        assert opcode == frames.BINARY, (opcode, data)
        names = entity.encode(), row_id.encode()
        head = b"\x10" + b"".join(len(n).to_bytes(2, "big") + n for n in names)
        assert data.startswith(head)
        return data[len(head):]

    def hear(self, entity: str, row_id: str) -> Any:
        """Take the event of a change, and then its frame; the document as a row."""
        assert self.socket.read_json()["row_id"] == row_id
        self.copies[row_id].hear(self.binary(entity, row_id))
        return self.copies[row_id].row()
