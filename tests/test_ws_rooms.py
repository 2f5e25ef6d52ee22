"""Rooms in the ws worker, as a process: lost news, the relay without rooms, changed identities.

The rooms' thread is the test's own, so that it can lose news."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pylon import limits
from pylon.bus.rooms_messages import JoinRoom, LeaveRoom, SetPresence
from tests.support.rooms import RoomServer
from tests.support.stage import Stage, Worker
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient

pytestmark = pytest.mark.stores


def say(client: WebSocketClient, **message: Any) -> None:
    client.send_frame(1, json.dumps(message).encode())


def subscribed(
    stage: Stage, room_server: RoomServer, worker: Worker, user_id: str
) -> WebSocketClient:
    token, _ = stage.login(user_id)
    room_server.ask(JoinRoom("r", user_id, b"null"))
    client = WebSocketClient(worker.port, token=token)
    say(client, type="room-subscribe", room="r")
    snapshot = client.read_json()
    assert (snapshot["type"], snapshot["room"]) == ("room-snapshot", "r")
    assert user_id in [peer["user_id"] for peer in snapshot["members"]]
    return client


def users(snapshot: Any) -> list[str]:
    assert snapshot["type"] == "room-snapshot", snapshot
    return [peer["user_id"] for peer in snapshot["members"]]


def lost(stage: Stage, worker: Worker) -> float:
    return stage.metric(worker, "pylon_bus_messages_dropped_total", channel="room_updates")


def test_lost_news_are_made_good_by_snapshots(stage: Stage, room_server: RoomServer) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
    ann = subscribed(stage, room_server, worker, "ann")
    bob = subscribed(stage, room_server, worker, "bob")
    room_server.publish()
    assert ann.read_json()["member"] == {"user_id": "bob"}
    assert bob.read_json()["member"] == {"user_id": "bob"}, "its snapshot had that already"

    room_server.ask(JoinRoom("r", "carl", b"1"))
    room_server.lose()
    everybody = ["ann", "bob", "carl"]
    assert users(ann.read_json()) == users(bob.read_json()) == everybody, "nothing follows"

    room_server.ask(JoinRoom("r", "dora", b"1"))
    room_server.lose()
    room_server.ask(SetPresence("r", "ann", b"7"))
    room_server.publish()
    for client in (ann, bob):
        heard = [client.read_json(), client.read_json()]
        assert {message["type"] for message in heard} == {"room-update", "room-snapshot"}
        (snapshot,) = [m for m in heard if m["type"] == "room-snapshot"]
        assert users(snapshot) == ["ann", "bob", "carl", "dora"]
        assert snapshot["members"][0]["data"] == 7
    wait_until("both gaps are counted", lambda: lost(stage, worker) == 2)

    room_server.ask(LeaveRoom("r", "bob"))
    room_server.lose()
    assert users(ann.read_json()) == ["ann", "carl", "dora"]
    assert users(bob.read_json()) == ["ann", "carl", "dora"], "it hears once that it has left"
    room_server.ask(SetPresence("r", "ann", b"8"))
    room_server.publish()
    assert ann.read_json()["data"] == 8
    say(bob, type="room-subscribe", room="r")
    assert bob.read_json()["code"] == "NOT_IN_ROOM", "and then no more"


def test_a_changed_identity_leaves_the_rooms_of_the_old_one(
    stage: Stage, room_server: RoomServer
) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
    ann = subscribed(stage, room_server, worker, "ann")
    bob = subscribed(stage, room_server, worker, "bob")
    room_server.publish()
    assert ann.read_json() == bob.read_json()
    token, _ = stage.login("eve")
    say(bob, type="auth", token=token)
    assert bob.read_json()["user_id"] == "eve"
    say(bob, type="room-subscribe", room="r")
    assert bob.read_json()["code"] == "NOT_IN_ROOM"
    room_server.ask(JoinRoom("r", "eve", b"1"))
    say(bob, type="room-subscribe", room="r")
    assert users(bob.read_json()) == ["ann", "eve"]
    room_server.publish()
    heard = [(m["action"], m["member"]["user_id"]) for m in (ann.read_json(), ann.read_json())]
    assert heard == [("leave", "bob"), ("join", "eve")]


def test_presence_without_a_room_goes_nowhere(stage: Stage, room_server: RoomServer) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
    bob = subscribed(stage, room_server, worker, "bob")
    ann = subscribed(stage, room_server, worker, "ann")
    room_server.publish()
    assert ann.read_json() == bob.read_json()
    say(ann, type="presence", event="update", data={})
    say(ann, type="topic", topic="t", data={})
    say(ann, type="topic", topic="t", data="x" * 12_000, room="r")
    error = ann.read_json()
    assert (error["code"], error["for"]) == ("LIMIT_EXCEEDED", "topic")
    say(ann, type="topic", topic="t", data=1, room="r")
    say(ann, type="room-unsubscribe", room="r")
    say(ann, type="room-unsubscribe")
    assert ann.read_json()["code"] == "MISSING_ROOM"
    room_server.publish()
    assert bob.read_json()["type"] == "topic"


def test_unscoped_presence_reaches_everybody(stage: Stage, room_server: RoomServer) -> None:
    setting = {"PYLON_WS_UNSCOPED_PRESENCE": "1", "PYLON_SOCKETS_PER_IP": "0"}
    first, second = (stage.start("ws", name, **setting) for name in ("1", "2"))
    tokens = [stage.login(user)[0] for user in ("ann", "bob")]
    ann = WebSocketClient(first.port, token=tokens[0])
    bob = WebSocketClient(second.port, token=tokens[1])
    nobody = WebSocketClient(second.port)
    say(nobody, type="topic", topic="t", data="nobody")
    say(ann, type="presence", event="update", data={"x": 1}, **{"from": "eve"})
    wait_until("the rooms have it", lambda: room_server.service.has_updates)
    room_server.publish()
    for client in (ann, bob, nobody):
        assert client.read_json() == {
            "type": "presence", "event": "update", "data": {"x": 1}, "from": "ann",
        }
    ann.close()
    wait_until("the rooms know of the end", lambda: room_server.service.has_updates)
    room_server.publish()
    for client in (bob, nobody):
        assert client.read_json() == {"type": "presence", "event": "disconnect", "clientId": 0}


def test_who_says_much_is_heard_whole_and_in_order(stage: Stage, room_server: RoomServer) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
    ann = subscribed(stage, room_server, worker, "ann")
    count = limits.ROOM_RELAYS * 3 + 1
    for n in range(count):
        say(ann, type="topic", topic="t", data=n, room="r")
    wait_until("all have been passed on", lambda: sum(room_server.relays) == count)
    assert max(room_server.relays) <= limits.ROOM_RELAYS, "no more of one socket at once"
    room_server.publish()
    heard = [ann.read_json() for _ in range(count)]
    assert [message["data"] for message in heard] == list(range(count))
