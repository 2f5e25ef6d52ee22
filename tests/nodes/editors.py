"""Editors: devices of one user that edit the document of one row, each on nodes of its own.

A device inserts marks into the text of its copy and pushes each edit over HTTP, again and on the
next node until one has acknowledged it. It hears the others' edits over a socket on another node.
The server may never send it a frame that builds on one which it has not got.

`Editing.problems` lets the devices rest. Then the row has the same text on all nodes, with each
acknowledged mark once and no mark that nobody made; and each device's copy converges to that text
within `CONVERGE_S`.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import websocket

from tests.nodes.roamer import FAILURES, Refused, Roamer, hear
from tests.support.documents import LoroClient
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

CONVERGE_S: Final = 12.0
SETTLE_S: Final = 60.0
OPEN_S: Final = 5.0
PACE_S: Final = 0.4
ENTITY: Final = "Note"


class Device:
    """One device, in a thread of its own."""

    def __init__(
        self, nodes: Sequence[PylonServer], number: int, editing: Editing, token: str
    ) -> None:
        self._roamer = Roamer(nodes, number, token)
        self._editing = editing
        self._random = random.Random(number)
        self._number = number
        self._copy: LoroClient | None = None
        self._marks = 0
        self.made: list[str] = []
        self.acknowledged: list[str] = []
        self.rests_at = 0
        self.failure = ""
        self.thread = threading.Thread(target=self._run, daemon=True)

    def text(self) -> str:
        """Return the text of its copy. Call it while the device rests."""
        return "" if self._copy is None else self._copy.text("body").to_string()

    def _run(self) -> None:
        while not self._editing.stopping.is_set():
            ws = None
            try:
                ws = self._open()
                self._edit(ws)
            except Refused as ex:
                if ex.status < 500 and ex.status not in (401, 429):
                    self.failure = f"document: device {self._number} was refused: {ex}"
            except FAILURES:
                pass  # its node is away
            except AssertionError as ex:
                self.failure = f"document: device {self._number}: {ex!r}"
                return
            finally:
                self.rests_at = 0
                if ws is not None:
                    ws.close(timeout=0)
            self._roamer.leave()
            self._editing.stopping.wait(self._random.uniform(0.02, 0.2))

    def _open(self) -> websocket.WebSocket:
        """Subscribe, and take the whole document."""
        ws = self._roamer.connect("?changes=0")
        ws.send(json.dumps({
            "type": "crdt-subscribe", "entity": ENTITY, "rowId": self._editing.row_id,
        }))
        deadline_s = time.monotonic() + OPEN_S
        while not self._hear(ws, 1.0):
            if time.monotonic() > deadline_s:
                raise ConnectionError("no document")
        return ws

    def _edit(self, ws: websocket.WebSocket) -> None:
        """Make edits and hear the others' until a node fails."""
        while not self._editing.stopping.is_set():
            pause = self._editing.pause
            if self.rests_at != pause or not pause:
                self._insert_mark()
                self.rests_at = pause
            until_s = time.monotonic() + PACE_S * self._random.uniform(0.5, 1.5)
            while (left_s := until_s - time.monotonic()) > 0:
                self._hear(ws, left_s)

    def _insert_mark(self) -> None:
        assert self._copy is not None
        self._marks += 1
        mark = f"{self._number}:{self._marks}"
        text = self._copy.text("body")
        words = text.to_string().split(";")  # between two marks, never within one
        at = len("".join(f"{word};" for word in words[:self._random.randrange(len(words))]))
        text.insert(at, f"{mark};")
        self.made.append(mark)
        update = self._copy.update()
        while not self._editing.stopping.is_set():
            try:
                self._push(update)
            except Refused as ex:
                if ex.code == "CRDT_HISTORY_MISSING":
                    update = self._copy.everything()
                    continue
                if ex.status < 500 and ex.status != 429:
                    raise
            except FAILURES:
                pass
            else:
                self.acknowledged.append(mark)
                return
            self._roamer.leave()
            self._editing.stopping.wait(self._random.uniform(0.02, 0.2))

    def _push(self, update: bytes) -> None:
        path = f"/api/crdt/{ENTITY}/{self._editing.row_id}"
        self._roamer.ask("POST", path, {"update": update.hex()})

    def _hear(self, ws: websocket.WebSocket, timeout_s: float) -> bool:
        """Take one frame; return whether it was one of the document."""
        heard = hear(ws, timeout_s)
        if heard is None:
            return False
        opcode, data = heard
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise ConnectionError("closed")
        if opcode != websocket.ABNF.OPCODE_BINARY:
            return False
        payload = data[5 + len(ENTITY) + len(self._editing.row_id.encode()):]
        if self._copy is None:
            self._copy = LoroClient(payload)
        else:
            status = self._copy.doc.import_(payload)
            assert status.pending is None, "the server sent an update before what it builds on"
        return True


