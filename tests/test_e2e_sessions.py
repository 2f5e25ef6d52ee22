"""Sessions of the whole server: revocations reach all workers, sockets outlive a new token, and
`pylonctl session`; no token lies anywhere on the disk.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import websocket

from pylon.auth.tokens import session_id_of
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.stores import TestStore
from tests.support.wait import WAIT_S, wait_until

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.stores]

SLACK_S = 1.0  # of a machine that is busy with other tests
ROUNDS = 8  # requests after a revocation, which all HTTP workers get some of


@pytest.fixture(scope="module")
def server(
    tested_store: TestStore, processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PylonServer]:
    """The server of one store: without `tested_store` the second store got the first one's."""
    started = PylonServer(
        tmp_path_factory.mktemp("sessions"), notes_app(), {"PYLON_WS_WORKERS": "2"}
    )
    try:
        yield started.start()
    finally:
        started.close()


def mint(server: PylonServer, user_id: str) -> str:
    status, body = server.request(
        "POST", "/api/auth/session", {"user_id": user_id}, token=ADMIN_TOKEN
    )[:2]
    assert status == 201
    token: str = body["token"]
    return token


def user_of(server: PylonServer, token: str) -> str | None:
    found: str | None = server.request("GET", "/api/auth/me", token=token)[1]["user_id"]
    return found


def connect(server: PylonServer, token: str) -> websocket.WebSocket:
    opened = websocket.create_connection(
        f"ws://127.0.0.1:{server.port + 1}/", timeout=WAIT_S,
        header=[f"Authorization: Bearer {token}"],
    )
    ping(opened)
    return opened


def ping(opened: websocket.WebSocket) -> None:
    """Return once the worker has answered: the socket is open, and known to its hub."""
    opened.ping("x")
    while opened.recv_data(control_frame=True)[0] != websocket.ABNF.OPCODE_PONG:
        pass


def close_code(opened: websocket.WebSocket) -> int:
    """Read up to the close frame. Does not answer it: the server may have closed by then."""
    while True:
        frame = opened.recv_frame()  # type: ignore[no-untyped-call]
        if frame.opcode == websocket.ABNF.OPCODE_CLOSE:
            opened.shutdown()  # type: ignore[no-untyped-call]
            return int.from_bytes(frame.data[:2], "big")


def sse_stream(server: PylonServer, token: str) -> http.client.HTTPResponse:
    conn = http.client.HTTPConnection("127.0.0.1", server.port + 2, timeout=WAIT_S)
    conn.request("GET", "/events", headers={"Authorization": f"Bearer {token}"})
    answer = conn.getresponse()
    assert answer.status == 200
    return answer


def log_out(server: PylonServer, token: str) -> None:
    assert server.request("DELETE", "/api/auth/session", token=token)[0] == 200


def end_one(server: PylonServer, token: str) -> None:
    path = f"/api/auth/sessions/{session_id_of(token)[:16]}"
    assert server.request("DELETE", path, token=mint(server, "ada"))[0] == 200


def end_all(server: PylonServer, token: str) -> None:
    assert server.request("DELETE", "/api/auth/sessions", token=mint(server, "ada"))[0] == 200


def end_others(server: PylonServer, token: str) -> None:
    path = "/api/auth/sessions?others=1"
    assert server.request("DELETE", path, token=mint(server, "ada"))[0] == 200


def purge(server: PylonServer, token: str) -> None:
    body = {"user_id": "ada"}
    assert server.request("POST", "/api/admin/sessions/purge", body, token=ADMIN_TOKEN)[0] == 200


def revoke_by_ctl(server: PylonServer, token: str) -> None:
    done = server.ctl("session", "revoke", session_id_of(token)[:16])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end", [log_out, end_one, end_all, end_others, purge, revoke_by_ctl])
def test_a_session_that_was_ended_is_dead_everywhere_within_a_second(
    server: PylonServer, end: Callable[[PylonServer, str], None]
) -> None:
    """Attack 40. Each HTTP worker knows the caller, and each kind of socket is open."""
    token, bystander = mint(server, "ada"), mint(server, "bob")
    sockets = [connect(server, token) for _ in range(6)]
    stream = sse_stream(server, token)
    other = connect(server, bystander)
    assert {user_of(server, token) for _ in range(ROUNDS)} == {"ada"}
    end(server, token)
    ended_s = time.monotonic()
    assert [close_code(opened) for opened in sockets] == [4401] * 6
    with contextlib.suppress(http.client.IncompleteRead):
        stream.read()
    assert time.monotonic() - ended_s < 1.0 + SLACK_S
    time.sleep(max(0.0, ended_s + 1.0 - time.monotonic()))
    assert {user_of(server, token) for _ in range(ROUNDS)} == {None}
    assert user_of(server, bystander) == "bob"
    ping(other)
    for opened in (*sockets, other):
        opened.close()


