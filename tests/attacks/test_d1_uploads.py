"""D1: uploads at a running server: many at once, cut off, killed, revoked, of another site."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until
from tests.support.wire import Wire

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(300)]

MIB = 1024 * 1024
UPLOAD_MIB = int(os.environ.get("PYLON_TEST_UPLOAD_MIB", "8"))
AT_ONCE = 50
ENVIRON = {
    "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "0", "PYLON_SSE_WORKERS": "0",
    "PYLON_SHARD_WORKERS": "0", "PYLON_IDENTITY_WORKERS": "0",
    "PYLON_FILE_MAX_BYTES": str(2 * 1024 * MIB),
}


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    made = PylonServer(tmp_path_factory.mktemp("uploads"), notes_app(), ENVIRON).start()
    yield made
    made.close()


def session(server: PylonServer, user_id: str) -> str:
    status, body, _ = server.request(
        "POST", "/api/auth/session", {"user_id": user_id}, token=ADMIN_TOKEN
    )
    assert status == 201, body
    token: str = body["token"]
    return token


def begin(server: PylonServer, token: str, length: int, name: str = "a.bin") -> Wire:
    wire = Wire(server.port, timeout_s=120)
    wire.send(
        f"POST /api/files/upload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
        f"X-Filename: {name}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return wire


def files_of(server: PylonServer, token: str) -> list[dict[str, Any]]:
    status, body, _ = server.request("GET", "/api/files", token=token)
    assert status == 200, body
    found: list[dict[str, Any]] = body["files"]
    return found


def incoming(server: PylonServer) -> list[Path]:
    folder = server.db_path.parent / "files" / ".incoming"
    return list(folder.iterdir()) if folder.is_dir() else []


def rss_bytes(pids: list[int]) -> int:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * resource.getpagesize()


def test_many_uploads_at_once_cost_little_memory(server: PylonServer) -> None:
    """Their size does not count: PYLON_TEST_UPLOAD_MIB=1024 sends 50 GiB."""
    tokens = [session(server, f"user{number // 4}") for number in range(AT_ONCE)]
    piece = os.urandom(MIB)
    pids = server.pids("http")
    before = peak = rss_bytes(pids)
    results: list[int] = []

    def send(token: str) -> None:
        with begin(server, token, UPLOAD_MIB * MIB) as wire:
            for _ in range(UPLOAD_MIB):
                wire.send(piece)
            results.append(wire.read_response().status)

    threads = [threading.Thread(target=send, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, rss_bytes(pids))
        threads[0].join(0.05)
        threads = [thread for thread in threads if thread.is_alive()] or threads[:1]
    assert results == [201] * AT_ONCE
    assert server.pids("http") == pids
    assert peak - before <= 64 * MIB, f"{(peak - before) / MIB:.0f} MiB"
    for file in files_of(server, ADMIN_TOKEN):
        server.request("DELETE", f"/api/files/{file['id']}", token=ADMIN_TOKEN)


@pytest.mark.parametrize("cut", ["reset", "half-close"])
def test_an_upload_that_its_client_cuts_off_leaves_nothing(server: PylonServer, cut: str) -> None:
    token = session(server, f"cut-{cut}")
    wire = begin(server, token, 3 * MIB)
    wire.send(os.urandom(MIB))
    wait_until("bytes arrive", lambda: any(path.stat().st_size for path in incoming(server)))
    if cut == "reset":
        wire.close()
    else:
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.read_response().status == 400
        wire.close()
    wait_until("the bytes are gone", lambda: not incoming(server))
    assert files_of(server, token) == []


def test_a_session_that_is_revoked_within_an_upload_stores_nothing(server: PylonServer) -> None:
    token = session(server, "revoked")
    with begin(server, token, 2 * MIB) as wire:
        wire.send(os.urandom(MIB))
        wait_until("bytes arrive", lambda: any(p.stat().st_size for p in incoming(server)))
        assert server.request("DELETE", "/api/auth/session", token=token)[0] == 200
        wire.send(os.urandom(MIB))
        assert wire.read_response().status == 401
    wait_until("the bytes are gone", lambda: not incoming(server))


def test_a_refused_upload_sends_no_body(server: PylonServer) -> None:
    with Wire(server.port) as wire:
        wire.send(
            b"POST /api/files/upload HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert wire.read_response().status == 401


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/plain", "image/png"])
def test_a_page_of_another_site_uploads_nothing_with_a_cookie(
    server: PylonServer, kind: str
) -> None:
    token = session(server, "victim")
    cookie = f"notes_session={token}"
    body = b"--x\r\nContent-Disposition: form-data; name=f; filename=a\r\n\r\nx\r\n--x--\r\n"
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {},
    ):
        status, answer, _ = server.request(
            "POST", "/api/files/upload", body,
            headers={"Cookie": cookie, "Content-Type": kind, **headers},
        )
        assert status == 403 and answer["error"]["code"] == "CSRF_REJECTED", (headers, answer)
    status, answer, _ = server.request(
        "POST", "/api/files/upload", body,
        headers={"Cookie": cookie, "Content-Type": kind, "Origin": "http://localhost:3000"},
    )
    assert status == 201, answer


def test_a_killed_worker_leaves_no_record_without_a_file(server: PylonServer) -> None:
    token = session(server, "killed")
    wires = [begin(server, token, 2 * MIB) for _ in range(3)]
    for wire in wires:
        wire.send(os.urandom(MIB))
    wait_until("bytes arrive", lambda: any(p.stat().st_size for p in incoming(server)))
    for pid in server.pids("http"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for wire in wires:
        wire.close()
    server.wait_ready()
    assert files_of(server, token) == []
    status, made, _ = server.request("POST", "/api/files/upload", b"after", token=token)
    assert status == 201
    done = server.ctl("files", "gc", "--json")
    assert done.returncode == 0 and '"missing":[]' in done.stdout, done.stdout + done.stderr
    (server.db_path.parent / "files" / made["id"][43:45] / made["id"][5:45]).unlink()
    done = server.ctl("files", "gc")
    assert done.returncode == 1 and f"no bytes: {made['id']}" in done.stdout
