"""A worker that has grown is replaced: what it was doing is finished, and nobody is refused."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable

import pytest
import websocket

from supervisor.memory_guard import private_bytes
from tests.support.changed_server import change
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

LIMIT_MIB = 150
# A worker that finds a file named eat-<role> takes 200 MiB, once.
EATING = """
from pathlib import Path
run_status = module.run_status
def eat(booted):
    import gevent
    while True:
        gevent.sleep(0.05)
        try:
            Path("eat-" + booted.role).unlink()
        except FileNotFoundError:
            continue
        booted.used_sessions.__class__.eaten = b"x" * (200 << 20)
def eating_status(booted, *rest):
    import gevent
    gevent.spawn(eat, booted)
    run_status(booted, *rest)
module.run_status = eating_status
"""
QUICK = "from pylon import limits; limits.MEMORY_MIN_AGE_S = limits.MEMORY_LOOK_S = 0.2"


@pytest.fixture
def grown(make_server: Callable[..., PylonServer]) -> PylonServer:
    server = make_server(PYLON_WORKER_MEMORY_MIB=str(LIMIT_MIB), PYLON_HTTP_WORKERS="1")
    server.command = change("workers.boot", EATING, QUICK)
    return server.start()


def test_private_memory_is_that_of_this_process_alone() -> None:
    before = private_bytes(os.getpid())
    block = b"x" * (64 << 20)
    assert 60 << 20 < private_bytes(os.getpid()) - before < 100 << 20
    del block
    assert private_bytes(2**22 + 1) == 0


def test_http_worker_finishes_its_request_before_it_is_replaced(grown: PylonServer) -> None:
    (old,) = grown.pids("http")
    body = json.dumps({"n": 1, "sender": "in flight"}).encode()
    with socket.create_connection(("127.0.0.1", grown.port), timeout=WAIT_S) as conn:
        conn.sendall(
            f"POST /api/entities/Tick HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {ADMIN_TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body[:5])
        (grown.folder / "eat-http").touch()
        wait_until("it is retired", lambda: "worker.too_large" in grown.log_path.read_text())
        conn.sendall(body[5:])
        assert conn.recv(4_096).startswith(b"HTTP/1.1 201 ")
    wait_until("a successor", lambda: grown.pids("http") not in ([], [old]))
    grown.wait_ready()
    assert [row["sender"] for row in grown.rows("Tick").values()] == ["in flight"]
    page = grown.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"})[1]
    assert 'pylon_worker_restarts_total{reason="memory",role="http"} 1.0' in page
    assert "SIGKILL" not in grown.log_path.read_text()
    assert grown.terminate() == 0


def test_ws_worker_closes_its_sockets_and_is_replaced_at_once(grown: PylonServer) -> None:
    (old,) = grown.pids("ws")

    def connect() -> websocket.WebSocket:
        return websocket.create_connection(
            f"ws://127.0.0.1:{grown.port + 1}/", timeout=WAIT_S,
            header=[f"Authorization: Bearer {ADMIN_TOKEN}"])

    client = connect()
    (grown.folder / "eat-ws").touch()
    code, data = client.recv_data()
    assert code == websocket.ABNF.OPCODE_CLOSE and int.from_bytes(data[:2], "big") == 1001
    connect().close()
    wait_until("a successor", lambda: grown.pids("ws") not in ([], [old]))
    page = grown.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"})[1]
    assert 'pylon_worker_restarts_total{reason="memory",role="ws"} 1.0' in page
    events = [json.loads(line)["event"] for line in grown.log_path.read_text().splitlines()
              if line.startswith("{")]
    assert events.count("worker.too_large") == 1 and "child.died" not in events
    assert grown.terminate() == 0