def test_sockets_outlive_a_new_token_and_end_with_the_family(server: PylonServer) -> None:
    """Attack 41, and the promise that a refresh disturbs no socket."""
    old = mint(server, "ada")
    opened, stream = connect(server, old), sse_stream(server, old)
    tabs = [server.request("POST", "/api/auth/refresh", token=old)[1]["token"] for _ in range(2)]
    assert {user_of(server, token) for token in (old, *tabs)} == {"ada"}
    late = connect(server, tabs[0])
    time.sleep(1.5)  # signals and sweeps have passed
    ping(opened)
    log_out(server, tabs[1])
    assert [close_code(opened), close_code(late)] == [4401, 4401]
    with contextlib.suppress(http.client.IncompleteRead):
        stream.read()
    wait_until("tokens are dead", lambda: {user_of(server, t) for t in (old, *tabs)} == {None})


def test_a_long_pull_is_cut_off_when_its_session_ends(server: PylonServer) -> None:
    """Attack 44. The response is larger than what lies in buffers between server and client."""
    rows = [
        {"title": "x" * 20_000, "ownerId": "ada", "shared": False} for _ in range(1_000)
    ]
    for first in range(0, len(rows), 100):
        body = {"entities": {"Note": rows[first:first + 100]}}
        status, answer, _ = server.request("POST", "/api/import", body, token=ADMIN_TOKEN)
        assert status == 200, answer
    token, bystander = mint(server, "ada"), mint(server, "ada")

    def begin(token: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        conn.connect()
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        conn.request("GET", "/api/sync/pull?since=0", headers={"Authorization": f"Bearer {token}"})
        answer = conn.getresponse()
        assert answer.status == 200 and answer.read(10_000)
        return conn, answer

    ended, whole = begin(token), begin(bystander)
    log_out(server, token)
    time.sleep(1.0)  # a caller is known for so long
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        ended[1].read()
    assert len(whole[1].read()) > 15_000_000
    ended[0].close()
    whole[0].close()


def test_pylonctl_lists_and_purges_sessions(server: PylonServer) -> None:
    tokens = [mint(server, "eve") for _ in range(3)]
    listed = json.loads(server.ctl("session", "list", "--user", "eve", "--json").stdout)
    assert {each["id"] for each in listed["sessions"]} == {
        session_id_of(token)[:16] for token in tokens
    }
    assert "eve" in server.ctl("session", "list").stdout
    assert server.ctl("session", "purge").returncode == 64
    assert server.ctl("session", "revoke", "0" * 16).returncode == 1
    purged = server.ctl("session", "purge", "--user", "eve", "--older-than-days", "1")
    assert purged.stdout == "0 sessions have ended\n"
    assert server.ctl("session", "purge", "--user", "eve").stdout == "3 sessions have ended\n"
    assert server.ctl("session", "list", "--user", "eve").stdout == "no sessions\n"


def test_no_token_lies_in_a_file_a_log_a_metric_or_a_backup(
    server: PylonServer, tmp_path: Path
) -> None:
    """Attack 43."""
    old = mint(server, "ada")
    connect(server, old).close()
    new = server.request("POST", "/api/auth/refresh", token=old)[1]["token"]
    user_of(server, new)
    log_out(server, new)
    bundle = tmp_path / "bundle"
    done = server.ctl("backup", str(bundle))
    assert done.returncode == 0, done.stderr
    shown = json.dumps(server.request("GET", "/metrics", token=ADMIN_TOKEN)[1])
    shown += server.ctl("session", "list", "--json").stdout
    assert any(bundle.rglob("*"))
    found: list[str] = []
    for token in (old, new):
        secret = token.removeprefix("pylon_").encode()
        found += [
            str(path) for path in (*server.folder.rglob("*"), *bundle.rglob("*"))
            if path.is_file() and secret in path.read_bytes()
        ]
        assert secret.decode() not in shown
    assert found == []
