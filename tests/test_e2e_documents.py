"""Documents in a real server: editors over both ports, damaged pushes, kill -9, a backup."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import stores
from tests.support.documents import LoroClient, sealed
from tests.support.manifests import field, notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient
from workers.ws import frames

pytestmark = pytest.mark.stores


def app() -> dict[str, Any]:
    manifest = notes_app()
    manifest["entities"][0]["fields"].append(field("body", "richtext", optional=True))
    return manifest


def made(server: PylonServer) -> str:
    note = {"title": "t", "ownerId": "ada", "shared": True, "body": "start"}
    status, body, _ = server.request("POST", "/api/entities/Note", note, token=ADMIN_TOKEN)
    assert status == 201, body
    return str(body["id"])


class Editor:
    """A client as the published one: edits its copy, pushes over HTTP, hears over WebSocket."""

    def __init__(self, server: PylonServer, row_id: str) -> None:
        self.server, self.row_id = server, row_id
        # Without the stream of changes: just after a restore a socket with it must pull again.
        self.socket = WebSocketClient(server.port + 1, token=ADMIN_TOKEN, path="/?changes=0")
        message = {"type": "crdt-subscribe", "entity": "Note", "rowId": row_id}
        self.socket.send_frame(frames.TEXT, json.dumps(message).encode())
        self.copy = LoroClient(self._frame())

    def _frame(self) -> bytes:
        """The next frame's payload; events are passed over."""
        head = b"\x10\x00\x04Note" + len(self.row_id).to_bytes(2, "big") + self.row_id.encode()
        while True:
            opcode, data = self.socket.read_frame_except()
            if opcode == frames.BINARY:
                assert data.startswith(head)
                return data[len(head):]

    def push(self) -> None:
        assert push(self.server, self.row_id, self.copy.update()) == (200, None)

    def hear_until(self, text: str) -> None:
        while self.copy.text("body").to_string() != text:
            self.copy.doc.import_(self._frame())


def push(server: PylonServer, row_id: str, update: bytes) -> tuple[int, str | None]:
    status, body, _ = server.request(
        "POST", f"/api/crdt/Note/{row_id}", {"update": update.hex()}, token=ADMIN_TOKEN
    )
    return status, body["error"]["code"] if "error" in body else None


def body_of(server: PylonServer, row_id: str) -> str:
    status, row, _ = server.request("GET", f"/api/entities/Note/{row_id}", token=ADMIN_TOKEN)
    assert status == 200
    return str(row["body"])


def test_editors_and_the_row_agree(make_server: Callable[..., PylonServer]) -> None:
    server = make_server(app(), PYLON_WS_WORKERS="2").start()
    row_id = made(server)
    editors = [Editor(server, row_id) for _ in range(3)]
    for turn in range(5):
        for number, editor in enumerate(editors):
            editor.copy.text("body").insert(0, f"{number}{turn} ")
            editor.push()  # without hearing the others first
    patch = {"body": body_of(server, row_id) + "!", "title": "by patch"}
    assert server.request(
        "PATCH", f"/api/entities/Note/{row_id}", patch, token=ADMIN_TOKEN
    )[0] == 200
    text = body_of(server, row_id)
    assert len(text) == len("start!") + 45
    for editor in editors:
        editor.hear_until(text)
    assert {str(editor.copy.row()["title"]) for editor in editors} == {"by patch"}

    # What is damaged is refused, and the server goes on.
    chance = random.Random(3)
    editors[0].copy.text("body").insert(0, "more ")
    good, whole = editors[0].copy.update(), editors[0].copy.everything()
    pids = server.pids("http")
    bad = [good[:n] for n in range(0, len(good), 9)] + [chance.randbytes(n) for n in (1, 99, 9000)]
    answers = {push(server, row_id, data) for data in bad}
    assert answers == {(400, "CRDT_DECODE_FAILED")}
    for _ in range(60):
        body = bytearray(chance.choice((good, whole))[20:])
        body[chance.randrange(2, len(body))] ^= 1 << chance.randrange(8)
        status, _ = push(server, row_id, sealed(bytes(body)))
        assert status in {200, 400, 409}
    assert push(server, row_id, bytes(300_000)) == (400, "LIMIT_EXCEEDED")
    assert server.pids("http") == pids, "no process was harmed"
    other = made(server)
    late = Editor(server, other)
    late.copy.text("body").insert(0, "alive ")
    late.push()
    assert body_of(server, other) == "alive start"


def test_kill_9_loses_nothing_that_was_acknowledged(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(app()).start()
    row_id = made(server)
    editor = Editor(server, row_id)
    expected = "start"
    for turn in range(2):
        for letter in "abcdef":
            editor.copy.text("body").insert(0, letter)
            editor.push()
            expected = letter + expected
        server.kill()
        server.start()
        assert body_of(server, row_id) == expected
        after = Editor(server, row_id)
        assert after.copy.row() == editor.copy.row(), turn
        assert after.copy.text("body").to_string() == expected
    bundle = server.folder / "bundle"
    assert server.ctl("backup", str(bundle)).returncode == 0
    editor.copy.text("body").insert(0, "lost with the restore ")
    editor.push()
    server.terminate()
    restored = server.ctl("restore", str(bundle), "--yes", *stores.restore_flags())
    assert restored.returncode == 0, restored.stderr
    server.start()

    def come_back() -> Editor | None:
        """As the published client: just after a restore it is told to pull and connect again."""
        assert server.request("GET", "/api/sync/pull?since=0", token=ADMIN_TOKEN)[0] == 200
        try:
            return Editor(server, row_id)
        except AssertionError:
            return None

    back = wait_until("the client is let in", come_back)
    assert back.copy.text("body").to_string() == expected
