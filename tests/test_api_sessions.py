"""Sessions over HTTP: rotation, families, the sliding end, lists, ends, and the admin's routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.auth.freshness import require_fresh
from pylon.auth.session_life import ROTATION_GRACE_S, session_life
from pylon.auth.tokens import session_id_of
from pylon.auth_context import ANONYMOUS, Caller
from pylon.bus.messages import SessionRevoked
from pylon.errors import ReauthRequired
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from pylon.storage.ops import PutSession
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.test_api_auth import MANIFEST, ORIGIN

pytestmark = pytest.mark.stores

LIFE_S = 3_600
CHROME = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/120.0.0.0 Safari/537.36"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def now_s(server: ApiStage) -> int:
    return server.clock.wall_ns() // 10**9


def user_of(server: ApiStage, token: str) -> str | None:
    found: str | None = server.call("GET", "/api/auth/me", token=token).json["user_id"]
    return found


def refresh(server: ApiStage, token: str) -> str:
    answer = server.call("POST", "/api/auth/refresh", token=token)
    assert answer.status_code == 200, answer.text
    new: str = answer.json["token"]
    return new


def sessions_of(server: ApiStage, token: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.call("GET", "/api/auth/sessions", token=token).json
    return found


def audited(server: ApiStage, action: str) -> list[dict[str, Any]]:
    return server.services.identity.store.point(
        lambda reader: reader.records("audit", [Condition("action", "=", action)])
    )


def note_used(server: ApiStage, *tokens: str) -> int:
    """Write the notes that workers have reported, as the flusher does."""
    app = server.services.requests.app
    note = session_life(app.manifest.auth).note(now_s(server))
    return server.engine.maintenance.note_sessions_used(
        [session_id_of(token) for token in tokens], note
    )


# --- Rotation ------------------------------------------------------------------------------


def test_two_tabs_that_refresh_at_once_both_live(server: ApiStage) -> None:
    old = server.user("u1")
    first, second = refresh(server, old), refresh(server, old)
    assert first != second
    server.clock.advance(ROTATION_GRACE_S - 1)
    third = refresh(server, old)
    server.clock.advance(1)
    assert [user_of(server, token) for token in (first, second, third)] == ["u1"] * 3
    assert user_of(server, old) is None
    assert server.signals == []
    assert len(sessions_of(server, first)) == 1, "one sign-in"


def test_a_refresh_with_a_token_that_was_replaced_ends_the_family(server: ApiStage) -> None:
    old, other = server.user("u1"), server.user("u1")
    new = refresh(server, refresh(server, old))
    server.clock.advance(ROTATION_GRACE_S)
    answer = server.call("POST", "/api/auth/refresh", token=old)
    assert (answer.status_code, answer.json["error"]["code"]) == (401, "SESSION_EXPIRED")
    assert user_of(server, new) is None
    assert user_of(server, other) == "u1", "another sign-in"
    assert server.signals == [SessionRevoked(session_id_of(old))]
    (event,) = audited(server, "token_reuse")
    assert (event["user_id"], event["success"]) == ("u1", 0)
    assert server.call("POST", "/api/auth/refresh", token=old).status_code == 401


def test_a_request_with_a_replaced_token_ends_nothing(server: ApiStage) -> None:
    old = server.user("u1")
    new = refresh(server, old)
    server.clock.advance(ROTATION_GRACE_S)
    assert user_of(server, old) is None
    assert user_of(server, new) == "u1"


def test_a_session_of_before_families_may_be_refreshed_and_ended(server: ApiStage) -> None:
    old = server.user("u1")
    server.writer.submit(SetRecords(
        "sessions", [Condition("session_id", "=", session_id_of(old))],
        {"family": None, "auth_time": None, "last_seen_at": None, "methods": None}, 1,
    ))
    new = refresh(server, old)
    (listed,) = sessions_of(server, new)
    assert listed["current"] and listed["methods"] == []
    assert server.call("DELETE", "/api/auth/session", token=new).json == {"revoked": True}
    assert [user_of(server, token) for token in (old, new)] == [None, None]
    other = server.user("u1")
    server.writer.submit(SetRecords(
        "sessions", [Condition("session_id", "=", session_id_of(other))], {"family": None}, 1
    ))
    answer = server.call("DELETE", "/api/auth/sessions", token=server.user("u1"))
    assert answer.json == {"revoked_count": 2}
    assert user_of(server, other) is None


def test_a_family_keeps_a_bounded_number_of_tokens(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SESSIONS_OF_FAMILY", 4)
    token = server.user("u1")
    for _ in range(8):
        server.clock.advance(1)
        token = refresh(server, token)
    count = server.services.identity.store.point(lambda r: r.count_records("sessions", []))
    assert count <= 4
    assert user_of(server, token) == "u1"


def test_a_refresh_does_not_bring_back_what_was_revoked_meanwhile(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revocation comes between the look-up of the session and the commit of its successor."""
    token = server.user("u1")
    other = server.user("u1")
    submit = server.writer.submit

    def revoke_first(op: Any) -> Any:
        monkeypatch.setattr(server.writer, "submit", submit)
        server.call("DELETE", "/api/auth/sessions", token=other)
        return submit(op)

    monkeypatch.setattr(server.writer, "submit", revoke_first)
    answer = server.call("POST", "/api/auth/refresh", token=token)
    assert (answer.status_code, answer.json["error"]["code"]) == (401, "SESSION_EXPIRED")
    count = server.services.identity.store.point(lambda r: r.count_records("sessions", []))
    assert count == 0


