"""nginx and HAProxy of deploy/tiers in front of real nodes that run some of the roles each."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import websocket

from tests.support.ports import reserve_base_port
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until
from tests.test_e2e_proxies import answers, first_snapshot, insert

TIERS = Path(__file__).parent.parent / "deploy" / "tiers"
APP = Path(__file__).parent / "support" / "shards_app.py"
PORT_OFFSET = {"http": 0, "ws": 1, "sse": 2, "shards": 3}


@dataclass(frozen=True)
class Tiers:
    """A proxy on `port`, and the nodes behind it by role."""

    port: int
    nodes: dict[str, list[PylonServer]]
    log: Path


@pytest.fixture(params=["nginx", "haproxy"])
def tiers(
    request: pytest.FixtureRequest, make_server: Callable[..., PylonServer], postgres_url: str,
    program: Callable[[str, str], str], tmp_path: Path,
) -> Iterator[Tiers]:
    """Two nodes of HTTP, and one each of the other roles. Only names, ports and log files of the
    shipped configuration are changed, and a second HTTP node is named."""
    nodes: dict[str, list[PylonServer]] = {}
    for name, roles in (("a", "http"), ("b", "http"), ("c", "ws"), ("d", "sse"), ("e", "shards")):
        node = make_server(
            name=name, DATABASE_URL=postgres_url, PYLON_ROLES=roles, PYLON_NODE=name,
            PYLON_TRUST_PROXY_HOPS="1", PYLON_APP=str(APP), PYLON_HTTP_WORKERS="1",
        )
        nodes.setdefault(roles, []).append(node)
        node.start(ready=roles == "http")
        port = node.port + PORT_OFFSET[roles]
        wait_until(f"{name} listens", lambda port=port: answers(port), 60)
    port = reserve_base_port()
    if request.param == "nginx":
        command = [program("nginx", "nginx-light"), "-p", str(tmp_path), "-c",
                   str(nginx_file(tmp_path, port, nodes))]
    else:
        command = [program("haproxy", "haproxy"), "-db", "-f",
                   str(haproxy_file(tmp_path, port, nodes))]
        check = subprocess.run([*command, "-c"], capture_output=True, text=True, check=False)
        assert check.returncode == 0, check.stderr
    log_path = tmp_path / "access.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(f"{request.param} listens", lambda: answers(port))
        yield Tiers(port, nodes, log_path)
    finally:
        process.kill()
        process.wait(WAIT_S)


def address(node: PylonServer, role: str) -> str:
    return f"127.0.0.1:{node.port + PORT_OFFSET[role]}"


def nginx_file(folder: Path, port: int, nodes: dict[str, list[PylonServer]]) -> Path:
    text = (TIERS / "nginx.conf").read_text()
    for role, found in nodes.items():
        line = next(x for x in text.splitlines() if f"server {role}:" in x)
        text = text.replace(line, "\n".join(
            line.replace(line.split()[1], address(node, role)) for node in found
        ))
    text = text.replace("    listen 80;", f"    listen 127.0.0.1:{port};")
    text = text.replace("    listen [::]:80;\n", "")
    text = text.replace("/var/log/nginx/access.log", f"{folder}/access.log")
    text = text.replace("/var/log/nginx/error.log", f"{folder}/error.log")
    (folder / "tiers.conf").write_text(text)
    main = folder / "nginx.conf"
    main.write_text(
        f"pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off; master_process off;\n"
        f"events {{ worker_connections 256; }}\nhttp {{\n"
        + "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in
                  ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + f"include {folder}/tiers.conf;\n}}\n"
    )
    return main


def haproxy_file(folder: Path, port: int, nodes: dict[str, list[PylonServer]]) -> Path:
    text = (TIERS / "haproxy.cfg").read_text().replace("    bind :80", f"    bind 127.0.0.1:{port}")
    text = text.replace("maxconn 100000", "maxconn 1000")  # a test may open fewer descriptors
    for role, found in nodes.items():
        line = next(x for x in text.splitlines() if f"server {role}-1 " in x)
        text = text.replace(line, "\n".join(
            line.replace(f"{role}-1", f"{role}-{n}").replace(line.split()[2], address(node, role))
            for n, node in enumerate(found, 1)
        ))
    path = folder / "haproxy.cfg"
    path.write_text(text)
    return path


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    connection.request("GET", path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_each_path_reaches_its_tier_and_the_log_has_no_query_strings(tiers: Tiers) -> None:
    ws = websocket.create_connection(
        f"ws://127.0.0.1:{tiers.port}/ws?token=a-secret", timeout=WAIT_S
    )
    at_root = websocket.create_connection(f"ws://127.0.0.1:{tiers.port}/", timeout=WAIT_S)
    stream = http.client.HTTPConnection("127.0.0.1", tiers.port, timeout=WAIT_S)
    stream.request("GET", "/events?seat=a-secret", headers={"Accept": "text/event-stream"})
    answer = stream.getresponse()
    assert answer.readline() == b": connected\n"
    insert(tiers.port, 7)
    for socket in (ws, at_root):
        assert json.loads(socket.recv())["data"]["n"] == 7
    event = next(line for line in iter(answer.readline, b"") if line.startswith(b"data: "))
    assert json.loads(event[6:])["data"]["n"] == 7
    token, user_id = tiers.nodes["http"][0].guest()
    url = f"ws://127.0.0.1:{tiers.port}/shards?shard=counter:1&sid={user_id}"
    header = [f"Authorization: Bearer {token}"]
    snapshot = wait_until("the shard answers", lambda: first_snapshot(url, header))
    assert json.loads(snapshot[8:])["here"] == [user_id]
    assert get(tiers.port, "/metrics")[0] in (200, 403)  # nginx lets this machine in
    ws.close()
    at_root.close()
    answer.close()
    stream.close()
    wait_until("the socket is logged", lambda: "/ws" in tiers.log.read_text())
    assert "a-secret" not in tiers.log.read_text()


def test_http_goes_on_while_one_of_its_nodes_ends(tiers: Tiers) -> None:
    first, second = tiers.nodes["http"]
    for n in range(4):
        insert(tiers.port, n)
    assert first.terminate() == 0
    for n in range(4, 12):
        insert(tiers.port, n)
    status, body = get(tiers.port, "/api/entities/Tick?limit=100")
    assert (status, len(json.loads(body)["data"])) == (200, 12)
    assert second.request("GET", "/readyz")[0] == 200
