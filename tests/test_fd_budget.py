"""Descriptors: the soft limit is raised, the last ones are kept back, and who is in is unharmed."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import websocket

from pylon import limits
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

LIMIT = 256


@pytest.mark.usefixtures("processes")
def test_the_soft_limit_is_raised_and_a_low_hard_one_is_told_of() -> None:
    script = (
        "import resource; from pylon.runtime import fd_budget as d\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))\n"
        "d.raise_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE), d.warnings())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert done.stdout.startswith("(200, 200) ['each process may open 200 files (ulimit -Hn)")
    assert "LimitNOFILE=" in done.stdout


def test_without_descriptors_clients_wait_and_the_others_are_served(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server().start()
    assert server.process is not None
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] == resource.getrlimit(
        resource.RLIMIT_NOFILE
    )[1]
    old = server.pids("ws")[0]
    resource.prlimit(template_of(server), resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    os.kill(old, 9)
    wait_until("another ws worker", lambda: server.pids("ws") not in ([], [old]))
    server.wait_ready()
    pid = server.pids("ws")[0]
    descriptors = Path(f"/proc/{pid}/fd")
    header = [f"Authorization: Bearer {ADMIN_TOKEN}"]
    first = websocket.create_connection(server_url(server), timeout=WAIT_S, header=header)

    def insert(n: int) -> None:
        assert server.request(
            "POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=ADMIN_TOKEN
        )[0] == 201
        assert json.loads(first.recv())["data"]["n"] == n

    insert(1)
    with ExitStack() as stack:
        for _ in range(LIMIT):  # more than there is room for; the kernel takes the rest
            client = socket.create_connection(("127.0.0.1", server.port + 1), timeout=WAIT_S)
            stack.callback(client.close)
            client.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
        wait_until("it is full", lambda: "accept.paused" in server.log())
        insert(2)
        with pytest.raises(websocket.WebSocketBadStatusException, match="503"):
            websocket.create_connection(
                f"ws://127.0.0.1:{server.port}/api/sync/ws", timeout=WAIT_S, header=header
            )
        insert(3)
        assert len(list(descriptors.iterdir())) <= LIMIT - limits.DESCRIPTORS_RESERVED + 8
        assert server.log_path.read_text().count("accept.paused") == 1
    again = websocket.create_connection(server_url(server), timeout=WAIT_S, header=header)
    again.close()
    insert(4)
    first.close()
    assert server.pids("ws") == [pid]


def template_of(server: PylonServer) -> int:
    """Return the process that forks the workers, which inherit its limits."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return next(
        int(pid) for pid in children.split()
        if b"workers.template" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def server_url(server: PylonServer) -> str:
    return f"ws://127.0.0.1:{server.port + 1}/"


def test_http_worker_without_descriptors_serves_those_who_are_in(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server(PYLON_HTTP_WORKERS="1").start()
    old = server.pids("http")[0]
    resource.prlimit(arbiter_of(server), resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    os.kill(old, 9)
    wait_until("another HTTP worker", lambda: server.pids("http") not in ([], [old]))
    server.wait_ready()
    with ExitStack() as stack:
        def connect() -> socket.socket:
            return stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S))

        body = b'{"n": 1, "sender": "x"}'
        inside = connect()
        inside.sendall(
            b"POST /api/entities/Tick HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {ADMIN_TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body[:5])
        others = [connect() for _ in range(LIMIT)]  # which send nothing
        wait_until("it is full", lambda: "accept.paused" in server.log())
        inside.sendall(body[5:])
        assert inside.recv(4_096).startswith(b"HTTP/1.1 201 ")
        for each in others:
            each.close()
    wait_until("others are let in", lambda: server.request("GET", "/readyz")[0] == 200)

    def count_pauses() -> float:
        page = server.request(
            "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"})[1]
        (pauses,) = re.findall(r'pylon_accept_pauses_total{role="http"} (\S+)', page)
        return float(pauses)

    wait_until("it is counted", lambda: count_pauses() >= 1)


def arbiter_of(server: PylonServer) -> int:
    """The parent of the HTTP workers."""
    stat = Path(f"/proc/{server.pids('http')[0]}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])
