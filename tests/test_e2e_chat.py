"""The chat example: private rooms against a stranger on every path, and in a real browser.

Clients of the published protocol take part: they pull and then connect, over WebSocket and SSE.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser, Page
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient

pytestmark = pytest.mark.stores

EXAMPLE = Path(__file__).parent.parent / "examples" / "chat"
SECRET = "the treasure is under the oak"


@pytest.fixture
def chat(make_server: Callable[..., PylonServer]) -> PylonServer:
    manifest = json.loads((EXAMPLE / "pylon.manifest.json").read_text())
    return make_server(
        manifest, PYLON_DEV_MODE="true", PYLON_STATIC_DIR=str(EXAMPLE / "public")
    ).start()


def insert(server: PylonServer, token: str, entity: str, **body: Any) -> str:
    status, row = server.request("POST", f"/api/entities/{entity}", body, token=token)[:2]
    assert status == 201, row
    return str(row["id"])


def answers(
    server: PylonServer, token: str, room: str, message: str, author: str
) -> dict[str, Any]:
    """Return what a caller gets on each path that could show a message or its room."""
    asked: dict[str, tuple[str, str, Any]] = {
        "list": ("GET", "/api/entities/Message", None),
        "get": ("GET", f"/api/entities/Message/{message}", None),
        "lookup": ("GET", f"/api/lookup/Message/authorId/{author}", None),
        "query": ("POST", "/api/query/Message", {"authorId": author}),
        "graph": ("POST", "/api/query", {"Message": {}}),
        "aggregate": ("POST", "/api/aggregate/Message", {"count": "*"}),
        "snapshot": ("GET", "/api/sync/pull?since=0", None),
        "delta": ("GET", "/api/sync/pull?since=1", None),
        "rooms": ("GET", "/api/entities/Room", None),
        "members": ("GET", "/api/entities/Member", None),
        "export": ("GET", "/api/export/Message", None),
    }
    return {
        name: server.request(method, path, body, token=token)[:2]
        for name, (method, path, body) in asked.items()
    }


@pytest.mark.parametrize("transport", ["ws", "sse"])
def test_members_alone_see_a_private_room_on_every_path(
    chat: PylonServer, transport: str
) -> None:
    (ann, ann_id), (bob, bob_id), (eve, _) = chat.guest(), chat.guest(), chat.guest()
    room = insert(chat, ann, "Room", name="secrets", private=True)
    insert(chat, ann, "Member", roomId=room, userId=ann_id)
    message = insert(chat, ann, "Message", roomId=room, text=SECRET)
    with SyncClient(chat, transport, bob) as bobs, SyncClient(chat, transport, eve) as eves:
        assert SECRET not in json.dumps(answers(chat, bob, room, message, ann_id))
        member = insert(chat, ann, "Member", roomId=room, userId=bob_id)
        wait_until("bob has the room", lambda: message in bobs.snapshot().get("Message", {}))
        assert SECRET in json.dumps(answers(chat, bob, room, message, ann_id))
        second = insert(chat, bob, "Message", roomId=room, text="found it")
        wait_until("bob's own message", lambda: second in bobs.snapshot().get("Message", {}))

        seen = answers(chat, eve, room, message, ann_id)
        assert SECRET not in json.dumps(seen) and room not in json.dumps(seen)
        refused = chat.request(
            "POST", "/api/entities/Message", {"roomId": room, "text": "hi"}, token=eve
        )
        assert refused[0] == 403
        joined = chat.request(
            "POST", "/api/entities/Member", {"roomId": room, "userId": "eve"}, token=eve
        )
        assert joined[0] == 403

        status = chat.request("DELETE", f"/api/entities/Member/{member}", token=ann)[0]
        assert status == 200
        wait_until("bob has nothing left", lambda: not bobs.snapshot(), 1.0)
        assert SECRET not in json.dumps(answers(chat, bob, room, message, ann_id))
        insert(chat, ann, "Message", roomId=room, text="and he is gone")
        public = insert(chat, ann, "Room", name="lobby")
        for client in (bobs, eves):
            wait_until("the public room", lambda c=client: public in c.snapshot().get("Room", {}))
            assert set(client.snapshot()) == {"Room"}
        assert {event["row_id"] for event in eves.received} == {public}
        assert not bobs.problems and not eves.problems
    rows = chat.rows("Message", ADMIN_TOKEN)
    assert len(rows) == 3


def test_presence_is_for_members_and_ends_with_the_membership(chat: PylonServer) -> None:
    (ann, ann_id), (bob, bob_id), (eve, _) = chat.guest(), chat.guest(), chat.guest()
    room = insert(chat, ann, "Room", name="secrets", private=True)
    insert(chat, ann, "Member", roomId=room, userId=ann_id)
    member = insert(chat, ann, "Member", roomId=room, userId=bob_id)
    body = {"room": f"room:{room}"}
    statuses = [
        chat.request("POST", "/api/rooms/join", body, token=token)[0] for token in (ann, bob, eve)
    ]
    assert statuses == [200, 200, 403]
    client = WebSocketClient(chat.port + 1, token=bob, path="/?changes=0")
    client.send_frame(1, json.dumps({"type": "room-subscribe", **body}).encode())
    assert client.read_json()["type"] == "room-snapshot"
    assert chat.request("DELETE", f"/api/entities/Member/{member}", token=ann)[0] == 200
    message = client.read_json()
    while message["type"] == "room-update":
        message = client.read_json()
    assert (message["code"], message["room"]) == ("POLICY_DENIED", f"room:{room}")

    def present() -> list[str]:
        answer = chat.request("GET", f"/api/rooms/room:{room}", token=ann)[1]
        return [each["user_id"] for each in answer["members"]]

    wait_until("bob is not present", lambda: present() == [ann_id], 1.0)
    assert chat.request("GET", f"/api/rooms/room:{room}", token=eve)[0] == 403
    client.close()


def test_members_are_served_again_after_a_worker_died(chat: PylonServer) -> None:
    (ann, ann_id), (bob, bob_id) = chat.guest(), chat.guest()
    room = insert(chat, ann, "Room", name="secrets", private=True)
    insert(chat, ann, "Member", roomId=room, userId=ann_id)
    first = insert(chat, ann, "Message", roomId=room, text=SECRET)
    with SyncClient(chat, "ws", bob) as bobs:
        for pid in chat.pids("ws"):
            os.kill(pid, signal.SIGKILL)
        insert(chat, ann, "Member", roomId=room, userId=bob_id)
        wait_until("bob has the room", lambda: first in bobs.snapshot().get("Message", {}))
        second = insert(chat, ann, "Message", roomId=room, text="again")
        wait_until("what came after", lambda: second in bobs.snapshot().get("Message", {}))
        assert not bobs.problems


def named(browser: Browser, url: str, name: str) -> Page:
    page = browser.open(url)
    page.wait("asked for a name", "document.getElementById('who')?.open === true")
    page.run(
        f"document.getElementById('name').value={json.dumps(name)};"
        "document.querySelector('#name-form button').click()"
    )
    return page


def texts(selector: str) -> str:
    return f"[...document.querySelectorAll('{selector}')].map(each => each.textContent)"


def click_room(page: Page, name: str) -> None:
    page.wait(f"the room {name}", f"{texts('#rooms button')}.some(t => t.endsWith('{name}'))")
    page.run(
        "[...document.querySelectorAll('#rooms button')]"
        f".find(b => b.textContent.endsWith('{name}')).click()"
    )


def test_two_visitors_talk_in_a_private_room(
    chat: PylonServer, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    chromium = program("chromium", "chromium")
    url = f"http://127.0.0.1:{chat.port}/app/"
    with Browser(chromium, tmp_path / "ann") as one, Browser(chromium, tmp_path / "bob") as two:
        ann, bob = named(one, url, "Ann"), named(two, url, "Bob")
        ann.run(
            "document.getElementById('room-name').value='oak';"
            "document.getElementById('room-private').checked=true;"
            "document.getElementById('new-room').requestSubmit()"
        )
        ann.wait("ann can write", "!document.getElementById('room').hidden"
                 " && !document.getElementById('send').hidden")
        for number in range(60):
            ann.run(
                f"document.getElementById('text').value='message {number}';"
                "document.getElementById('send').requestSubmit()"
            )
        ann.wait("the window is full", f"{texts('#messages li span')}.at(-1) === 'message 59'")
        assert len(ann.run(texts("#messages li"))) == 50
        ann.run("document.getElementById('older').click()")
        ann.wait("the older ones", f"{texts('#messages li span')}[0] === 'message 0'")
        assert bob.run(texts("#rooms button")) == []

        ann.wait("bob in the list", f"{texts('#person option')}.includes('Bob')")
        ann.run("document.getElementById('add-member').requestSubmit()")
        click_room(bob, "oak")
        bob.wait("the newest messages", f"{texts('#messages li span')}.at(-1) === 'message 59'")
        bob.run(
            "document.getElementById('text').value='hello';"
            "document.getElementById('send').requestSubmit()"
        )
        ann.wait("bob's message", f"{texts('#messages li span')}.at(-1) === 'hello'")
        ann.wait("both are here", "document.querySelectorAll('#members li.here').length === 2")
        ann.run("[...document.querySelectorAll('#members button')][0].click()")
        bob.wait("nothing is left", "document.getElementById('room').hidden", 2.0)
        assert bob.run(texts("#rooms button")) == []
        assert ann.console == bob.console == []
