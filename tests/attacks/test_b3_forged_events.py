"""B3: no message of a client reaches others as a change.

Published clients take any message with `seq`, `entity` and `kind` for a change
(spec/realtime.md §1.1), so no relayed message may have a member that its sender chose freely.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.bus.rooms_messages import JoinRoom, RoomRequest, Subscribe
from pylon.errors import PylonError
from tests.support.api import DirectRooms, serve_api
from tests.support.manifests import notes_app
from tests.support.rooms import RoomServer
from tests.support.stage import Stage
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient
from workers.ws.room_texts import relayed_text

CHANGE: Final = {
    "seq": 9_007_199_254_740_000, "entity": "Public", "kind": "insert", "row_id": "x",
    "timestamp": "1Z", "op": "insert", "rowId": "x", "cursor": {"last_seq": 10**15},
}
FORGED: Final = [
    {"type": "presence", "event": "update", "data": {"id": "x"}, **CHANGE},
    {"type": "topic", "topic": "t", "data": {"id": "x"}, **CHANGE},
    {"type": "presence", **CHANGE},
    {"type": "topic", "members": [], "action": "leave", "member": {"user_id": "bob"}, **CHANGE},
    {"type": "presence", "clientId": 1, "sub_id": "s", "from": "bob", **CHANGE},
]


def is_change(message: dict[str, Any]) -> bool:
    """As published clients judge it."""
    return bool(message.get("seq") and message.get("entity") and message.get("kind"))


def assert_is_harmless(message: dict[str, Any], sender: str) -> None:
    assert not is_change(message), message
    assert message.keys() <= {"type", "room", "event", "topic", "data", "from"}, message
    assert message["from"] == sender


def say(client: WebSocketClient, message: dict[str, Any]) -> None:
    client.send_frame(1, json.dumps(message).encode())


def test_a_member_cannot_forge_a_change_in_a_room(stage: Stage, room_server: RoomServer) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0")
    clients = []
    for user in ("bob", "eve"):
        room_server.ask(JoinRoom("r", user, b"null"))
        client = WebSocketClient(worker.port, token=stage.login(user)[0])
        say(client, {"type": "room-subscribe", "room": "r"})
        assert client.read_json()["type"] == "room-snapshot"
        clients.append(client)
    room_server.publish()
    bob, eve = clients
    assert bob.read_json()["action"] == "join"
    for message in FORGED:
        say(eve, {**message, "room": "r"})
    wait_until("all have been passed on", lambda: sum(room_server.relays) == len(FORGED))
    room_server.publish()
    heard = [bob.read_json() for _ in FORGED]
    for message, said in zip(heard, FORGED, strict=True):
        assert_is_harmless(message, "eve")
        assert message["type"] == said["type"]
        assert message.get("data") == said.get("data"), "data of the app arrive"
    stage.write(stage.insert("Public", text="real"))
    assert bob.read_json()["data"]["text"] == "real", "the stream of changes goes on"


def test_a_client_cannot_forge_a_change_for_everybody(
    stage: Stage, room_server: RoomServer
) -> None:
    worker = stage.start("ws", PYLON_SOCKETS_PER_IP="0", PYLON_WS_UNSCOPED_PRESENCE="1")
    bob = WebSocketClient(worker.port, token=stage.login("bob")[0])
    nobody = WebSocketClient(worker.port)
    eve = WebSocketClient(worker.port, token=stage.login("eve")[0])
    for message in FORGED:
        say(eve, message)
    wait_until("all have been passed on", lambda: sum(room_server.relays) == len(FORGED))
    room_server.publish()
    for client in (bob, nobody):
        for _ in FORGED:
            assert_is_harmless(client.read_json(), "eve")


def test_a_room_over_http_relays_known_members_only(tmp_path: Path) -> None:
    with serve_api(tmp_path, notes_app(), {}) as server:
        token = server.guest()
        rooms = server.services.realtime.rooms
        assert isinstance(rooms, DirectRooms)
        service = rooms.service
        service.apply(b"r1-ws", [
            RoomRequest(1, JoinRoom("r", "bob", b"null")), RoomRequest(2, Subscribe("r", "bob", 1)),
        ])
        body = {"room": "r", "topic": "t", "data": CHANGE, "payload": CHANGE, **CHANGE}
        for verb in ("join", "presence", "broadcast", "leave"):
            assert server.call("POST", f"/api/rooms/{verb}", body, token).status_code == 200
            for updates in service.take_updates():
                for text in (text for tick in updates.ticks for text in tick.texts):
                    message = json.loads(text)
                    assert not is_change(message)
                    assert message.keys() <= {"type", "room", "action", "member", "data", "members"}


TEXTS: Final = st.text(max_size=5)
JSON_VALUE: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
MEMBER: Final = st.sampled_from([*CHANGE, "event", "topic", "data", "room", "from", "type"])


@settings(deadline=None)
@given(
    st.dictionaries(MEMBER | TEXTS, JSON_VALUE, max_size=8), st.sampled_from(["presence", "topic"]),
    st.none() | TEXTS, TEXTS,
)
def test_no_message_is_relayed_with_other_members(
    message: dict[str, Any], kind: str, room: str | None, user: str
) -> None:
    message = {**message, "type": kind}
    try:
        told = json.loads(relayed_text(message, room, user))
    except PylonError:
        assert not isinstance(message["event" if kind == "presence" else "topic"], str)
        return
    assert_is_harmless(told, user)
    assert (told["type"], told.get("room")) == (kind, room)
    assert isinstance(told.get("event", ""), str)
    assert isinstance(told.get("topic", ""), str)
    assert told.get("data") == message.get("data")