class Editing:
    """All devices of a trial, and the row whose document they edit."""

    def __init__(self, nodes: Sequence[PylonServer], devices: int = 3) -> None:
        self._nodes = nodes
        token, user_id = nodes[0].guest()
        status, body, _ = nodes[0].request("POST", f"/api/entities/{ENTITY}", {
            "title": "document", "ownerId": user_id, "shared": True, "rank": 0, "body": "",
        }, token=token)
        assert status == 201, body
        self.row_id: str = body["id"]
        self.stopping = threading.Event()
        self.pause = 0  # the number of the pause; 0: there is none
        self._pauses = 0
        self.devices = [Device(nodes, number, self, token) for number in range(devices)]

    def start(self) -> None:
        for device in self.devices:
            device.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for device in self.devices:
            device.thread.join(SETTLE_S)
            assert not device.thread.is_alive()

    def hold(self) -> list[str]:
        """Let every device finish its edit and make one more; what is wrong. `release` ends it."""
        self._pauses += 1
        self.pause = self._pauses
        failures = [device.failure for device in self.devices if device.failure]
        if failures:
            return failures
        try:
            wait_until("the devices rest", lambda: all(
                device.rests_at == self.pause for device in self.devices
            ), SETTLE_S)
        except AssertionError as ex:
            return [f"document: {ex}"]
        return []

    def release(self) -> None:
        self.pause = 0

    def problems(self) -> list[str]:
        """Compare the row and the copies while the devices rest; what is wrong."""
        texts = [self._text_at(node) for node in self._nodes]
        found = []
        if any(text != texts[0] for text in texts):
            found.append(f"document: the nodes have different texts: {texts}")
        acknowledged = [mark for device in self.devices for mark in device.acknowledged]
        made = {mark for device in self.devices for mark in device.made}
        found += problems_of_text(texts[0], acknowledged, made)
        for number, device in enumerate(self.devices):
            try:
                wait_until("same text", lambda d=device: d.text() == texts[0], CONVERGE_S)
            except AssertionError:
                found.append(f"document: device {number} has {device.text()!r}, not {texts[0]!r}")
        return found

    def _text_at(self, node: PylonServer) -> str:
        status, row, _ = node.request(
            "GET", f"/api/entities/{ENTITY}/{self.row_id}", token=ADMIN_TOKEN
        )
        assert status == 200, row
        return str(row["body"])


def problems_of_text(text: str, acknowledged: Sequence[str], made: set[str]) -> list[str]:
    """Return what is wrong with a text of marks; empty: nothing."""
    counts = Counter(text.split(";")[:-1])
    lost = [mark for mark in acknowledged if not counts[mark]]
    return [
        *(f"document: the acknowledged mark {mark} is not in the text" for mark in lost),
        *(f"document: the mark {mark} is in the text {n} times" for mark, n in counts.items()
          if n > 1),
        *(f"document: nobody made the mark {mark}" for mark in counts if mark not in made),
    ]

