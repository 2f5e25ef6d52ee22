"""The shipped nginx config in front of a real server: one port for all, upgrade, no buffering."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.support.nginx import moved
from tests.support.server import ADMIN_TOKEN, PylonServer, free_base_port, wait_until

APP = Path(__file__).parent / "shards_app.py"

pytestmark = pytest.mark.processes


@pytest.fixture
def proxied(
    make_server: Callable[..., PylonServer], program: Callable[[str, str], str], tmp_path: Path
) -> Iterator[tuple[PylonServer, int]]:
    """A server behind nginx, and nginx's port. Only ports and paths of the config are changed."""
    nginx = program("nginx", "nginx-light")
    server = make_server(
        PYLON_TRUST_PROXY_HOPS="1", PYLON_SOCKETS_PER_IP="3", PYLON_APP=str(APP)
    ).start()
    port = free_base_port()
    conf_path = tmp_path / "pylon.conf"
    conf_path.write_text(moved(port, server.port))
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"""
pid {tmp_path}/nginx.pid;
error_log {tmp_path}/error.log;
daemon off;
master_process off;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p;
  fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;
  include {conf_path};
}}
"""
    )
    process = subprocess.Popen([nginx, "-c", str(main), "-p", str(tmp_path)])
    try:
        wait_until("nginx listens", lambda: answers(port))
        yield server, port
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def insert(port: int, n: int) -> None:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    conn.request(
        "POST", "/api/entities/Tick", json.dumps({"n": n, "sender": "x"}),
        {"Authorization": f"Bearer {ADMIN_TOKEN}"},
    )
    assert conn.getresponse().status == 201
    conn.close()


def test_http_websocket_and_sse_through_one_port(proxied: tuple[PylonServer, int]) -> None:
    _, port = proxied
    ws = websocket.create_connection(f"ws://127.0.0.1:{port}/ws", timeout=10)
    stream = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    stream.request("GET", "/events", headers={"Accept": "text/event-stream"})
    answer = stream.getresponse()
    assert answer.status == 200
    assert answer.readline() == b": connected\n"  # at once: nothing is held back in a buffer
    insert(port, 1)
    assert json.loads(ws.recv())["data"]["n"] == 1
    lines = iter(answer.readline, b"")
    event = next(line for line in lines if line.startswith(b"data: "))
    assert json.loads(event[6:])["data"]["n"] == 1
    ws.close()
    stream.close()


def test_upgrades_at_the_root_path_and_under_the_api_reach_a_ws_worker(
    proxied: tuple[PylonServer, int],
) -> None:
    """Published clients without an explicit port connect to `/` of the same host; clients of
    other one-port servers to a path of the API."""
    server, port = proxied
    ws = websocket.create_connection(f"ws://127.0.0.1:{port}/", timeout=10)
    insert(port, 2)
    assert json.loads(ws.recv())["data"]["n"] == 2
    ws.close()
    token, user_id = server.guest()
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{port}/api/sync/ws", timeout=10, origin="http://localhost:3000",
        cookie=f"notes_session={token}",
    )
    status, _, _ = server.request(
        "POST", "/api/entities/Note", {"title": "mine", "ownerId": user_id, "shared": False},
        token=token,
    )
    assert status == 201
    events = iter(lambda: json.loads(ws.recv()), None)
    assert next(e for e in events if e["entity"] == "Note")["data"]["title"] == "mine"
    ws.close()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/api/sync/ws")
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (400, "BAD_UPGRADE")
    connection.close()


def test_an_event_stream_goes_on_where_it_broke_off(proxied: tuple[PylonServer, int]) -> None:
    """What an EventSource does: it sends the last id that it saw, and its page's origin."""
    _, port = proxied
    for n in range(3):
        insert(port, n)

    def stream(path: str, **headers: str) -> tuple[http.client.HTTPConnection, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path, headers=headers)
        return connection, connection.getresponse()

    def event(answer: Any) -> tuple[int, int]:
        name = next(line for line in iter(answer.readline, b"") if line.startswith(b"id: "))
        return int(name[4:]), json.loads(answer.readline()[6:])["data"]["n"]

    connection, answer = stream("/events")
    assert answer.getheader("Access-Control-Allow-Origin") == "http://localhost:3000"
    assert answer.getheader("Content-Type") == "text/event-stream"
    seen = [event(answer) for _ in range(3)]
    assert [n for _, n in seen] == [0, 1, 2]
    connection.close()
    insert(port, 3)
    for path, headers in (
        ("/events", {"Last-Event-ID": str(seen[1][0])}), (f"/events?since={seen[1][0]}", {}),
    ):
        connection, answer = stream(path, **headers)
        assert [event(answer)[1] for _ in range(2)] == [2, 3]
        connection.close()


def test_sockets_are_counted_by_the_forwarded_address(proxied: tuple[PylonServer, int]) -> None:
    server, port = proxied
    url = f"ws://127.0.0.1:{port}/ws"
    held = [websocket.create_connection(url, timeout=10) for _ in range(3)]
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        websocket.create_connection(url, timeout=10)
    assert refused.value.status_code == 429
    # Another client address, as a proxy in front of nginx would report it to Pylon itself.
    other = websocket.create_connection(
        f"ws://127.0.0.1:{server.port + 1}/", timeout=10, header=["X-Forwarded-For: 203.0.113.9"]
    )
    other.close()
    for ws in held:
        ws.close()


def test_shards_on_their_own_path_and_under_the_api(proxied: tuple[PylonServer, int]) -> None:
    server, port = proxied
    token, user_id = server.guest()
    header = [f"Authorization: Bearer {token}"]
    for path in ("/shards", "/api/shards/ws"):
        ws = websocket.create_connection(
            f"ws://127.0.0.1:{port}{path}?shard=counter:1&sid={user_id}", timeout=10, header=header
        )
        messages = iter(ws.recv, None)
        snapshot = next(each for each in messages if isinstance(each, bytes))
        assert json.loads(snapshot[8:])["here"] == [user_id]
        ws.close()
    stream = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    stream.request(
        "GET", f"/api/shards/counter:2/connect?sid={user_id}",
        headers={"Authorization": f"Bearer {token}"},
    )
    answer = stream.getresponse()
    assert answer.status == 200
    data = next(line for line in iter(answer.readline, b"") if line.startswith(b"data: "))
    assert json.loads(data[6:])["here"] == [user_id]
    stream.close()
