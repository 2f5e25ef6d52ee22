"""kill -9 of any process in the middle of a write load: nothing acknowledged is lost, every
client converges. SIGTERM under load: every accepted request is answered."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.load import Writer, check_nothing_lost
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient, settle
from tests.support.wait import WAIT_S, wait_until

pytestmark = pytest.mark.stores


def start_writers(server: PylonServer, count: int) -> list[Writer]:
    writers = [Writer(server, f"w{n}", ADMIN_TOKEN) for n in range(count)]
    for writer in writers:
        writer.start()
    wait_until("the load runs", lambda: all(w.score.acknowledged > 20 for w in writers))
    return writers


def start_clients(stack: ExitStack, server: PylonServer) -> list[SyncClient]:
    token, _ = server.guest()
    return [
        stack.enter_context(SyncClient(server, transport, token))
        for transport in ("ws", "ws", "sse")
    ]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(") ", 1)[1].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("role", ["http", "ws", "sse", "shards"])
def test_kill_9_of_a_worker(server: PylonServer, role: str) -> None:
    with ExitStack() as stack:
        clients = start_clients(stack, server)
        writers = start_writers(server, 4)
        victim = server.pids(role)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(f"{role} process {victim} is gone", lambda: gone(victim))
        wait_until(
            "a new one is ready",
            lambda: victim not in server.pids(role)
            and server.request("GET", "/readyz")[0] == 200,
        )
        before = [w.score.acknowledged for w in writers]
        wait_until(
            "the load goes on",
            lambda: all(
                w.score.acknowledged > n + 20 for w, n in zip(writers, before, strict=True)
            ),
        )
        scores = [w.halt() for w in writers]
        assert check_nothing_lost(scores, server.rows("Tick")) > 100
        settle(clients, server, ("Tick",))
        assert all(c.resyncs == 0 for c in clients)


@pytest.mark.parametrize("durability", ["normal", "full"])
def test_kill_9_of_the_supervisor(
    make_server: Callable[..., PylonServer], durability: str
) -> None:
    server = make_server(PYLON_DURABILITY=durability).start()
    with ExitStack() as stack:
        clients = start_clients(stack, server)
        writers = start_writers(server, 4)
        children = [pid for role in ("http", "ws", "sse", "shards") for pid in server.pids(role)]
        server.kill()
        for pid in children:
            wait_until(f"child {pid} followed its supervisor", lambda p=pid: gone(p))
        server.start()
        before = [w.score.acknowledged for w in writers]
        wait_until(
            "the load goes on",
            lambda: all(w.score.acknowledged > n for w, n in zip(writers, before, strict=True)),
        )
        scores = [w.halt() for w in writers]
        assert check_nothing_lost(scores, server.rows("Tick")) > 100
        settle(clients, server, ("Tick",))


def test_sigterm_under_load(server: PylonServer) -> None:
    with ExitStack() as stack:
        clients = start_clients(stack, server)
        writers = start_writers(server, 4)
        wait_until(
            "writes are acknowledged", lambda: sum(w.score.acknowledged for w in writers) > 100
        )
        started = [begin_insert(server, n) for n in range(20)]
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        wait_until("the port no longer answers", lambda: not connects(server.port))
        for conn, rest in started:
            conn.sendall(rest)
        answers = [read_answer(conn) for conn, _ in started]
        assert server.process.wait(40) == 0, server.log()
        scores = [w.halt() for w in writers]
        assert all(status == 201 for status, _ in answers), answers
        assert [s.cut for s in scores] == [[], [], [], []]
        wait_until("close frames", lambda: all(c.close_codes for c in clients))
        assert [c.close_codes[0] for c in clients] == [1001, 1001, 0]
        wal = Path(f"{server.db_path}-wal")
        assert not wal.exists() or wal.stat().st_size == 0
        server.start()
        stored = server.rows("Tick")
        for _, body in answers:
            assert stored.pop(body["id"])["sender"] == "in flight"
        assert check_nothing_lost(scores, stored) > 100


@pytest.mark.sqlite
def test_sigterm_answers_every_connection_that_was_made(server: PylonServer) -> None:
    """Each client connects anew for each request. A refused connection is no fault of a server
    that ends, but one that is made and then cut is."""
    cut: list[str] = []
    answered = [0] * 16

    def ask(number: int) -> None:
        while True:
            try:
                conn = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            except OSError:
                return  # refused: the server has ended
            with conn:
                try:
                    conn.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if not conn.recv(100).startswith(b"HTTP/1.1 200 "):
                        cut.append("closed without an answer")
                except OSError as ex:
                    cut.append(repr(ex))
            answered[number] += 1

    askers = [threading.Thread(target=ask, args=(number,)) for number in range(len(answered))]
    for asker in askers:
        asker.start()
    wait_until("all clients are answered", lambda: min(answered) > 20)
    assert server.terminate() == 0
    for asker in askers:
        asker.join()
    assert cut == []


def begin_insert(server: PylonServer, n: int) -> tuple[socket.socket, bytes]:
    """A connection on which a request has been accepted and half sent, and its other half."""
    body = json.dumps({"n": n, "sender": "in flight"}).encode()
    conn = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    conn.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    received = b""
    while b'"version"' not in received:
        received += conn.recv(4096)
    head = (
        f"POST /api/entities/Tick HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    conn.sendall(head + body[:5])
    return conn, body[5:]


def read_answer(conn: socket.socket) -> tuple[int, dict[str, str]]:
    answer = http.client.HTTPResponse(conn)
    answer.begin()
    body = json.loads(answer.read())
    conn.close()
    return answer.status, body


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_second_sigterm_cuts_the_drain_short(server: PylonServer) -> None:
    """A request that never ends would hold the drain for PYLON_DRAIN_SECS."""
    conn, _ = begin_insert(server, 1)
    status, made, _ = server.request(
        "POST", "/api/entities/Tick", {"n": 1, "sender": "kept"}, token=ADMIN_TOKEN
    )
    assert status == 201
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    wait_until("draining", lambda: not connects(server.port))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(WAIT_S) != 0
    conn.close()
    server.start()
    assert made["id"] in server.rows("Tick")


def test_a_push_is_carried_out_once_whatever_is_killed(server: PylonServer) -> None:
    """The same op_id, sent again after each crash, is applied exactly once."""
    token, _ = server.guest()
    push = {
        "client_id": "c",
        "changes": [{"entity": "Tick", "row_id": "_pending_1", "kind": "insert", "op_id": "op-1",
                     "data": {"n": 1, "sender": "push"}}],
    }
    first = server.request("POST", "/api/sync/push", push, token=token)[1]
    assert (first["applied"], first["deduped"]) == (1, 0)
    server.kill()
    server.start()
    again = server.request("POST", "/api/sync/push", push, token=token)[1]
    assert (again["applied"], again["deduped"]) == (1, 1)
    assert again["results"][0]["status"] == "replayed"
    assert again["results"][0]["row_id"] == first["results"][0]["row_id"]
    other, _ = server.guest()
    theirs = server.request("POST", "/api/sync/push", push, token=other)[1]
    assert (theirs["applied"], theirs["deduped"]) == (1, 0)
    assert len(server.rows("Tick")) == 2


def test_a_stopped_ws_worker_delays_nobody_else(server: PylonServer) -> None:
    """SIGSTOP of one worker: HTTP and SSE go on; it catches up when it runs again."""
    token, _ = server.guest()
    with SyncClient(server, "ws", token) as ws, SyncClient(server, "sse", token) as sse:
        pid = server.pids("ws")[0]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(3.0, os.kill, (pid, signal.SIGCONT)).start()
        for n in range(50):
            status, _, _ = server.request(
                "POST", "/api/entities/Tick", {"n": n, "sender": "s"}, token=token
            )
            assert status == 201
        wait_until("SSE has all", lambda: len(sse.snapshot().get("Tick", {})) == 50, 2.5)
        settle([ws, sse], server, ("Tick",))
        assert ws.problems == []
