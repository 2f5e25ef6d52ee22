"""The metrics page of a real server, read by promtool."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.support import stores
from tests.support.measured import page_families, page_values
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient
from tests.support.wait import wait_until

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.stores]

Program = Callable[[str, str], str]


def page_of(server: PylonServer) -> str:
    status, page, _ = server.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"}
    )
    assert status == 200
    return str(page)


def value_of(page: str, name: str, **labels: str) -> float:
    (value,) = page_values(page, name, **labels)
    return value


@pytest.mark.sqlite  # sizes of its files
def test_page_of_a_busy_server_passes_promtool(server: PylonServer, program: Program) -> None:
    promtool = program("promtool", "prometheus")
    token, user = server.guest()
    server.request("POST", "/api/entities/Tick", {"n": 1, "sender": user}, token=token)
    server.request("GET", "/api/entities/Nothing", token=token)
    server.request("GET", "/api/sync/pull?since=0", token=token)
    assert server.ctl("backup", str(server.folder / "bundle")).returncode == 0
    # The flusher counts sessions and sizes some time after the start.
    wait_until("sessions are counted", lambda: page_values(
        page_of(server), "pylon_sessions", kind="user"))
    page = page_of(server)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    # A checkpoint may come between the page and the look at the file.
    wait_until("the page has the size of the file", lambda: value_of(
        page_of(server), "pylon_db_size_bytes") == server.db_path.stat().st_size)
    disk = os.statvfs(server.folder)
    free = value_of(page, "pylon_disk_free_bytes")
    assert 0 < free <= disk.f_blocks * disk.f_frsize
    assert value_of(page, "pylon_backup_size_bytes") > 0
    assert value_of(page, "pylon_workers_wanted", role="http") >= 1
    assert value_of(page, "pylon_sessions", kind="user") == 0


def send_raw(server: PylonServer, data: bytes) -> bytes:
    """Send bytes, and return all that the server answers until it closes."""
    with socket.create_connection((server.host, server.port), timeout=30) as sock:
        sock.sendall(data)
        received = b""
        while part := sock.recv(65_536):
            received += part
    return received


def http_series(page: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in page_families(page).values() for sample in family.samples
        if sample.name.startswith("pylon_http_")
    }


def test_refused_heads_are_counted_and_odd_requests_add_no_series(server: PylonServer) -> None:
    def odd(number: int) -> bytes:
        return b"".join(
            b"GET /%b%d?q=%d HTTP/1.1\r\nHost: x\r\n\r\n" % (path, number, number)
            for path in (b"odd", b"api/entities/Tick/", b"api/entities/E", b"api/rooms/", b"api/x")
        ) + b"ODD%d / HTTP/1.1\r\nHost: x\r\n\r\n" % number

    def send(numbers: range) -> None:
        for number in numbers:
            send_raw(server, b"GET / HTTP/1.1\r\nHost: x\r\nBad Name%d: 1\r\n\r\n" % number)
        requests = b"".join(map(odd, numbers))
        answers = send_raw(server, requests + b"GET /end HTTP/1.1\r\nHost: x\r\n"
                           b"Connection: close\r\n\r\n")
        assert answers.count(b"HTTP/1.1 ") == 6 * len(numbers) + 1

    def refused() -> float:
        return sum(page_values(page_of(server), "pylon_http_requests_total", route="none",
                               method="OTHER", status="400"))

    send(range(1))
    wait_until("the refused head is on the page", lambda: refused() >= 1)
    before, series = refused(), http_series(page_of(server))
    send(range(1, 200))
    wait_until("all refused heads are on the page", lambda: refused() >= before + 199)
    assert http_series(page_of(server)) == series
    assert value_of(page_of(server), "pylon_http_errors_total", code="INVALID_REQUEST") >= 200


def test_a_dead_http_worker_is_counted_as_a_restart(server: PylonServer) -> None:
    [pid, *_] = server.pids("http")
    os.kill(pid, signal.SIGKILL)
    wait_until("another one answers", lambda: (
        (pids := server.pids("http")) and pid not in pids and server.status()["ready"]))
    page = page_of(server)
    assert value_of(page, "pylon_worker_restarts_total", role="http", reason="died") == 1
    assert server.status()["restarts"] == 1
    assert server.terminate() == 0
    assert '"event":"child.died"' in server.log_path.read_text()


def test_a_guest_is_in_use_once_its_token_was_seen(server: PylonServer) -> None:
    token, _ = server.guest()
    socket_token, _ = server.guest()
    server.guest()

    def unused() -> int:
        ((count,),) = stores.run_sql(server.db_path, "SELECT count(*) FROM _pylon_unused_guests")
        return int(count)

    assert unused() == 3
    assert server.request("GET", "/api/auth/me", token=token)[0] == 200
    wait_until("an HTTP worker has told", lambda: unused() == 2)
    with SyncClient(server, "ws", socket_token):
        wait_until("the other one is in use as well", lambda: unused() == 1)
