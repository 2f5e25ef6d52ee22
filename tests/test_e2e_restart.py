"""`pylonctl restart` under load: the process stays, requests wait, and no event is lost."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.load import Writer, check_nothing_lost
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient, settle
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores


def restart(server: PylonServer) -> dict[str, Any]:
    done = server.ctl("restart", "--json", timeout_s=170)  # its own patience is 150
    assert done.returncode == 0, done.stderr + server.log()
    body: dict[str, Any] = json.loads(done.stdout)
    return body


def test_a_restart_under_load_fails_no_request_and_loses_no_event(server: PylonServer) -> None:
    token, _ = server.guest()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(SyncClient(server, transport, token))
            for transport in ("ws", "ws", "sse")
        ]
        writers = [Writer(server, f"w{n}", ADMIN_TOKEN) for n in range(4)]
        for writer in writers:
            writer.start()
        wait_until("the load runs", lambda: all(w.score.acknowledged > 20 for w in writers))
        before = server.status()
        for generation in (2, 3):
            assert restart(server)["generation"] == generation
            counts = [w.score.acknowledged for w in writers]
            wait_until("the load goes on", lambda c=counts: all(
                w.score.acknowledged > n + 20 for w, n in zip(writers, c, strict=True)))
        after = server.status()
        assert (after["pid"], after["ports"]) == (before["pid"], before["ports"])
        assert after["started_at_s"] > before["started_at_s"]
        scores = [w.halt() for w in writers]
        for score in scores:
            assert (score.refused, score.cut, score.bad) == ([], [], [])
            assert (score.unknown, score.unknown_inserts) == (set(), set())
        assert check_nothing_lost(scores, server.rows("Tick")) > 100
        settle(clients, server, ("Tick",))
        assert [set(client.close_codes) for client in clients[:2]] == [{1012}] * 2
        assert all(client.problems == [] for client in clients)
    assert server.terminate() == 0


@pytest.fixture
def private_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, wherever pytest has its own."""
    with tempfile.TemporaryDirectory(prefix="pylon-test-") as folder:
        yield Path(folder)


@pytest.mark.sqlite
def test_a_restart_takes_over_every_setting_and_refuses_what_cannot_be_used(
    server: PylonServer, private_folder: Path,
) -> None:
    assert server.terminate() == 0
    env_file = server.folder / "pylon.env"
    env_file.write_text("")
    del server.env["PYLON_SOCKETS_PER_IP"]
    server.command += ["--env-file", str(env_file)]
    server.start()
    pid = server.status()["pid"]
    env_file.write_text("PYLON_SOCKETS_PER_IP=many\n")
    refused = server.ctl("restart")
    assert refused.returncode == 78
    assert "PYLON_SOCKETS_PER_IP" in refused.stderr
    assert server.status()["generation"] == 1
    other = private_folder / "run2"
    env_file.write_text(f"PYLON_RUNTIME_DIR={other}\n")
    assert server.ctl("reload").returncode == 78
    assert restart(server)["generation"] == 2
    status = server.status()
    assert (status["pid"], status["runtime_dir"]) == (pid, str(other))


@pytest.mark.sqlite
def test_a_connection_made_during_a_restart_is_answered(server: PylonServer) -> None:
    """Also one that came before the new program accepts."""
    done: list[dict[str, Any]] = []
    with ExitStack() as stack:
        restarting = threading.Thread(target=lambda: done.append(restart(server)))
        restarting.start()
        answers = []
        while restarting.is_alive():
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=60)
            )
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answers.append(sock.recv(12))
        restarting.join()
        assert set(answers) == {b"HTTP/1.1 200"}
    assert done[0]["generation"] >= 2