# --- The end of a session ------------------------------------------------------------------


def test_use_moves_the_end_once_in_a_tenth_of_the_life_and_sets_the_cookie(
    server: ApiStage
) -> None:
    token = server.user("u1")
    cookie = {"Cookie": f"My_App_session={token}"}

    def me(**headers: str) -> str | None:
        answer = server.call("GET", "/api/auth/me", headers={**cookie, **headers})
        assert answer.json["user_id"] == "u1"
        found: str | None = answer.headers.get("set-cookie")
        return found

    server.clock.advance(LIFE_S / 10 - 1)
    assert me() is None and server.used_sessions.take_all() == []
    server.clock.advance(1)
    assert me() == (
        f"My_App_session={token}; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=3600"
    )
    assert server.used_sessions.take_all() == [session_id_of(token)]
    assert me() is None, "known for a moment, so it is not looked up"
    assert note_used(server, token) == 1
    server.clock.advance(limits.SESSION_CACHE_S)
    assert me() is None and server.used_sessions.take_all() == []
    (listed,) = sessions_of(server, token)
    assert listed["expires_at"] == listed["created_at"] + LIFE_S / 10 + LIFE_S
    assert listed["last_seen_at"] == listed["created_at"] + LIFE_S / 10
    server.clock.advance(LIFE_S - 2)
    assert user_of(server, token) == "u1"
    server.clock.advance(limits.SESSION_CACHE_S + 1)
    assert user_of(server, token) is None, "nobody noted the last use"


def test_a_cookie_is_not_set_again_after_a_logout_or_for_a_header(server: ApiStage) -> None:
    token, other = server.user("u1"), server.user("u1")
    server.clock.advance(LIFE_S / 2)
    answer = server.call("GET", "/api/auth/me", token=other)
    assert "set-cookie" not in answer.headers
    answer = server.call(
        "DELETE", "/api/auth/session", headers={"Cookie": f"My_App_session={token}", **ORIGIN}
    )
    assert answer.headers["set-cookie"].endswith("Max-Age=0")
    assert token not in answer.headers["set-cookie"]


def test_a_session_has_a_greatest_age_and_may_be_fixed(tmp_path: Path) -> None:
    manifest = {**MANIFEST, "auth": {"session": {
        "expires_in": 3_600, "max_age": 5_000, "sliding": True,
    }}}
    with serve_api(tmp_path, manifest) as server:
        token = server.user("u1")
        for _ in range(3):
            server.clock.advance(1_500)
            user_of(server, token)
            note_used(server, token)
            token = refresh(server, token)
        server.clock.advance(499)
        assert user_of(server, token) == "u1"
        server.clock.advance(1)
        assert user_of(server, token) is None


def test_without_sliding_use_moves_no_end(tmp_path: Path) -> None:
    manifest = {**MANIFEST, "auth": {"session": {"expires_in": 3_600, "sliding": False}}}
    with serve_api(tmp_path, manifest) as server:
        token = server.user("u1")
        server.clock.advance(1_800)
        answer = server.call(
            "GET", "/api/auth/me", headers={"Cookie": f"My_App_session={token}"}
        )
        assert answer.json["user_id"] == "u1" and "set-cookie" not in answer.headers
        assert note_used(server, token) == 1
        server.clock.advance(1_800)
        assert user_of(server, token) is None


# --- Lists and ends ------------------------------------------------------------------------


