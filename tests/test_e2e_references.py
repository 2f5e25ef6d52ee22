"""References on a whole server: a delete takes rows along for every client that has them, over each
transport, and nothing of it is lost when the server is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient
from tests.support.wait import wait_until

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.stores]

MANIFEST: dict[str, Any] = {
    "name": "rooms",
    "entities": [
        {"name": "Room", "fields": [{"name": "name", "type": "string", "default": "room"}],
         "crdt": False},
        {"name": "Member", "crdt": False, "fields": [
            {"name": "roomId", "type": "id(Room)", "onDelete": "cascade"},
            {"name": "userId", "type": "string", "default": {"$auth": "userId"}},
        ], "indexes": [
            {"name": "by_user", "fields": ["userId", "roomId"]},
            {"name": "one", "fields": ["roomId", "userId"], "unique": True},
        ]},
        {"name": "Message", "crdt": False, "fields": [
            {"name": "roomId", "type": "id(Room)", "onDelete": "cascade"},
            {"name": "replyTo", "type": "id(Message)", "optional": True, "onDelete": "setNull"},
            {"name": "sentAt", "type": "datetime", "default": {"$now": True}, "fixed": True},
        ]},
    ],
    "policies": [
        {"name": "rooms", "entity": "Room", "allow": "true"},
        {"name": "members", "entity": "Member", "allowRead": "data.userId == auth.userId",
         "allowInsert": "data.userId == auth.userId"},
        {"name": "messages", "entity": "Message",
         "allowRead": "exists(Member, roomId == data.roomId, userId == auth.userId)",
         "allowInsert": "exists(Member, roomId == data.roomId, userId == auth.userId)"},
    ],
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PylonServer]:
    made = PylonServer(tmp_path, MANIFEST, {"PYLON_DURABILITY": "full"}).start()
    yield made
    made.close()


def insert(server: PylonServer, entity: str, token: str, **row: Any) -> str:
    status, answer, _ = server.request("POST", f"/api/entities/{entity}", row, token=token)
    assert status == 201, answer
    row_id: str = answer["id"]
    return row_id


def count_rows(client: SyncClient) -> int:
    return sum(map(len, client.snapshot().values()))


@pytest.mark.parametrize("transport", ["ws", "sse"])
def test_clients_lose_the_rows_that_a_delete_takes_along(
    server: PylonServer, transport: str
) -> None:
    _, answer, _ = server.request(
        "POST", "/api/auth/session", {"user_id": "ann"}, token=ADMIN_TOKEN
    )
    ann: str = answer["token"]
    rooms = [insert(server, "Room", ann) for _ in range(2)]
    for room in rooms:
        insert(server, "Member", ann, roomId=room)
    first = insert(server, "Message", ann, roomId=rooms[0])
    reply = insert(server, "Message", ann, roomId=rooms[1], replyTo=first)
    for _ in range(20):
        insert(server, "Message", ann, roomId=rooms[0], replyTo=first)
    with SyncClient(server, transport, ann) as client:
        wait_until("the client has all rows", lambda: count_rows(client) == 26)
        status, _, _ = server.request("DELETE", f"/api/entities/Room/{rooms[0]}", token=ann)
        assert status == 200
        wait_until("the rows are gone", lambda: count_rows(client) == 3)
        wait_until(
            "the reply is changed",
            lambda: client.snapshot()["Message"][reply]["replyTo"] is None,
        )
        assert client.problems == [] and client.live_seqs == sorted(client.live_seqs)
        refused, error, _ = server.request(
            "POST", "/api/entities/Message", {"roomId": rooms[0]}, token=ADMIN_TOKEN
        )
        assert (refused, error["error"]["code"]) == (422, "REFERENCE_NOT_FOUND")


def test_acknowledged_cascade_outlives_a_kill(server: PylonServer) -> None:
    room = insert(server, "Room", ADMIN_TOKEN)
    for number in range(50):
        insert(server, "Member", ADMIN_TOKEN, roomId=room, userId=f"u{number}")
    status, _, _ = server.request("DELETE", f"/api/entities/Room/{room}", token=ADMIN_TOKEN)
    assert status == 200
    server.kill()
    server.start()
    for entity in ("Room", "Member"):
        _, answer, _ = server.request("GET", f"/api/entities/{entity}", token=ADMIN_TOKEN)
        assert answer["data"] == []
    _, pulled, _ = server.request("GET", "/api/sync/pull?since=0", token=ADMIN_TOKEN)
    assert pulled["changes"] == []
