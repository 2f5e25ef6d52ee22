"""API keys on WebSockets and event streams: what their scopes open, and when their sockets end."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pylon.auth.api_keys import SHA256, NewApiKey, family_of_key, new_api_key
from pylon.bus.messages import SessionRevoked
from pylon.clock import SystemRandom
from pylon.storage.auth_ops import Condition, DropRecords, PutRecord, SetRecords
from tests.support.stage import Stage
from tests.support.websocket_client import WebSocketClient
from tests.support.wire import parse_head
from tests.test_sse_server import Stream
from workers.hub.sessions import SESSION_ENDED
from workers.ws import frames

pytestmark = pytest.mark.stores


def mint(stage: Stage, scopes: str | None, user_id: str = "u1", **more: Any) -> NewApiKey:
    """Store a key of a user."""
    key = new_api_key(SystemRandom())
    stage.write(PutRecord("api_keys", {
        "id": key.key_id, "user_id": user_id, "name": "a key", "prefix": key.prefix,
        "hash": key.secret_hash, "alg": SHA256, "scopes": scopes, "created_at": 1, **more,
    }))
    return key


def say(client: WebSocketClient, **message: Any) -> Any:
    """Send a message; return the next answer that is no event."""
    client.send_frame(frames.TEXT, json.dumps(message).encode())
    while True:
        found = client.read_json()
        if "type" in found:
            return found


def is_key(key: NewApiKey) -> list[Condition]:
    return [Condition("id", "=", key.key_id)]


def test_the_handshake_needs_the_scope_of_the_role(stage: Stage) -> None:
    ws, sse, shards = stage.start("ws"), stage.start("sse"), stage.start("shards")
    for scopes, opens in (
        ("*", {"ws", "sse", "shards"}), (None, {"ws", "sse", "shards"}), ("rooms", set()),
        ("shards", {"shards"}), ("sync entity:Public:read", {"ws", "sse"}),
        ("sync entity:*:read", {"ws", "sse"}), ("sync", set()), ("entity:*:*", set()),
    ):
        key = mint(stage, scopes).text
        status: dict[str, int] = {
            "ws": WebSocketClient(ws.port, token=key, upgraded=False).status,
            "shards": WebSocketClient(
                shards.port, path="/?shard=a", token=key, upgraded=False
            ).status,
        }
        stream = Stream(sse.port, greeted=False, Authorization=f"Bearer {key}")
        status["sse"] = parse_head(stream.head)[0]
        assert {role for role, code in status.items() if code in (101, 200)} == opens, scopes
        assert {code for role, code in status.items() if role not in opens} <= {403}


def test_a_refusal_names_the_scope_and_a_dead_key_is_401(stage: Stage) -> None:
    ws = stage.start("ws")
    client = WebSocketClient(ws.port, token=mint(stage, "rooms").text, upgraded=False)
    assert client.status == 403
    error = json.loads(client.read_rest())["error"]
    assert (error["code"], error["scope"]) == ("SCOPE_DENIED", "sync")
    dead = mint(stage, "*", expires_at=5).text
    assert WebSocketClient(ws.port, token=dead, upgraded=False).status == 401


def test_a_stream_has_the_rows_of_the_scopes_alone(stage: Stage) -> None:
    ws, sse = stage.start("ws"), stage.start("sse")
    key = mint(stage, "sync entity:Mine:read").text
    clients = [WebSocketClient(ws.port, token=key, path="/?since=0")]
    stream = Stream(sse.port, "/events?since=0", Authorization=f"Bearer {key}")
    say(clients[0], type="ping", id=1)
    stage.write(
        stage.insert("Public", text="public"), stage.insert("Mine", text="other", ownerId="u2"),
        stage.insert("Mine", text="mine", ownerId="u1"), stage.insert("Member", text="member"),
    )
    clients.append(WebSocketClient(ws.port, token=key, path="/?since=0"))  # replayed
    for client in clients:
        event = client.read_json()
        assert event["data"]["text"] == "mine"
        assert say(client, type="ping", id=2)["type"] == "pong"
    assert stream.event()[1]["data"]["text"] == "mine"
    scoped = say(clients[0], type="scope", entities=["Public"])
    assert (scoped["code"], scoped["for"]) == ("SCOPE_DENIED", "scope")
    named = WebSocketClient(ws.port, token=key, path="/?entities=Public", upgraded=False)
    assert named.status == 403


def test_each_message_needs_its_scope(stage: Stage) -> None:
    ws = stage.start("ws")
    client = WebSocketClient(
        ws.port, path="/?changes=0", token=mint(stage, "entity:Public:read sync").text
    )
    for message in (
        {"type": "room-subscribe", "room": "r"}, {"type": "presence", "room": "r", "data": {}},
        {"type": "topic", "room": "r", "topic": "t", "data": {}},
        {"type": "match-enqueue", "criteria": {}}, {"type": "match-dequeue"},
        {"type": "subscribe", "sub_id": "s", "entity": "Mine"},
    ):
        answer = say(client, **message)
        assert (answer["type"], answer["code"]) == ("error", "SCOPE_DENIED"), message
    assert say(client, type="subscribe", sub_id="s", entity="Public")["type"] == "subscribed"
    other = WebSocketClient(ws.port, path="/?changes=0", token=mint(stage, "rooms").text)
    assert say(other, type="subscribe", sub_id="s", entity="Public")["code"] == "SCOPE_DENIED"
    assert say(other, type="scope", entities=["Public"])["code"] == "SCOPE_DENIED"
    assert say(other, type="crdt-subscribe", entity="Public", rowId="a")["code"] == "SCOPE_DENIED"


def test_a_session_that_takes_over_a_socket_of_a_key_sees_all_of_its_own(stage: Stage) -> None:
    ws = stage.start("ws")
    client = WebSocketClient(ws.port, token=mint(stage, "sync entity:Mine:read").text)
    say(client, type="ping", id=1)
    token, _ = stage.login("u1")
    assert say(client, type="auth", token=token)["ok"]
    stage.write(stage.insert("Public", text="public"))
    assert client.read_json()["data"]["text"] == "public"
    answer = say(client, type="auth", token=mint(stage, "*").text)
    assert answer["type"] == "error", "a key counts in the header alone"


@pytest.mark.parametrize("end", ["revoked", "rotated", "locked", "expired"])
def test_the_sockets_of_a_key_that_has_ended_close_within_a_second(stage: Stage, end: str) -> None:
    """No signal tells of the end, as if the bus had lost it."""
    ws, sse = stage.start("ws"), stage.start("sse")
    ends = int(time.time()) + 3
    key = mint(stage, "*", **({"expires_at": ends} if end == "expired" else {}))
    other = mint(stage, "*", "u2")
    client, stays = (WebSocketClient(ws.port, token=k.text) for k in (key, other))
    stream = Stream(sse.port, Authorization=f"Bearer {key.text}")
    say(client, type="ping", id=1)
    before_s = time.monotonic()
    if end == "revoked":
        stage.write(DropRecords("api_keys", is_key(key)))
    elif end == "rotated":
        fresh = new_api_key(SystemRandom(), key.key_id)
        stage.write(SetRecords("api_keys", is_key(key), {"hash": fresh.secret_hash}))
    elif end == "locked":
        stage.write(PutRecord("users", {"user_id": "u1", "created_at": 1, "locked_at": 2}))
    else:
        before_s += ends - time.time()
    assert client.read_close()[0] == SESSION_ENDED
    stream.read_rest()
    assert time.monotonic() - before_s < 1.5
    assert WebSocketClient(ws.port, token=key.text, upgraded=False).status == 401
    assert say(stays, type="ping", id=2)["type"] == "pong"


def test_a_signal_closes_the_sockets_of_one_secret_at_once(stage: Stage) -> None:
    ws = stage.start("ws")
    key, other = mint(stage, "*"), mint(stage, "*")
    client, stays = (WebSocketClient(ws.port, token=k.text) for k in (key, other))
    say(client, type="ping", id=1)
    stage.tell(SessionRevoked(family_of_key(key.key_id, key.secret_hash)))
    assert client.read_close()[0] == SESSION_ENDED
    assert say(stays, type="ping", id=2)["type"] == "pong"
