"""Reload and scaling of a real server under load: no request fails, every client comes back, and
no event is lost."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pylon.roles import ROLE_NAMES
from tests.support.load import Score, Writer, check_nothing_lost
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient, settle
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores


def start_writers(server: PylonServer) -> list[Writer]:
    writers = [Writer(server, f"w{n}", ADMIN_TOKEN) for n in range(4)]
    for writer in writers:
        writer.start()
    wait_until("the load runs", lambda: all(w.score.acknowledged > 20 for w in writers))
    return writers


def start_clients(stack: ExitStack, server: PylonServer) -> list[SyncClient]:
    token, _ = server.guest()
    return [
        stack.enter_context(SyncClient(server, transport, token))
        for transport in ("ws", "ws", "ws", "sse", "sse")
    ]


def go_on(writers: list[Writer]) -> None:
    before = [w.score.acknowledged for w in writers]
    wait_until("the load goes on", lambda: all(
        w.score.acknowledged > n + 20 for w, n in zip(writers, before, strict=True)
    ))


def check_no_failure(scores: list[Score]) -> None:
    for score in scores:
        assert (score.refused, score.cut, score.bad) == ([], [], [])
        assert (score.unknown, score.unknown_inserts) == (set(), set())


def run(server: PylonServer, *args: str) -> dict[str, Any]:
    done = server.ctl(*args, "--json")
    assert done.returncode == 0, done.stderr + server.log()
    body: dict[str, Any] = json.loads(done.stdout)
    return body


def all_pids(server: PylonServer) -> dict[str, set[int]]:
    roles = server.status()["roles"]
    return {role: set(roles[role]["pids"]) for role in ROLE_NAMES}


def without_note(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {k: v for k, v in row.items() if k != "note"} for key, row in rows.items()}


def test_a_reload_under_load_fails_no_request_and_loses_no_event(server: PylonServer) -> None:
    with ExitStack() as stack:
        clients = start_clients(stack, server)
        writers = start_writers(server)
        before = all_pids(server)
        assert run(server, "reload")["generation"] == 2
        after = all_pids(server)
        assert all(after[role] and not after[role] & before[role] for role in ROLE_NAMES)
        go_on(writers)
        assert run(server, "reload")["generation"] == 3
        go_on(writers)
        scores = [w.halt() for w in writers]
        check_no_failure(scores)
        assert check_nothing_lost(scores, server.rows("Tick")) > 100
        settle(clients, server, ("Tick",))
        assert [set(c.close_codes) for c in clients[:3]] == [{1012}] * 3
        assert all(client.problems == [] for client in clients)
        assert all(client.connects >= 3 for client in clients)


def test_an_additive_manifest_is_taken_over_under_load(server: PylonServer) -> None:
    manifest = json.loads(server.manifest_path.read_text())
    tick = next(each for each in manifest["entities"] if each["name"] == "Tick")
    tick["fields"].append({"name": "note", "type": "string", "optional": True, "unique": False})
    with ExitStack() as stack:
        clients = start_clients(stack, server)
        writers = start_writers(server)
        server.manifest_path.write_text(json.dumps(manifest))
        pid = server.status()["pid"]
        assert run(server, "reload")["generation"] == 2
        go_on(writers)
        status, row, _ = server.request(
            "POST", "/api/entities/Tick", {"n": 1, "sender": "note:1", "note": "new"},
            token=ADMIN_TOKEN,
        )
        assert status == 201, row
        scores = [w.halt() for w in writers]
        check_no_failure(scores)
        rows = server.rows("Tick")
        assert rows.pop(row["id"])["note"] == "new"
        assert check_nothing_lost(scores, without_note(rows)) > 80
        for client in clients:  # the field came without an event of the rows from before
            wait_until("replica equals the store", lambda c=client: without_note(
                c.snapshot()["Tick"]) == without_note(server.rows("Tick")))
        assert server.status()["pid"] == pid


def test_what_a_reload_refuses_leaves_the_server_as_it_was(server: PylonServer) -> None:
    good = server.manifest_path.read_text()
    before = all_pids(server)
    for change, named in (
        ({"name": "n", "type": "string", "optional": False, "unique": False}, "Tick.n"),
        ({"name": "n", "type": "strng", "optional": False, "unique": False}, "strng"),
    ):
        manifest = json.loads(good)
        tick = next(each for each in manifest["entities"] if each["name"] == "Tick")
        tick["fields"] = [change if f["name"] == "n" else f for f in tick["fields"]]
        server.manifest_path.write_text(json.dumps(manifest))
        done = server.ctl("reload")
        assert done.returncode == 78, done.stderr
        assert named in done.stderr
        assert len(done.stderr.splitlines()) == 1
    server.manifest_path.write_text(good)
    assert all_pids(server) == before
    assert server.ctl("scale", "shards=2").returncode == 1
    assert server.ctl("scale", "http").returncode == 64
    assert run(server, "reload")["generation"] == 2


def test_scaling_under_load_fails_no_request(server: PylonServer) -> None:
    with ExitStack() as stack:
        clients = start_clients(stack, server)
        writers = start_writers(server)
        assert run(server, "scale", "http=4", "ws=2")["ok"]
        counts = {role: len(found) for role, found in all_pids(server).items()}
        assert (counts["http"], counts["ws"]) == (4, 2)
        go_on(writers)
        done = server.ctl("scale", "http=1", "ws=1")
        assert done.returncode == 0
        assert "to keep it, set PYLON_HTTP_WORKERS=1 and PYLON_WS_WORKERS=1" in done.stderr
        assert server.status()["scaled"] == {"http": 1}
        go_on(writers)
        scores = [w.halt() for w in writers]
        check_no_failure(scores)
        assert check_nothing_lost(scores, server.rows("Tick")) > 100
        settle(clients, server, ("Tick",))


def test_a_slow_request_and_an_open_connection_outlive_the_new_workers(
    server: PylonServer,
) -> None:
    body = json.dumps({"n": 1, "sender": "slow:1"}).encode()
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    slow.sendall(
        b"POST /api/entities/Tick HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
        b"Content-Length: %d\r\n\r\n" % (ADMIN_TOKEN.encode(), len(body)) + body[:5]
    )
    wait_until("the workers answer", lambda: len(server.pids("http")) == 2)
    answers: list[dict[str, Any]] = []
    reloading = threading.Thread(target=lambda: answers.append(run(server, "reload")))
    reloading.start()
    wait_until("the old ones drain", lambda: server.status()["reload"] == "draining")
    # By the new workers, which wait for their first report.
    wait_until("they are ready", lambda: server.request("GET", "/readyz")[0] == 200, 2.0)
    slow.sendall(body[5:])
    answer = b""
    while part := slow.recv(65_536):
        answer += part
    assert answer.startswith(b"HTTP/1.1 201 Created"), answer
    assert b"connection: close" in answer.lower()
    reloading.join(60)
    assert answers[0]["killed"] is False


def test_settings_of_the_env_file_are_taken_over(server: PylonServer) -> None:
    """By SIGHUP, too, as systemd's ExecReload= may send it."""
    assert server.terminate() == 0
    env_file = server.folder / "pylon.env"
    env_file.write_text("PYLON_LIST_LIMIT=3\n")
    server.command += ["--env-file", str(env_file)]
    server.start()

    def answers(count: int) -> bool:
        """Whether a list may have `count` rows."""
        status, body, _ = server.request(
            "GET", f"/api/entities/Tick?limit={count}", token=ADMIN_TOKEN
        )
        return status == 200 and len(body["data"]) == count

    for n in range(8):
        status, _, _ = server.request(
            "POST", "/api/entities/Tick", {"n": n, "sender": f"a:{n}"}, token=ADMIN_TOKEN
        )
        assert status == 201
    assert answers(3) and not answers(5)
    env_file.write_text("PYLON_LIST_LIMIT=5\n")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_until("five rows", lambda: answers(5))
    wait_until("the reload has ended", lambda: server.status()["generation"] == 2)
    env_file.write_text("PYLON_LIST_LIMIT=5\nPYLON_RUNTIME_DIR=/tmp/elsewhere\n")
    refused = server.ctl("reload")
    assert refused.returncode == 78
    assert "PYLON_RUNTIME_DIR" in refused.stderr


