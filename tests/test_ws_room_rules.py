"""Policies of rooms over WebSocket: refusals, and members whose membership ends while they listen.

The rooms' thread is the test's own; the worker is a process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.auth_context import ADMIN
from pylon.bus.rooms_messages import JoinRoom
from pylon.storage.ops import DeleteRow, UpdateRow
from tests.support.manifests import field, private_rooms_app
from tests.support.rooms import RoomServer
from tests.support.stage import Stage, Worker
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient

pytestmark = pytest.mark.stores


@pytest.fixture
def stage(processes: None, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "rooms", private_rooms_app(), PYLON_SOCKETS_PER_IP="0")
    yield made
    made.close()


def say(client: WebSocketClient, **message: Any) -> None:
    client.send_frame(1, json.dumps(message).encode())


def enter(
    stage: Stage, room_server: RoomServer, worker: Worker, user_id: str, room: str
) -> WebSocketClient:
    """Return a socket of a member; it does not want the stream of changes."""
    token, _ = stage.login(user_id)
    room_server.ask(JoinRoom(room, user_id, b"null"))
    client = WebSocketClient(worker.port, token=token, path="/?changes=0")
    say(client, type="room-subscribe", room=room)
    return client


def add_member(stage: Stage, row_id: str, room_id: str, user_id: str, role: str = "") -> None:
    stage.write(
        stage.database.insert("Member", row_id, roomId=room_id, userId=user_id, role=role)
    )


def members(room_server: RoomServer, name: str) -> list[str]:
    found = json.loads(room_server.service._rooms.poll(name, ""))
    return [member["user_id"] for member in found["members"]]


def test_a_socket_needs_the_rules_to_listen_and_to_speak(
    stage: Stage, room_server: RoomServer
) -> None:
    worker = stage.start("ws")
    add_member(stage, "m1", "7", "ann")
    add_member(stage, "m2", "7", "bob", "host")
    ann = enter(stage, room_server, worker, "ann", "room:7")
    assert ann.read_json()["type"] == "room-snapshot"
    bob = enter(stage, room_server, worker, "bob", "room:7")
    assert bob.read_json()["type"] == "room-snapshot"
    eve = enter(stage, room_server, worker, "eve", "room:7")
    error = eve.read_json()
    assert (error["code"], error["for"], error["room"]) == (
        "POLICY_DENIED", "room-subscribe", "room:7",
    )
    wait_until("eve has left", lambda: members(room_server, "room:7") == ["ann", "bob"])
    say(ann, type="topic", room="room:7", topic="t", data=1)
    error = ann.read_json()
    assert (error["code"], error["for"], error["room"]) == ("POLICY_DENIED", "topic", "room:7")
    say(ann, type="presence", room="room:7", event="typing")
    say(bob, type="topic", room="room:7", topic="t", data=2)
    wait_until("both are passed on", lambda: sum(room_server.relays) == 2)
    room_server.publish()
    heard: list[Any] = []
    while not heard or heard[-1]["type"] != "topic":
        heard.append(bob.read_json())
    said = [(m["type"], m["from"]) for m in heard if m["type"] != "room-update"]
    assert said == [("presence", "ann"), ("topic", "bob")]


@pytest.mark.parametrize("change", ["delete", "update"])
def test_a_member_whose_membership_ends_is_put_out_at_once(
    stage: Stage, room_server: RoomServer, change: str
) -> None:
    worker = stage.start("ws")
    for at, (room_id, user_id) in enumerate([("7", "ann"), ("7", "bob"), ("8", "bob")]):
        add_member(stage, f"m{at}", room_id, user_id)
    ann = enter(stage, room_server, worker, "ann", "room:7")
    assert ann.read_json()["type"] == "room-snapshot"
    bob = enter(stage, room_server, worker, "bob", "room:7")
    assert bob.read_json()["type"] == "room-snapshot"
    room_server.ask(JoinRoom("room:8", "bob", b"null"))
    say(bob, type="room-subscribe", room="room:8")
    assert bob.read_json()["room"] == "room:8"
    room_server.publish()
    assert ann.read_json()["action"] == "join"
    assert bob.read_json()["action"] == "join"
    if change == "delete":
        stage.write(DeleteRow("Member", "m1", ADMIN))
    else:
        stage.write(UpdateRow("Member", "m1", {"userId": "carl"}, ADMIN))
    error = bob.read_json()
    assert (error["code"], error["for"], error["room"]) == (
        "POLICY_DENIED", "room-subscribe", "room:7",
    )
    wait_until("he has left", lambda: members(room_server, "room:7") == ["ann"])
    assert members(room_server, "room:8") == ["bob"]
    room_server.publish()
    update = ann.read_json()
    assert (update["action"], update["member"]["user_id"]) == ("leave", "bob")
    say(ann, type="presence", room="room:7", event="alone")
    wait_until("it is passed on", lambda: room_server.service.has_updates)
    room_server.publish()
    assert ann.read_json()["event"] == "alone"
    say(bob, type="ping", id=1)
    assert bob.read_json()["type"] == "pong", "bob hears no more of the room"
    wait_until("he is counted", lambda: (
        stage.metric(worker, "pylon_room_members_removed_total") == 1
    ))


def team_rooms_app() -> dict[str, Any]:
    """An app whose rooms are for the team of a row: the rule asks two rows."""
    return {
        "name": "teams",
        "entities": [
            {"name": "Room", "fields": [field("teamId", "string")]},
            {
                "name": "TeamMember",
                "fields": [field("teamId", "string"), field("userId", "string")],
                "indexes": [{"name": "by_user", "fields": ["userId", "teamId"]}],
            },
        ],
        "policies": [{
            "name": "teams", "room": "room:*",
            "allowJoin": "exists(Room, id == room.id,"
            " exists(TeamMember, teamId == Room.teamId, userId == auth.userId))",
        }],
    }


@pytest.mark.parametrize("change", ["team", "member"])
def test_a_change_of_either_asked_row_puts_members_out(
    processes: None, tmp_path: Path, change: str
) -> None:
    stage = Stage(tmp_path / "teams", team_rooms_app(), PYLON_SOCKETS_PER_IP="0")
    room_server = RoomServer(stage)
    try:
        worker = stage.start("ws")
        stage.write(
            stage.database.insert("Room", "7", teamId="red"),
            stage.database.insert("TeamMember", "m1", teamId="red", userId="ann"),
            stage.database.insert("TeamMember", "m2", teamId="blue", userId="ann"),
            stage.database.insert("TeamMember", "m3", teamId="red", userId="bob"),
            stage.database.insert("TeamMember", "m4", teamId="green", userId="bob"),
        )
        ann, bob = (enter(stage, room_server, worker, user, "room:7") for user in ("ann", "bob"))
        for client in (ann, bob):
            assert client.read_json()["type"] == "room-snapshot"
        if change == "team":
            stage.write(UpdateRow("Room", "7", {"teamId": "blue"}, ADMIN))
        else:
            stage.write(DeleteRow("TeamMember", "m3", ADMIN))
        error = bob.read_json()
        assert (error["code"], error["room"]) == ("POLICY_DENIED", "room:7")
        wait_until("bob has left", lambda: members(room_server, "room:7") == ["ann"])
        say(ann, type="ping", id=1)
        assert ann.read_json()["type"] == "pong", "ann may still be there"
    finally:
        room_server.close()
        stage.close()