def test_a_list_shows_the_sign_ins_of_the_caller_alone(server: ApiStage) -> None:
    browser = server.call(
        "POST", "/api/auth/session", {"user_id": "u1"},
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "User-Agent": CHROME},
    ).json["token"]
    server.clock.advance(1)
    mine = server.user("u1")
    server.user("u2")
    found = sessions_of(server, mine)
    assert found == [
        {"id": session_id_of(mine)[:16], "token_prefix": mine[:8], "user_id": "u1",
         "device": None, "created_at": now_s(server), "expires_at": now_s(server) + LIFE_S,
         "last_seen_at": now_s(server), "current": True, "methods": ["mint"]},
        {"id": session_id_of(browser)[:16], "token_prefix": browser[:8], "user_id": "u1",
         "device": "Chrome on Linux", "created_at": now_s(server) - 1,
         "expires_at": now_s(server) - 1 + LIFE_S, "last_seen_at": now_s(server) - 1,
         "current": False, "methods": ["mint"]},
    ]
    server.clock.advance(LIFE_S - 1)
    assert [each["id"] for each in sessions_of(server, mine)] == [session_id_of(mine)[:16]]
    for token in (None, ADMIN_TOKEN):
        for method in ("GET", "DELETE"):
            answer = server.call(method, "/api/auth/sessions", token=token)
            assert answer.json["error"]["code"] == "AUTH_REQUIRED"


def test_one_session_the_others_or_all_may_be_ended(server: ApiStage) -> None:
    mine, *others = [server.user("u1") for _ in range(4)]
    stranger = server.user("u2")
    one = session_id_of(others[0])[:16]
    foreign = session_id_of(stranger)[:16]
    for bad in (foreign, one[:-1], one.upper(), one + "0", "%25", "g" * 16):
        answer = server.call("DELETE", f"/api/auth/sessions/{bad}", token=mine)
        assert (answer.status_code, answer.json["error"]["code"]) == (404, "NOT_FOUND")
    answer = server.call("DELETE", f"/api/auth/sessions/{one}", token=mine)
    assert answer.json == {"revoked": True}
    assert server.call("DELETE", f"/api/auth/sessions/{one}", token=mine).status_code == 404
    assert [user_of(server, token) for token in others] == [None, "u1", "u1"]
    renewed = refresh(server, others[1])
    answer = server.call("DELETE", "/api/auth/sessions?others=1", token=mine)
    assert answer.json == {"revoked_count": 2}
    assert [user_of(server, token) for token in (*others, renewed)] == [None] * 4
    assert user_of(server, mine) == "u1"
    last = server.user("u1")
    answer = server.call("DELETE", "/api/auth/sessions", token=mine)
    assert answer.json == {"revoked_count": 2}
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert [user_of(server, token) for token in (mine, last, stranger)] == [None, None, "u2"]
    assert set(server.signals) == {
        SessionRevoked(session_id_of(token)) for token in (*others, mine, last)
    }
    assert len(audited(server, "session_revoke")) == 3


def test_an_end_of_a_renewed_session_ends_all_its_tokens(server: ApiStage) -> None:
    old = server.user("u1")
    new = refresh(server, old)
    other = server.user("u1")
    listed = {each["id"] for each in sessions_of(server, other)}
    assert listed == {session_id_of(new)[:16], session_id_of(other)[:16]}
    server.call("DELETE", f"/api/auth/sessions/{session_id_of(new)[:16]}", token=other)
    assert [user_of(server, token) for token in (old, new)] == [None, None]


# --- The administrator's routes ------------------------------------------------------------


def test_a_purge_ends_the_sessions_of_a_user_old_ones_or_all(server: ApiStage) -> None:
    def purge(body: dict[str, Any]) -> Any:
        return server.call("POST", "/api/admin/sessions/purge", body, ADMIN_TOKEN).json

    tokens = {name: server.user(name[:2]) for name in ("u1a", "u1b", "u2a", "u3a")}
    server.clock.advance(10)
    tokens["u3b"] = server.user("u3")
    assert purge({"user_id": "u1"}) == {"revoked": 2}
    assert purge({"user_id": "u3", "before": now_s(server)}) == {"revoked": 1}
    assert [n for n, token in tokens.items() if user_of(server, token)] == ["u2a", "u3b"]
    assert purge({"before": now_s(server)}) == {"revoked": 1}
    assert purge({}) == {"revoked": 1}
    assert purge({}) == {"revoked": 0}
    events = audited(server, "session_revoke")
    assert len(events) == 5 and all(event["actor_id"] == "__admin__" for event in events)


