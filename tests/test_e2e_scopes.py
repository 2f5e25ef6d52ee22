"""Scoped sync and compressed answers against a real server: HTTP, WebSocket and SSE sockets."""

from __future__ import annotations

import gzip
import http.client
import json
import sys
from typing import Any

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S
from tests.support.websocket_client import WebSocketClient
from tests.support.wire import Wire
from workers.ws import frames

pytestmark = pytest.mark.stores

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def add_note(server: PylonServer, title: str, *, shared: bool = True) -> str:
    status, body, _ = server.request(
        "POST", "/api/entities/Note", {"title": title, "ownerId": "o", "shared": shared},
        token=ADMIN_TOKEN,
    )
    assert status == 201, body
    return str(body["id"])


def add_tick(server: PylonServer, n: int) -> str:
    status, body, _ = server.request(
        "POST", "/api/entities/Tick", {"n": n, "sender": "s"}, token=ADMIN_TOKEN
    )
    assert status == 201, body
    return str(body["id"])


def change_of(client: WebSocketClient) -> tuple[str, str]:
    message = client.read_json()
    return message["entity"], message["kind"]


def test_a_socket_gets_the_entities_that_it_names_and_a_filter_by_message(
    server: PylonServer,
) -> None:
    with WebSocketClient(server.port + 1, path="/?entities=Tick&since=0") as client:
        add_note(server, "outside")
        add_tick(server, 1)
        assert change_of(client) == ("Tick", "insert")
        scope = {"type": "scope", "entities": ["Note"], "filters": {"Note": {"title": "mine"}}}
        client.send_frame(frames.TEXT, json.dumps(scope).encode())
        answer = client.read_json()
        assert (answer["type"], answer["entities"]) == ("scoped", ["Note"])
        add_tick(server, 2)
        add_note(server, "other")
        mine = add_note(server, "mine")
        assert change_of(client) == ("Note", "insert")
        path = f"/api/entities/Note/{mine}"
        server.request("PATCH", path, {"title": "theirs"}, token=ADMIN_TOKEN)
        assert change_of(client) == ("Note", "delete")
        server.request("PATCH", path, {"title": "mine"}, token=ADMIN_TOKEN)
        message = client.read_json()
        assert (message["kind"], message["data"]["title"]) == ("update", "mine")
        client.send_frame(frames.TEXT, b'{"type":"ping","id":7}')
        assert client.read_json() == {"type": "pong", "id": 7, "seq": message["seq"]}


def test_a_socket_without_a_scope_gets_everything(server: PylonServer) -> None:
    with WebSocketClient(server.port + 1) as client:
        add_note(server, "n")
        add_tick(server, 1)
        assert [change_of(client), change_of(client)] == [("Note", "insert"), ("Tick", "insert")]


def test_a_socket_that_names_an_unknown_entity_is_refused(server: PylonServer) -> None:
    with WebSocketClient(server.port + 1, path="/?entities=Tik", upgraded=False) as client:
        assert client.status == 400
        assert b'did you mean \\"Tick\\"' in client.read_rest()
    with Wire(server.port + 2) as wire:
        wire.send(b"GET /events?entities=Tik HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.read_rest().startswith(b"HTTP/1.1 400 ")


def test_a_replay_has_the_scope_too(server: PylonServer) -> None:
    add_tick(server, 0)
    _, start, _ = server.request("GET", "/api/sync/pull?since=0")
    since = start["cursor"]["last_seq"]
    add_note(server, "outside")
    add_tick(server, 1)
    with WebSocketClient(server.port + 1, path=f"/?entities=Tick&since={since}") as client:
        message = client.read_json()
        assert (message["entity"], message["seq"]) == ("Tick", since + 2)


def test_an_event_stream_has_a_scope(server: PylonServer) -> None:
    with Wire(server.port + 2) as wire:
        wire.send(b"GET /events?entities=Tick HTTP/1.1\r\nHost: x\r\n\r\n")
        wire.read_until(b": connected\n\n")
        add_note(server, "outside")
        add_tick(server, 1)
        text = wire.read_until(b'"entity":"Tick"')
        assert b'"entity":"Note"' not in text


def raw_get(server: PylonServer, path: str, encoding: str) -> tuple[bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    try:
        connection.request("GET", path, headers={"Accept-Encoding": encoding})
        answer = connection.getresponse()
        body = answer.read()
        names = ("content-encoding", "transfer-encoding", "vary")
        return body, {name: answer.getheader(name) or "" for name in names}  # several lines joined
    finally:
        connection.close()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_snapshot_arrives_compressed(server: PylonServer, encoding: str) -> None:
    for n in range(0, 2_000, 100):
        changes = [
            {"kind": "insert", "entity": "Note", "row_id": f"_pending_{n + i}",
             "data": {"title": f"note {n + i} {'x' * 200}", "ownerId": "o", "shared": True}}
            for i in range(100)
        ]
        status, body, _ = server.request(
            "POST", "/api/sync/push", {"changes": changes}, token=ADMIN_TOKEN
        )
        assert (status, body["applied"]) == (200, 100), body
    plain, _ = raw_get(server, "/api/sync/pull?since=0", "identity")
    packed, headers = raw_get(server, "/api/sync/pull?since=0", encoding)
    assert headers["content-encoding"] == encoding
    assert headers["transfer-encoding"] == "chunked"
    assert "Accept-Encoding" in headers["vary"]
    unpack: Any = {"gzip": gzip.decompress, "zstd": zstd.decompress}[encoding]
    assert unpack(packed) == plain
    assert len(packed) < len(plain) / 3
