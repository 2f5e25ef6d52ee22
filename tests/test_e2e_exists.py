"""Private rooms on a whole server: writes travel to the writer with their caller, who judges them
by the memberships of its transaction; a socket gets the messages of the caller's rooms only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S
from tests.test_api_exists import MANIFEST, MEMBER, OTHER, ROOM

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.stores]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PylonServer]:
    made = PylonServer(tmp_path, MANIFEST, {"PYLON_HTTP_WORKERS": "2"}).start()
    for entity, row in (
        ("Room", {"id": ROOM, "name": "ours"}), ("Room", {"id": OTHER, "name": "theirs"}),
        ("Member", {"id": MEMBER, "roomId": ROOM, "userId": "ann", "role": "owner"}),
    ):
        assert call(made, f"/api/entities/{entity}", row)[0] == 201
    yield made
    made.close()


def call(
    server: PylonServer, path: str, body: Any = None, token: str = ADMIN_TOKEN,
    method: str | None = None,
) -> tuple[int, Any]:
    chosen = method or ("GET" if body is None else "POST")
    status, answer, _ = server.request(chosen, path, body, token=token)
    return status, answer


def session(server: PylonServer, user_id: str) -> str:
    token: str = call(server, "/api/auth/session", {"user_id": user_id})[1]["token"]
    return token


def test_members_write_and_follow_their_rooms_until_they_leave(server: PylonServer) -> None:
    ann, eve = session(server, "ann"), session(server, "eve")
    sockets = [
        websocket.create_connection(
            f"ws://127.0.0.1:{server.port + 1}/", timeout=WAIT_S,
            header=[f"Authorization: Bearer {token}"],
        )
        for token in (ann, eve)
    ]
    messages = "/api/entities/Message"
    assert call(server, messages, {"roomId": ROOM, "body": "mine"}, ann)[0] == 201
    assert call(server, messages, {"roomId": OTHER, "body": "no"}, ann)[0] == 403
    assert call(server, messages, {"roomId": ROOM, "body": "no"}, eve)[0] == 403
    steps = [
        {"op": "delete", "entity": "Member", "id": MEMBER},
        {"op": "insert", "entity": "Message", "data": {"roomId": ROOM, "body": "too late"}},
    ]
    status, answer = call(server, "/api/transact", steps, ann)
    assert status == 400 and "error" in answer["results"][1]
    assert call(server, messages, {"roomId": ROOM, "body": "still mine"}, ann)[0] == 201
    assert [next_message(sockets[0]) for _ in range(2)] == ["mine", "still mine"]
    assert call(server, f"/api/entities/Member/{MEMBER}", None, ann, "DELETE")[0] == 200
    assert call(server, messages, {"roomId": ROOM, "body": "no more"}, ann)[0] == 403
    assert call(server, messages, token=ann)[1]["data"] == []
    assert call(server, messages, {"roomId": ROOM, "body": "theirs now"})[0] == 201
    assert call(server, "/api/entities/Room", {"name": "for all"})[0] == 201
    assert [next_message(socket) for socket in sockets] == [None, None]
    for socket in sockets:
        socket.close()


def next_message(socket: websocket.WebSocket) -> str | None:
    """The text of the next message that a socket is told of; None: the room for all came first."""
    while True:
        event = json.loads(socket.recv())
        if event.get("entity") == "Message" and event["kind"] != "delete":
            return str(event["data"]["body"])
        if event.get("entity") == "Room" and event["data"]["name"] == "for all":
            return None
