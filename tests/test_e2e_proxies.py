"""The shipped nginx and Caddy configurations in front of a real server: one port for all,
upgrades, no buffering, no query strings in the log."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import websocket

from pylon import limits
from tests.support.nginx import moved
from tests.support.ports import reserve_base_port
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

pytestmark = pytest.mark.stores

ROOT = Path(__file__).parent.parent
APP = Path(__file__).parent / "support" / "shards_app.py"


@pytest.fixture(params=["nginx", "caddy"])
def proxied(
    request: pytest.FixtureRequest, make_server: Callable[..., PylonServer],
    program: Callable[[str, str], str], tmp_path: Path,
) -> Iterator[tuple[PylonServer, int]]:
    """A server behind a proxy, and the proxy's port. Only ports, names and paths of the shipped
    configuration are changed."""
    server = make_server(
        PYLON_TRUST_PROXY_HOPS="1", PYLON_SOCKETS_PER_IP="3", PYLON_APP=str(APP)
    )
    port = reserve_base_port()
    if request.param == "nginx":
        command = nginx_command(program("nginx", "nginx-light"), tmp_path, port, server.port)
    else:
        command = caddy_command(program("caddy", "caddy"), tmp_path, port, server.port)
    server.start()
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    with (tmp_path / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_until(f"{request.param} listens", lambda: answers(port))
        yield server, port
    finally:
        process.kill()  # Caddy's own end waits for the event streams
        process.wait(WAIT_S)


def nginx_command(nginx: str, folder: Path, port: int, first_upstream_port: int) -> list[str]:
    conf_path = folder / "pylon.conf"
    conf_path.write_text(moved(port, first_upstream_port, logs=folder))
    main = folder / "nginx.conf"
    main.write_text(
        f"""
pid {folder}/nginx.pid;
error_log {folder}/error.log;
daemon off;
master_process off;
events {{ worker_connections 1024; }}
http {{
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  include {conf_path};
}}
"""
    )
    return [nginx, "-c", str(main), "-p", str(folder)]


def caddy_command(caddy: str, folder: Path, port: int, first_upstream_port: int) -> list[str]:
    conf = (ROOT / "pylon" / "install" / "files" / "pylon.caddy").read_text()
    for offset in range(4):
        upstream = f"127.0.0.1:{first_upstream_port + offset}"
        conf = conf.replace(f"127.0.0.1:{4321 + offset}", upstream)
    conf = conf.replace("/var/log/caddy/pylon.log", f"{folder}/access.log")
    site = f"{{\n\tadmin off\n}}\nhttp://127.0.0.1:{port} {{"
    conf = conf.replace("\napi.example.com {", f"\n{site}")
    (folder / "Caddyfile").write_text(conf)
    return [caddy, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def insert(port: int, n: int) -> None:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    conn.request(
        "POST", "/api/entities/Tick", json.dumps({"n": n, "sender": "x"}),
        {"Authorization": f"Bearer {ADMIN_TOKEN}"},
    )
    assert conn.getresponse().status == 201
    conn.close()


def test_http_websocket_and_sse_through_one_port(proxied: tuple[PylonServer, int]) -> None:
    _, port = proxied
    ws = websocket.create_connection(f"ws://127.0.0.1:{port}/ws", timeout=WAIT_S)
    stream = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
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
    ws = websocket.create_connection(f"ws://127.0.0.1:{port}/", timeout=WAIT_S)
    insert(port, 2)
    assert json.loads(ws.recv())["data"]["n"] == 2
    ws.close()
    token, user_id = server.guest()
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{port}/api/sync/ws", timeout=WAIT_S, origin="http://localhost:3000",
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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
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
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("GET", path, headers=headers)
        return connection, connection.getresponse()

    def event(answer: Any) -> tuple[int, int]:
        name = next(line for line in iter(answer.readline, b"") if line.startswith(b"id: "))
        return int(name[4:]), json.loads(answer.readline()[6:])["data"]["n"]

    connection, answer = stream("/events", Origin="http://localhost:3000")
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
    held = [websocket.create_connection(url, timeout=WAIT_S) for _ in range(3)]
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        websocket.create_connection(url, timeout=WAIT_S)
    assert refused.value.status_code == 429
    # Another client address, as a proxy in front of nginx would report it to Pylon itself.
    other = websocket.create_connection(
        f"ws://127.0.0.1:{server.port + 1}/", timeout=WAIT_S,
        header=["X-Forwarded-For: 203.0.113.9"],
    )
    other.close()
    for ws in held:
        ws.close()


def first_snapshot(url: str, header: list[str]) -> bytes | None:
    """Return the first frame of a shard, or None if the server closes the socket before."""
    ws = websocket.create_connection(url, timeout=WAIT_S, header=header)
    try:
        while not isinstance(frame := ws.recv(), bytes):
            pass
    except websocket.WebSocketConnectionClosedException:
        return None
    finally:
        ws.close()
    return frame


def test_shards_on_their_own_path_and_under_the_api(proxied: tuple[PylonServer, int]) -> None:
    server, port = proxied
    token, user_id = server.guest()
    header = [f"Authorization: Bearer {token}"]
    for path in ("/shards", "/api/shards/ws"):
        url = f"ws://127.0.0.1:{port}{path}?shard=counter:1&sid={user_id}"
        # On PostgreSQL a node runs no shards before its first report: 1013, connect again.
        snapshot = wait_until("the shard answers", lambda u=url: first_snapshot(u, header))
        assert json.loads(snapshot[8:])["here"] == [user_id]
    stream = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    stream.request(
        "GET", f"/api/shards/counter:2/connect?sid={user_id}",
        headers={"Authorization": f"Bearer {token}"},
    )
    answer = stream.getresponse()
    assert answer.status == 200
    data = next(line for line in iter(answer.readline, b"") if line.startswith(b"data: "))
    assert json.loads(data[6:])["here"] == [user_id]
    stream.close()


def test_the_proxys_log_has_no_query_strings(
    proxied: tuple[PylonServer, int], tmp_path: Path
) -> None:
    _, port = proxied
    websocket.create_connection(f"ws://127.0.0.1:{port}/ws?token=secret1", timeout=WAIT_S).close()
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    for path in ("/readyz?token=secret2", "/metrics?secret3"):
        conn.request("GET", path, headers={
            "Referer": "https://a.example/?t=secret4", "Authorization": "Bearer secret5",
            "Cookie": "notes_session=secret6",
        })
        answer = conn.getresponse()
        answer.read()
        assert answer.status in (200, 401)
    conn.close()
    log = tmp_path / "access.log"
    wait_until("all are logged", lambda: all(p in log.read_text() for p in ("/ws", "/metrics")))
    assert "secret" not in log.read_text()


def test_a_body_beyond_the_limit_is_refused_by_pylon_itself(
    proxied: tuple[PylonServer, int],
) -> None:
    _, port = proxied
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
        conn.request("POST", "/api/entities/Tick", b" " * (limits.BODY_BYTES + 1), {
            "Authorization": f"Bearer {ADMIN_TOKEN}"})
    answer = conn.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    conn.close()
