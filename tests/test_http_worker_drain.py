"""The HTTP role for real: an arbiter and its workers behind a supervisor, and their drain."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.measured import page_values
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "drain", "version": "1.0.0",
    "entities": [{
        "name": "Item", "indexes": [], "relations": [],
        "fields": [{"name": "text", "type": "string", "optional": False, "unique": False}],
    }],
    "routes": [], "queries": [], "actions": [],
    "policies": [{"name": "all", "entity": "Item", "allow": "true"}],
}


def make_server(folder: Path) -> PylonServer:
    return PylonServer(
        folder, MANIFEST,
        {"PYLON_DRAIN_SECS": "20", "PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.fixture
def server(processes: None, tmp_path: Path) -> Iterator[PylonServer]:
    """A server for one test, which may stop it."""
    made = make_server(tmp_path)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    """A server for the tests that leave it running."""
    made = make_server(tmp_path_factory.mktemp("http"))
    try:
        yield made.start()
    finally:
        made.close()


def read_answer(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    parts = []
    while part := sock.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    """What arrives up to `mark`, or up to the end of the connection."""
    got = b""
    while mark not in got and (part := sock.recv(65_536)):
        got += part
    return got


def ended(server: PylonServer) -> threading.Thread:
    """A thread that ends when the server has ended."""
    assert server.process is not None
    waiting = threading.Thread(target=server.process.wait, args=(60,))
    waiting.start()
    return waiting


def test_requests_in_flight_are_answered_and_idle_connections_closed(server: PylonServer) -> None:
    idle = http.client.HTTPConnection("127.0.0.1", server.port)
    idle.request("GET", "/health")
    assert idle.getresponse().read()
    assert idle.sock is not None
    body = json.dumps({"text": "written while stopping"}).encode()
    in_flight = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    in_flight.sendall(
        b"POST /api/entities/Item HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body[:5]
    )
    # By the time status has answered, the workers have long read what was sent before.
    wait_until("both workers answer", lambda: len(server.pids("http")) == 2)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    waiting = ended(server)
    assert idle.sock.recv(1) == b""  # closed at once, though keep-alive
    in_flight.sendall(body[5:])
    answer = read_answer(in_flight)
    assert answer.startswith(b"HTTP/1.1 201 Created"), answer
    waiting.join(30)
    assert server.process.returncode == 0
    assert '"Socket error' not in server.log()


def test_a_stop_with_idle_connections_is_quick(server: PylonServer) -> None:
    connections = []
    for _ in range(20):
        conn = http.client.HTTPConnection("127.0.0.1", server.port)
        conn.request("GET", "/health")
        assert conn.getresponse().read()
        connections.append(conn)
    assert server.terminate(timeout_s=10) == 0  # far less than the 20 s of grace
    for conn in connections:
        assert conn.sock is not None
        assert conn.sock.recv(1) == b""


def test_a_killed_worker_is_replaced_and_metrics_never_go_back(shared: PylonServer) -> None:
    def counted() -> float:
        status, page, _ = shared.request(
            "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"}
        )
        assert status == 200, page
        return sum(page_values(page, "pylon_http_requests_total", route="/api/auth/me"))

    for _ in range(10):
        assert shared.request("GET", "/api/auth/me")[0] == 200
    wait_until("ten requests are counted", lambda: counted() == 10)
    first = shared.pids("http")
    os.kill(first[0], signal.SIGKILL)
    wait_until(
        "another process took its place",
        lambda: len(shared.pids("http")) == 2 and first[0] not in shared.pids("http"),
        60,
    )
    assert counted() == 10
    assert shared.request("GET", "/readyz")[0] == 200


def test_a_declared_body_over_the_limit_is_refused_unread(shared: PylonServer) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as sock:
        sock.sendall(
            b"POST /api/entities/Item HTTP/1.1\r\nHost: x\r\nContent-Length: 11534418\r\n\r\n"
        )
        answer = read_until(sock, b"}}")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Content-Length 11534418 exceeds max of 10485760" in answer


def chunked(size_bytes: int) -> bytes:
    chunk = b"x" * 65_536
    whole, rest = divmod(size_bytes, len(chunk))
    parts = [b"10000\r\n" + chunk + b"\r\n"] * whole
    if rest:
        parts.append(b"%x\r\n" % rest + chunk[:rest] + b"\r\n")
    return b"".join(parts) + b"0\r\n\r\n"


def test_chunked_bodies(shared: PylonServer) -> None:
    head = b"POST /api/entities/Item HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({"text": "in chunks"}).encode()
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as sock:
        sock.sendall(head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 201 ")
        sock.sendall(head + chunked(10 * 1024 * 1024 + 1))
        answer = read_until(sock, b"}}")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Request body exceeds maximum size of 10485760 bytes" in answer


def test_length_and_chunks_together_are_refused(shared: PylonServer) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as sock:
        sock.sendall(
            b"POST /api/entities/Item HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert sock.recv(65_536).startswith(b"HTTP/1.1 400 ")