@pytest.mark.sqlite
def test_a_keep_alive_client_is_told_before_its_connection_closes(server: PylonServer) -> None:
    """A client that asks often never meets a closed connection."""
    failed: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while not ended.is_set():
            try:
                conn.request("GET", "/health")
                answer = conn.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as ex:
                failed.append(repr(ex))
                return
            if answer.will_close:
                conn.close()
            time.sleep(0.01)

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for _ in range(3):
        run(server, "reload")
    ended.set()
    for asker in askers:
        asker.join()
    assert failed == []


@pytest.mark.sqlite
def test_a_reload_leaves_idle_connections_open_for_the_time_of_its_spread(
    server: PylonServer,
) -> None:
    """Nobody waits for the old workers. So a client that asks once a second is answered, too."""
    conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    conn.request("GET", "/health")
    answer = conn.getresponse()
    answer.read()
    assert not answer.will_close
    first = conn.sock
    reloading = threading.Thread(target=run, args=(server, "reload"))
    reloading.start()
    wait_until("the old ones drain", lambda: server.status()["reload"] == "draining")
    assert select.select([first], [], [], 1.0) == ([], [], []), "it is open after a second"
    conn.request("POST", "/api/entities/Tick", '{"n":1,"sender":"late:1"}', {
        "Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json",
    })
    answer = conn.getresponse()
    assert (answer.status, answer.will_close) == (201, True)
    reloading.join(60)
    assert not reloading.is_alive()


def test_the_pidfile_and_the_folder_of_the_run_stay(server: PylonServer) -> None:
    pidfile = Path(f"{server.db_path}.pid")
    before = json.loads(pidfile.read_text())
    run(server, "reload")
    assert json.loads(pidfile.read_text()) == before
    os.kill(before["pid"], 0)
    assert Path(before["runtime_dir"]).is_dir()
