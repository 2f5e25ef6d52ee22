"""WebSockets on the HTTP port (spec/realtime.md §2.1), and caps that hold over all ws workers."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until
from tests.support.websocket_client import WebSocketClient, client_frame
from tests.support.wire import Wire
from workers.ws import frames

pytestmark = pytest.mark.stores

PATH = "/api/sync/ws"
ORIGIN = "http://localhost:3000"


def insert(server: PylonServer, n: int) -> None:
    status, _, _ = server.request(
        "POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=ADMIN_TOKEN
    )
    assert status == 201


def status_of(server: PylonServer, **headers: str) -> tuple[int, dict[str, Any], Any]:
    """An upgrade on the main port that is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request("GET", PATH, headers=headers)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    return answer.status, body["error"], answer


UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_an_upgrade_on_the_main_port_is_passed_to_a_ws_worker(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(PYLON_HTTP_WORKERS="2", PYLON_WS_WORKERS="2").start()
    # With the frames that came in one piece with the request, and in two.
    client = WebSocketClient(server.port, path=PATH, early=client_frame(frames.PING, b"early"))
    assert client.read_control() == (frames.PONG, b"early")
    others = [
        websocket.create_connection(f"ws://127.0.0.1:{server.port}{PATH}", timeout=WAIT_S)
        for _ in range(7)
    ]
    insert(server, 1)
    assert client.read_json()["data"]["n"] == 1
    for other in others:
        assert json.loads(other.recv())["data"]["n"] == 1
    wait_until(
        "all are connections of the ws role, and none of the http role",
        lambda: server.status()["roles"]["ws"]["connections"] == 8,
    )
    # A request before it, on the same connection.
    raw = Wire(server.port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
    raw.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    raw.read_until(b"}")
    raw.send(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())
    assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    for other in others:
        other.close()


def test_what_is_answered_in_place_of_a_101(make_server: Callable[..., PylonServer]) -> None:
    server = make_server(PYLON_HTTP_WORKERS="1").start()
    for headers in ({}, {**UPGRADE, "Upgrade": "h2c"}):
        status, error, _ = status_of(server, **headers)
        assert (status, error["code"]) == (400, "BAD_UPGRADE")
    path = Path(server.status()["runtime_dir"], "passing-ws-1")
    path.rename(path.with_name("nobody"))
    status, error, answer = status_of(server, **UPGRADE)
    assert (status, error["code"]) == (503, "UNAVAILABLE")
    assert int(answer.getheader("retry-after") or 0) >= 1
    path.with_name("nobody").rename(path)
    status, error, _ = status_of(server, **{**UPGRADE, "Sec-WebSocket-Key": "x"})
    assert (status, error["code"]) == (426, "BAD_UPGRADE")
    the_session_cookie_counts_for_our_own_pages(server)


def the_session_cookie_counts_for_our_own_pages(server: PylonServer) -> None:
    token, user_id = server.guest()
    cookie = f"notes_session={token}"
    ours = WebSocketClient(server.port, path=PATH, headers={"Cookie": cookie, "Origin": ORIGIN})
    foreign = WebSocketClient(
        server.port, path=PATH, headers={"Cookie": cookie, "Origin": "https://evil.example"}
    )
    silent = WebSocketClient(server.port, path=PATH, headers={"Cookie": cookie})
    other_port = WebSocketClient(server.port + 1, headers={"Cookie": cookie, "Origin": ORIGIN})
    status, _, _ = server.request(
        "POST", "/api/entities/Note", {"title": "mine", "ownerId": user_id, "shared": False},
        token=token,
    )
    assert status == 201
    insert(server, 1)
    assert [ours.read_json()["entity"] for _ in range(2)] == ["Note", "Tick"]
    for stranger in (foreign, silent, other_port):
        assert stranger.read_json()["entity"] == "Tick"


def test_the_cap_holds_over_all_workers_and_a_killed_one_counts_no_more(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server(
        PYLON_HTTP_WORKERS="1", PYLON_WS_WORKERS="2", PYLON_SOCKETS_PER_IP="6"
    ).start()
    # Three each: the workers take turns.
    clients = [WebSocketClient(server.port, path=PATH) for _ in range(6)]
    for port, path in ((server.port + 1, "/"), (server.port, PATH)):
        refused = WebSocketClient(port, path=path, upgraded=False)
        assert refused.status == 429
    victim = server.pids("ws")[0]
    os.kill(victim, signal.SIGKILL)
    for _ in range(3):
        wait_until(
            "its sockets do not count",
            lambda: WebSocketClient(server.port + 1, upgraded=False).status == 101,
        )
    assert WebSocketClient(server.port, path=PATH, upgraded=False).status in (101, 429)
    for client in clients:
        client.close()
