"""Sessions over HTTP: cookies, expiry, refresh, logout, and what is stored of a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.auth.session_life import ROTATION_GRACE_S
from pylon.auth.tokens import new_session_token, session_id_of
from pylon.bus.messages import SessionRevoked
from pylon.storage.ops import DropSession, PutSession
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api

pytestmark = pytest.mark.stores

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "My App", "version": "1.0.0",
    "entities": [{
        "name": "User", "indexes": [], "relations": [],
        "fields": [
            {"name": name, "type": "string", "optional": True, "unique": False}
            for name in ("email", "passwordHash", "phone")
        ],
    }],
    "routes": [], "queries": [], "actions": [],
    "policies": [{"name": "none", "entity": "User", "allow": "auth.isAdmin"}],
    "auth": {"user": {"entity": "User", "expose": [], "hide": ["phone"]},
             "session": {"expires_in": 3600}, "trusted_origins": []},
}
ORIGIN = {"Origin": "http://localhost:3000"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def test_a_browser_gets_a_cookie_that_signs_it_in(server: ApiStage) -> None:
    answer = server.call("POST", "/api/auth/guest", headers=ORIGIN)
    token = answer.json["token"]
    assert answer.headers["set-cookie"] == (
        f"My_App_session={token}; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=3600"
    )
    cookie = {"Cookie": f"other=1; My_App_session={token}"}
    assert server.call("GET", "/api/auth/me", headers=cookie).json["user_id"] == (
        answer.json["user_id"]
    )


def test_a_cookie_counts_only_without_a_bearer_and_from_our_pages(server: ApiStage) -> None:
    cookie = {"Cookie": f"My_App_session={server.user('u1')}"}
    for header in ("Bearer pylon_nonsense", "Bearer "):
        answer = server.call("GET", "/api/auth/me", headers={**cookie, "Authorization": header})
        assert answer.json["user_id"] is None
    evil = {**cookie, "Origin": "http://evil.example"}
    assert server.call("DELETE", "/api/auth/session", headers=evil).status_code == 403
    assert server.call("GET", "/api/auth/me", headers=cookie).json["user_id"] == "u1"


def test_the_admin_token_counts_in_the_header_only(server: ApiStage) -> None:
    cookie = {"Cookie": f"My_App_session={ADMIN_TOKEN}"}
    assert server.call("GET", "/api/auth/me", token=ADMIN_TOKEN).json["is_admin"]
    assert not server.call("GET", "/api/auth/me", headers=cookie).json["is_admin"]


def test_only_the_hash_of_a_token_leaves_the_worker(server: ApiStage, tmp_path: Path) -> None:
    token = server.guest()
    put = next(op for op in server.writer.seen if isinstance(op, PutSession))
    assert put.session_id == session_id_of(token)
    assert put.is_guest
    secret = token.removeprefix("pylon_").encode()
    assert all(secret not in path.read_bytes() for path in tmp_path.iterdir())


def test_sessions_end_at_their_time(server: ApiStage) -> None:
    token = server.user("u1")
    server.clock.advance(3599)
    assert server.call("GET", "/api/auth/me", token=token).json["user_id"] == "u1"
    server.clock.advance(2)
    assert server.call("GET", "/api/auth/me", token=token).json["user_id"] is None
    assert server.call("POST", "/api/auth/refresh", token=token).json["error"]["code"] == (
        "SESSION_EXPIRED"
    )


def test_refresh_changes_the_token_and_keeps_the_rest(server: ApiStage) -> None:
    old = server.guest()
    me = server.call("GET", "/api/auth/me", token=old).json
    answer = server.call("POST", "/api/auth/refresh", token=old, headers=ORIGIN)
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert answer.json["expires_at"] == server.clock.wall_ns() // 10**9 + 3600
    assert server.call("GET", "/api/auth/me", token=answer.json["token"]).json == me
    assert server.signals == [], "the sockets of the family stay"
    server.clock.advance(ROTATION_GRACE_S)
    assert server.call("GET", "/api/auth/me", token=old).json["user_id"] is None
    assert server.call("GET", "/api/auth/me", token=answer.json["token"]).json == me


def test_logout_ends_the_session_and_tells_the_hubs(server: ApiStage) -> None:
    token = server.user("u1")
    other = server.user("u1")
    answer = server.call("DELETE", "/api/auth/session", token=token)
    assert answer.json == {"revoked": True}
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert server.call("GET", "/api/auth/me", token=token).json["user_id"] is None
    assert server.call("GET", "/api/auth/me", token=other).json["user_id"] == "u1"
    assert server.signals == [SessionRevoked(session_id_of(token))]


def test_the_session_shows_the_user_without_what_is_hidden(server: ApiStage) -> None:
    body = {"email": "a@b.c", "passwordHash": "x", "phone": "1"}
    user_id = server.call("POST", "/api/entities/User", body, ADMIN_TOKEN).json["id"]
    answer = server.call("GET", "/api/auth/session", token=server.user(user_id)).json
    assert answer["user"] == {"email": "a@b.c", "id": user_id}
    assert answer["session"]["user_id"] == user_id
    assert server.call("GET", "/api/auth/session", token=server.user("gone")).json["user"] is None


def test_in_dev_mode_anybody_may_mint_a_session(tmp_path: Path) -> None:
    with serve_api(tmp_path, MANIFEST, {"PYLON_DEV_MODE": "true"}) as server:
        answer = server.call("POST", "/api/auth/session", {"user_id": "u9"})
        assert answer.status_code == 201
        token = answer.json["token"]
        assert server.call("GET", "/api/auth/me", token=token).json["user_id"] == "u9"


def test_user_ids_have_a_bound(server: ApiStage) -> None:
    for user_id in ("x" * 201, 7, ["a"]):
        answer = server.call("POST", "/api/auth/session", {"user_id": user_id}, ADMIN_TOKEN)
        assert answer.json["error"]["code"] == "INVALID_DATA"


def test_a_revoked_session_is_dead_within_a_second_even_if_nobody_tells(server: ApiStage) -> None:
    guest = server.call("POST", "/api/auth/guest").json
    token, session_id = guest["token"], session_id_of(guest["token"])

    def user_id() -> str | None:
        answered: str | None = server.call("GET", "/api/auth/me", token=token).json["user_id"]
        return answered

    assert user_id() == guest["user_id"]
    # As another process would: this one hears nothing of it.
    server.writer.submit(DropSession(session_id))
    server.clock.advance(limits.SESSION_CACHE_S)
    assert user_id() is None


def test_a_session_that_ends_is_not_remembered_beyond_its_end(server: ApiStage) -> None:
    token = new_session_token(server.services.requests.app.random)
    now_s = server.clock.wall_ns() // 10**9
    server.writer.submit(PutSession(
        session_id=session_id_of(token), user_id="u", is_guest=False, created_at_s=now_s,
        expires_at_s=now_s + 10, device="", tenant_id=None,
    ))
    server.clock.advance(9.5)
    assert server.call("GET", "/api/auth/me", token=token).json["user_id"] == "u"
    server.clock.advance(0.5)
    assert server.call("GET", "/api/auth/me", token=token).json["user_id"] is None


def test_a_refresh_by_cookie_replaces_the_cookie(server: ApiStage) -> None:
    token = server.user("u1")
    cookie = {"Cookie": f"My_App_session={token}", **ORIGIN}
    answer = server.call("POST", "/api/auth/refresh", headers=cookie)
    new = answer.json["token"]
    assert answer.headers["set-cookie"] == (
        f"My_App_session={new}; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=3600"
    )
    by_bearer = server.call("POST", "/api/auth/refresh", token=new, headers=ORIGIN)
    assert by_bearer.status_code == 200 and "set-cookie" not in by_bearer.headers
