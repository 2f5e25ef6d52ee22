"""C1: who a request counts as (identity.md §1.0, attacks 12 and 26).

The admin token is no ambient credential: a cookie, a URL or a message with it is nobody's. Bad keys
and JWTs are refused, and only where a client sends them deliberately.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import config as settings
from pylon.auth.api_keys import id_of
from pylon.auth.sessions import is_admin_token
from pylon.auth.tokens import is_jwt
from pylon.errors import InvalidApiKey, StartRefused
from tests.support.api import ADMIN_TOKEN, METRICS_TOKEN, ApiStage, serve_api
from tests.support.stage import ADMIN_TOKEN as STAGE_ADMIN
from tests.support.stage import Stage
from tests.support.wire import Wire, parse_head
from tests.test_api_auth import MANIFEST
from tests.test_sse_server import PAGE, Stream

COOKIE = "My_App_session"
OLD_ADMIN = "admin-token-before-the-rotation-0123456789"
KEYS = ["pk.", "pk.abc.def", "pk." + "x" * 500]
JWTS = [
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", "eyJ.eyJ.sig", "ey..", "eyJhbGciOiJIUzI1NiJ9.e30.AAAA",
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST, {"PYLON_ADMIN_TOKEN_PREVIOUS": OLD_ADMIN}) as made:
        yield made


def me(server: ApiStage, target: str = "/api/auth/me", **headers: str) -> dict[str, Any]:
    found: dict[str, Any] = server.call("GET", target, headers=headers).json
    return found


# --- The admin token -----------------------------------------------------------------------


@pytest.mark.parametrize("token", [ADMIN_TOKEN, OLD_ADMIN])
def test_the_present_and_the_previous_admin_token_count_in_the_header_alone(
    server: ApiStage, token: str
) -> None:
    assert me(server, Authorization=f"Bearer {token}")["is_admin"]
    for headers in ({"Cookie": f"{COOKIE}={token}"}, {"X-Admin-Token": token},
                    {"Authorization": f"Basic {token}"}, {"Authorization": token},
                    {"Cookie": f"Authorization=Bearer {token}"}):
        assert not me(server, **headers)["is_admin"]
    for name in ("token", "admin_token", "access_token"):
        assert not me(server, f"/api/auth/me?{name}={token}")["is_admin"]
    with_both = me(
        server, Authorization=f"Bearer {server.user('u1')}", Cookie=f"{COOKIE}={token}"
    )
    assert (with_both["user_id"], with_both["is_admin"]) == ("u1", False)


def test_a_token_that_only_begins_or_ends_as_the_admin_token_is_nobody(server: ApiStage) -> None:
    for token in (ADMIN_TOKEN[:-1], ADMIN_TOKEN + "x", OLD_ADMIN[1:], ADMIN_TOKEN.upper(), "",
                  METRICS_TOKEN, f"{ADMIN_TOKEN},{OLD_ADMIN}"):
        assert not me(server, Authorization=f"Bearer {token}")["is_admin"]


def test_without_a_previous_token_the_empty_one_is_nobody() -> None:
    config = settings.load({"PYLON_ADMIN_TOKEN": ADMIN_TOKEN}).config
    assert is_admin_token(ADMIN_TOKEN, config)
    assert not is_admin_token("", config)
    assert not is_admin_token("None", config)


def test_a_previous_token_without_a_present_one_stops_the_start() -> None:
    environ = {"PYLON_ADMIN_TOKEN_PREVIOUS": OLD_ADMIN, "PYLON_CORS_ORIGIN": PAGE}
    with pytest.raises(StartRefused, match="PYLON_ADMIN_TOKEN_PREVIOUS is set without"):
        settings.refuse_unsafe(settings.load(environ).config)


@pytest.mark.stores
def test_the_admin_token_in_a_url_or_a_subprotocol_of_another_case_is_nobody(stage: Stage) -> None:
    sse, ws = stage.start("sse"), stage.start("ws")
    token = STAGE_ADMIN.replace(" ", "+")
    streams = [
        Stream(sse.port, f"/events?token={token}"),
        Stream(sse.port, Cookie=f"hub_session={STAGE_ADMIN}", Origin=PAGE),
    ]
    sockets = [
        upgraded(ws.port, f"Sec-WebSocket-Protocol: {item}", target)
        for item, target in (
            (f"Bearer.{token}", "/"), (f"BEARER.{token}", "/"), ("x", f"/?token={token}"),
        )
    ]
    stage.write(stage.insert("Secret", text="secret"), stage.insert("Public", text="end"))
    for stream in streams:
        assert stream.event()[1]["data"]["text"] == "end"
    for socket in sockets:
        assert b"secret" not in socket.read_until(b'"end"')


# --- Keys and JWTs -------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "code"), [(KEYS, "INVALID_API_KEY"), (JWTS, "INVALID_JWT")])
def test_a_bad_key_or_jwt_is_401_in_the_header_and_nobody_in_a_cookie(
    server: ApiStage, tokens: list[str], code: str
) -> None:
    mine = f"{COOKIE}={server.user('u1')}"
    for token in tokens:
        for method, target, body in (
            ("GET", "/api/auth/me", None), ("GET", "/api/entities/User", None),
            ("POST", "/api/query/User", {}), ("DELETE", "/api/auth/session", None),
        ):
            headers = {"Authorization": f"Bearer {token}", "Cookie": mine}
            answer = server.call(method, target, body, headers=headers)
            assert (answer.status_code, answer.json["error"]["code"]) == (401, code)
            assert token not in answer.text or len(token) < 5
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert me(server, Cookie=f"{COOKIE}={token}")["user_id"] is None
    assert me(server, Cookie=mine)["user_id"] == "u1"  # nobody was signed out


@pytest.mark.parametrize("token", [
    "pylon_" + "0" * 64, "pk", "PK.abc", "eyJ.two", "ey.a.b.c", "Eyx.a.b", "xey.a.b", "",
])
def test_other_unknown_tokens_are_anonymous(server: ApiStage, token: str) -> None:
    assert not is_jwt(token)
    assert me(server, Authorization=f"Bearer {token}")["user_id"] is None


def test_the_errors_have_codes_of_their_own() -> None:
    with pytest.raises(InvalidApiKey):
        id_of("pk.x")
    assert is_jwt("eyJ.a.b")


@pytest.mark.stores
@pytest.mark.parametrize(
    ("token", "code"), [("pk.x", "INVALID_API_KEY"), ("ey.a.b", "INVALID_JWT")]
)
def test_sockets_refuse_them_in_the_header_alone(stage: Stage, token: str, code: str) -> None:
    sse, ws, shards = stage.start("sse"), stage.start("ws"), stage.start("shards")
    field = f"Authorization: Bearer {token}"
    for port, path in ((sse.port, "/events"), (shards.port, "/api/shards/a/connect")):
        wire = Stream(port, path, Authorization=f"Bearer {token}", greeted=False)
        assert parse_head(wire.head)[0] == 401
        assert code.encode() in wire.read_rest()
    refused = upgraded(ws.port, field)
    assert refused.head.startswith(b"HTTP/1.1 401 ")
    assert code.encode() in refused.read_rest()
    assert upgraded(ws.port, f"Sec-WebSocket-Protocol: bearer.{token}").head.startswith(
        b"HTTP/1.1 101 "
    )
    assert Stream(sse.port, f"/events?token={token}").head.startswith(b"HTTP/1.1 200 ")


class Upgraded(Wire):
    """A WebSocket that shows its bytes."""

    head = b""


def upgraded(port: int, field: str, target: str = "/") -> Upgraded:
    """Send a handshake with one more field; its head is read."""
    wire = Upgraded(port)
    wire.send((
        f"GET {target} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"{field}\r\n\r\n"
    ).encode())
    wire.head = wire.read_until(b"\r\n\r\n")
    return wire