def test_a_large_purge_is_done_in_steps(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SESSIONS_ANNOUNCED", 10)
    now = now_s(server)
    server.writer.submit_all(
        [PutSession(f"{n:064x}", "u1", False, now, 0, "") for n in range(250)]
    )
    answer = server.call("POST", "/api/admin/sessions/purge", {}, ADMIN_TOKEN)
    assert answer.json == {"revoked": 250}
    assert server.signals == [], "workers look all of theirs up"


def test_the_administrator_sees_sessions_without_tokens(server: ApiStage) -> None:
    token = server.user("u1")
    server.user("u2")
    answer = server.call("GET", "/api/admin/auth/sessions?user_id=u1", token=ADMIN_TOKEN)
    (found,) = answer.json
    assert found["id"] == session_id_of(token)[:16] and "current" not in found
    assert token[9:] not in answer.text and session_id_of(token) not in answer.text
    assert len(server.call("GET", "/api/admin/auth/sessions", token=ADMIN_TOKEN).json) == 2
    for method, path in (
        ("GET", "/api/admin/auth/sessions"), ("POST", "/api/admin/sessions/purge"),
    ):
        for caller in (token, None):
            answer = server.call(method, path, {} if method == "POST" else None, token=caller)
            assert answer.json["error"]["code"] == "FORBIDDEN"


def test_the_administrator_may_end_one_session_of_anybody(server: ApiStage) -> None:
    token, other = server.user("u1"), server.user("u1")
    path = f"/api/admin/auth/sessions/{session_id_of(token)[:16]}"
    assert server.call("DELETE", path, token=other).json["error"]["code"] == "FORBIDDEN"
    assert server.call("DELETE", path, token=ADMIN_TOKEN).json == {"revoked": True}
    assert server.call("DELETE", path, token=ADMIN_TOKEN).status_code == 404
    assert [user_of(server, each) for each in (token, other)] == [None, "u1"]


def test_a_sign_in_with_a_planted_cookie_gets_a_new_token(server: ApiStage) -> None:
    """Attack 8."""
    planted = server.guest()
    for route in ("guest", "anonymous"):
        answer = server.call(
            "POST", f"/api/auth/{route}", headers={"Cookie": f"My_App_session={planted}", **ORIGIN}
        )
        token = answer.json["token"]
        assert token != planted and token in answer.headers["set-cookie"]
        assert user_of(server, token) != user_of(server, planted)


# --- The context of a caller ---------------------------------------------------------------


def test_the_context_tells_a_trusted_device_of_this_user_alone(server: ApiStage) -> None:
    secret = "x" * 43
    server.writer.submit(PutRecord("trusted_devices", {
        "hash": session_id_of(secret), "id": "d", "user_id": "u1", "label": "", "created_at": 1,
        "expires_at": now_s(server) + 60,
    }))
    mine, other = server.user("u1"), server.user("u2")

    def is_trusted(token: str, cookie: str) -> list[bool]:
        headers = {"Cookie": f"pylon_trusted_device={cookie}", "Authorization": f"Bearer {token}"}
        me = server.call("GET", "/api/auth/me", headers=headers).json
        session = server.call("GET", "/api/auth/session", headers=headers).json["session"]
        return [each.get("is_trusted_device", False) for each in (me, session)]

    assert is_trusted(mine, secret) == [True, True]
    assert is_trusted(other, secret) == [False, False]
    assert is_trusted(mine, "y" * 43) == [False, False]
    server.clock.advance(60)
    assert is_trusted(mine, secret) == [False, False]


def test_the_context_has_the_avatar_of_the_user_s_row(tmp_path: Path) -> None:
    fields = [
        {"name": name, "type": "string", "optional": True, "unique": False}
        for name in ("email", "avatarUrl")
    ]
    entity = {"name": "User", "indexes": [], "relations": [], "fields": fields}
    with serve_api(tmp_path, {**MANIFEST, "entities": [entity]}) as server:
        row = {"email": "a@b.c", "avatarUrl": "https://x/a.png"}
        user_id = server.call("POST", "/api/entities/User", row, ADMIN_TOKEN).json["id"]
        token = server.user(user_id)
        for path in ("/api/auth/me", "/api/auth/session"):
            assert server.call("GET", path, token=token).json["avatar_url"] == "https://x/a.png"
            assert server.call("GET", path, token=server.user("u2")).json["avatar_url"] is None
            assert server.call("GET", path, token=server.guest()).json["avatar_url"] is None


# --- Fresh sign-ins ------------------------------------------------------------------------


def test_a_fresh_sign_in_is_required_for_ten_minutes(server: ApiStage) -> None:
    token = server.user("u1")
    store = server.services.identity.store
    row = store.point(lambda reader: reader.session(session_id_of(token)))
    assert row is not None
    caller = Caller(ANONYMOUS, row.session_id, row.family, row.auth_time_s)
    server.clock.advance(600)
    require_fresh(caller, 600, server.clock, store.point)
    server.clock.advance(1)
    with pytest.raises(ReauthRequired):
        require_fresh(caller, 600, server.clock, store.point)
    with pytest.raises(ReauthRequired):
        require_fresh(Caller(ANONYMOUS), 600, server.clock, store.point)
    # Renewed by another worker: the cached caller does not know it.
    server.writer.submit(SetRecords(
        "sessions", [Condition("family", "=", row.family)], {"auth_time": now_s(server)}
    ))
    require_fresh(caller, 600, server.clock, store.point)
    renewed = store.point(lambda r: r.session(session_id_of(refresh(server, token))))
    assert renewed is not None and renewed.auth_time_s == now_s(server)
