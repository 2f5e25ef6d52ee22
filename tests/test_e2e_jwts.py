"""JWTs over real processes: on every port, until they end; and `pylonctl jwt`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import stores
from tests.support.manifests import sign_in_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until
from tests.support.websocket_client import WebSocketClient
from tests.support.wire import parse_head
from tests.test_sse_server import Stream
from workers.hub.sessions import SESSION_ENDED
from workers.ws import frames

pytestmark = pytest.mark.stores
SECRET = "0123456789abcdef0123456789abcdef"
USER = {"email": "ada@example.com", "password": "four random words here"}


@pytest.fixture(scope="module")
def server(
    processes: None, tested_store: stores.TestStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PylonServer]:
    made = PylonServer(tmp_path_factory.mktemp("jwts"), sign_in_app(), {
        "PYLON_JWT_SECRET": SECRET, "PYLON_AUTH_RATES": "false",
    })
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def session(server: PylonServer) -> dict[str, Any]:
    status, body, _ = server.request("POST", "/api/auth/password/register", USER)
    assert status == 200, body
    found: dict[str, Any] = body
    return found


def mint(server: PylonServer, session: dict[str, Any], **body: Any) -> str:
    status, made, _ = server.request("POST", "/api/auth/jwt", body, token=session["token"])
    assert status == 200, made
    return str(made["token"])


def sse(server: PylonServer, token: str, **more: Any) -> Stream:
    return Stream(
        server.port + 2, "/events", Authorization=f"Bearer {token}", greeted=False, **more
    )


def test_a_jwt_opens_sockets_which_close_when_it_ends(
    server: PylonServer, session: dict[str, Any]
) -> None:
    token = mint(server, session, expires_in=3)
    socket = WebSocketClient(server.port + 1, token=token)
    stream = sse(server, token)
    assert parse_head(stream.head)[0] == 200
    assert socket.read_close() == (SESSION_ENDED, "session expired")
    stream.read_rest()  # ends, too
    assert WebSocketClient(server.port + 1, token=token, upgraded=False).status == 401
    assert parse_head(sse(server, token).head)[0] == 401
    assert server.request("GET", "/api/auth/me", token=token)[0] == 401


def test_its_sockets_close_when_its_user_ends_all_sessions(server: PylonServer) -> None:
    status, session, _ = server.request(
        "POST", "/api/auth/password/register", {**USER, "email": "ben@example.com"}
    )
    assert status == 200, session
    token = mint(server, session)
    socket = WebSocketClient(server.port + 1, token=token)
    status, _, _ = server.request("DELETE", "/api/auth/sessions", token=session["token"])
    assert status == 200
    assert socket.read_close() == (SESSION_ENDED, "session revoked")


def test_scopes_hold_on_sockets_and_a_message_or_url_has_no_jwt(
    server: PylonServer, session: dict[str, Any]
) -> None:
    narrow = mint(server, session, scopes="rooms")
    assert WebSocketClient(server.port + 1, token=narrow, upgraded=False).status == 403
    token = mint(server, session)
    socket = WebSocketClient(server.port + 1, token=token)  # the worker knows the token now
    anonymous = WebSocketClient(server.port + 1)
    anonymous.send_frame(frames.TEXT, json.dumps({"type": "auth", "token": token}).encode())
    answer = anonymous.read_json()
    while "code" not in json.dumps(answer):
        answer = anonymous.read_json()
    assert "UNAUTHORIZED" in json.dumps(answer)
    del socket
    stream = Stream(server.port + 2, f"/events?token={token}", greeted=False)
    assert parse_head(stream.head)[0] == 200  # of nobody
    status, found, _ = server.request("GET", "/api/auth/me", token=token)
    assert (status, found["user_id"]) == (200, session["user_id"])


def test_a_jwt_counts_again_after_the_identity_process_was_killed(
    server: PylonServer, session: dict[str, Any]
) -> None:
    token = mint(server, session)
    [pid] = server.pids("identity")
    os.kill(pid, signal.SIGKILL)
    seen: set[int] = set()

    def is_served() -> bool:
        status = server.request("GET", "/api/auth/me", token=token)[0]
        seen.add(status)
        return status == 200 and server.pids("identity") not in ([], [pid])

    wait_until("the JWT counts", is_served)
    assert seen <= {200, 503}, "nobody became anonymous, and no token was called bad"


def test_pylonctl_makes_a_jwt(server: PylonServer, session: dict[str, Any]) -> None:
    done = server.ctl(
        "jwt", "create", "--user", session["user_id"], "--readonly", "--scopes", "entity:*:read",
        "--seconds", "60", "--token", ADMIN_TOKEN,
    )
    assert done.returncode == 0, done.stderr
    token = done.stdout.strip()
    status, found, _ = server.request("GET", "/api/auth/me", token=token)
    assert (status, found["user_id"], found["readonly"]) == (200, session["user_id"], True)
    status, body, _ = server.request(
        "POST", "/api/entities/Todo", {"title": "a", "authorId": session["user_id"]}, token=token
    )
    assert (status, body["error"]["code"]) == (403, "SCOPE_DENIED")
    unknown = server.ctl("jwt", "create", "--user", "nobody", "--json")
    assert unknown.returncode == 1 and "USER_NOT_FOUND" in unknown.stdout + unknown.stderr
