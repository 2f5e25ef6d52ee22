"""API keys over HTTP: made, used, listed, rotated and ended (identity.md §1.8)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from falcon import testing

from pylon import limits
from pylon.auth.api_keys import new_api_key
from pylon.bus.messages import SessionRevoked
from pylon.clock import NS_PER_S, SystemRandom
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from tests.support.api import ADMIN_TOKEN, ApiStage

pytestmark = pytest.mark.stores

FORM = re.compile(r"pk\.(key_[A-Za-z0-9_-]{32})\.([A-Za-z0-9_-]{43})")
KEYS = "/api/auth/api-keys"


def user(stage: ApiStage, name: str) -> str:
    """The id of a user with a row."""
    row = {"email": f"{name}@example.com"}
    made: str = stage.call("POST", "/api/entities/User", row, ADMIN_TOKEN).json["id"]
    return made


def mint(stage: ApiStage, session: str, **body: Any) -> dict[str, Any]:
    answer = stage.call("POST", KEYS, body, session)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json
    return made


def me(stage: ApiStage, token: str) -> testing.Result:
    return stage.call("GET", "/api/auth/me", None, token)


def lapse(stage: ApiStage) -> None:
    """Let the caches of callers expire."""
    stage.clock.advance(limits.SESSION_CACHE_S + 0.01)


def is_dead(stage: ApiStage, key: str) -> bool:
    lapse(stage)
    answer = me(stage, key)
    return answer.status_code == 401 and answer.json["error"]["code"] == "INVALID_API_KEY"


def test_a_key_has_its_form_and_acts_as_its_owner_within_its_scopes(stage: ApiStage) -> None:
    owner = user(stage, "ann")
    session = stage.user(owner)
    made = mint(stage, session, name="back up", scopes=["entity:Todo:write", "rooms"])
    match = FORM.fullmatch(made["key"])
    assert match is not None and match[1] == made["id"]
    assert made["prefix"] == made["key"][:16]
    assert made["scopes"] == "entity:Todo:write rooms" and made["expires_at"] is None
    assert me(stage, made["key"]).json == {
        "api_key_id": made["id"], "api_key_scopes": "entity:Todo:write rooms", "avatar_url": None,
        "is_admin": False, "roles": [], "user_id": owner,
    }
    todo = {"title": "x", "authorId": owner}
    assert stage.call("POST", "/api/entities/Todo", todo, made["key"]).status_code == 201
    denied = stage.call("GET", "/api/entities/Todo", None, made["key"])
    assert (denied.status_code, denied.json["error"]["scope"]) == (403, "entity:Todo:read")
    foreign = {"title": "x", "authorId": user(stage, "bob")}
    refused = stage.call("POST", "/api/entities/Todo", foreign, made["key"])
    assert refused.json["error"]["code"] == "POLICY_DENIED", "never more than its owner"


def test_the_text_of_a_key_is_shown_once_and_stored_nowhere(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    made = mint(stage, session)
    secret = made["key"].rpartition(".")[2]
    (listed,) = stage.call("GET", KEYS, None, session).json
    assert listed == {
        "user_id": listed["user_id"],
        **{name: made[name] for name in ("id", "prefix", "name", "scopes", "expires_at",
                                         "created_at")},
        "last_used_at": None,
    }
    assert (listed["name"], listed["scopes"]) == ("untitled", None)
    for table in ("api_keys", "audit"):
        stored = stage.identity.store.point(lambda reader, t=table: reader.records(t, []))
        assert stored and secret not in repr(stored)


@pytest.mark.parametrize("token", [
    "pk.", "pk.key_x.y", "pk.key_" + "a" * 32 + "." + "b" * 43, "pk." + "x" * 5_000,
    "pk.key_" + "a" * 32 + "\u00fc" * 5, new_api_key(SystemRandom()).text,
], ids=["empty", "short", "unknown", "long", "not-ascii", "another"])
def test_what_is_no_key_is_401(stage: ApiStage, token: str) -> None:
    answer = stage.call("GET", "/api/auth/me", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json["error"]["code"]) == (401, "INVALID_API_KEY")


def test_the_secret_of_one_key_opens_no_other(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    first, second = mint(stage, session), mint(stage, session)
    mixed = f"pk.{first['id']}.{second['key'].rpartition('.')[2]}"
    assert is_dead(stage, mixed) and me(stage, first["key"]).status_code == 200


def test_a_key_counts_in_the_header_alone(stage: ApiStage) -> None:
    key = mint(stage, stage.user(user(stage, "ann")))["key"]
    cookie = stage.services.requests.cookie.name
    for headers in ({"Cookie": f"{cookie}={key}"}, {"X-Api-Key": key}, {"Authorization": key},
                    {"Authorization": f"Basic {key}"}):
        assert stage.call("GET", "/api/auth/me", headers=headers).json["user_id"] is None
    assert stage.call("GET", f"/api/auth/me?token={key}").json["user_id"] is None


def test_a_key_reaches_none_of_the_routes_of_keys_and_sessions(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    made = mint(stage, session, scopes="*")
    for method, target in (("GET", KEYS), ("POST", KEYS), ("DELETE", f"{KEYS}/{made['id']}"),
                           ("POST", f"{KEYS}/{made['id']}/rotate"), ("GET", "/api/auth/session"),
                           ("POST", "/api/auth/refresh")):
        answer = stage.call(method, target, {} if method == "POST" else None, made["key"])
        assert (answer.status_code, answer.json["error"]["code"]) == (
            403, "API_KEY_AUTH_FORBIDDEN",
        ), target
    assert stage.call("GET", KEYS).json["error"]["code"] == "AUTH_REQUIRED"
    assert stage.call("POST", KEYS, {}, stage.guest()).json["error"]["code"] == "AUTH_REQUIRED"


def test_a_revoked_key_is_dead_and_its_sockets_are_told(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    made = mint(stage, session)
    assert me(stage, made["key"]).status_code == 200
    answer = stage.call("DELETE", f"{KEYS}/{made['id']}", None, session)
    assert answer.json == {"revoked": True}
    assert is_dead(stage, made["key"])
    (signal_,) = [each for each in stage.signals if isinstance(each, SessionRevoked)]
    assert signal_.family.startswith(made["id"] + ".")
    assert stage.call("DELETE", f"{KEYS}/{made['id']}", None, session).status_code == 404


def test_another_users_keys_are_not_there(stage: ApiStage) -> None:
    made = mint(stage, stage.user(user(stage, "ann")))
    other = stage.user(user(stage, "bob"))
    assert stage.call("GET", KEYS, None, other).json == []
    for method, target in (("DELETE", f"{KEYS}/{made['id']}"),
                           ("POST", f"{KEYS}/{made['id']}/rotate")):
        answer = stage.call(method, target, {} if method == "POST" else None, other)
        assert (answer.status_code, answer.json["error"]["code"]) == (404, "NOT_FOUND")
    assert me(stage, made["key"]).status_code == 200


def test_a_key_dies_with_the_lock_and_with_the_row_of_its_owner(stage: ApiStage) -> None:
    owner = user(stage, "ann")
    key = mint(stage, stage.user(owner))["key"]
    stage.writer.submit(PutRecord("users", {"user_id": owner, "created_at": 1, "locked_at": 2}))
    assert is_dead(stage, key)
    unlocked = SetRecords("users", [Condition("user_id", "=", owner)], {"locked_at": None})
    stage.writer.submit(unlocked)
    lapse(stage)
    assert me(stage, key).status_code == 200
    assert stage.call("DELETE", f"/api/entities/User/{owner}", None, ADMIN_TOKEN).json["deleted"]
    assert is_dead(stage, key)


def test_a_key_ends_at_its_time_and_needs_one_in_the_future(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    now_s = stage.clock.wall_ns() // NS_PER_S
    for at in (now_s, now_s - 1, 1):
        answer = stage.call("POST", KEYS, {"expires_at": at}, session)
        assert (answer.status_code, answer.json["error"]["code"]) == (400, "INVALID_DATA")
    made = mint(stage, session, expires_at=now_s + 60)
    stage.clock.advance(58)
    assert me(stage, made["key"]).status_code == 200
    stage.clock.advance(2.1)
    assert me(stage, made["key"]).status_code == 401, "the cache ends with the key"


@pytest.mark.parametrize(("body", "code"), [
    ({"scopes": "admin"}, "INVALID_SCOPE"), ({"scopes": "entity:Nothing:read"}, "INVALID_SCOPE"),
    ({"scopes": ""}, "INVALID_SCOPE"), ({"scopes": 1}, "INVALID_DATA"),
    ({"name": "x" * 101}, "INVALID_NAME"), ({"name": " "}, "INVALID_NAME"),
    ({"name": "a\nb"}, "INVALID_NAME"), ({"name": 1}, "INVALID_DATA"),
    ({"expires_at": "soon"}, "INVALID_DATA"), ({"expires_at": 0}, "INVALID_DATA"),
])
def test_bodies_that_make_no_key(stage: ApiStage, body: dict[str, Any], code: str) -> None:
    session = stage.user(user(stage, "ann"))
    answer = stage.call("POST", KEYS, body, session)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, code)
    assert stage.call("GET", KEYS, None, session).json == []


def test_a_rotation_keeps_the_id_and_ends_the_old_secret_after_the_overlap(
    stage: ApiStage,
) -> None:
    session = stage.user(user(stage, "ann"))
    made = mint(stage, session, scopes="rooms")
    rotated = stage.call("POST", f"{KEYS}/{made['id']}/rotate", {"overlap_s": 60}, session).json
    assert (rotated["id"], rotated["scopes"]) == (made["id"], "rooms")
    assert rotated["key"] != made["key"] and not stage.signals
    for key in (made["key"], rotated["key"]):
        assert me(stage, key).json["api_key_id"] == made["id"]
    stage.clock.advance(60)
    assert is_dead(stage, made["key"]) and me(stage, rotated["key"]).status_code == 200
    again = stage.call("POST", f"{KEYS}/{made['id']}/rotate", {}, session).json
    assert is_dead(stage, rotated["key"]) and me(stage, again["key"]).status_code == 200
    assert len(stage.signals) == 2, "the secret that has ended, and the one before it"


def test_a_key_for_everything_needs_a_fresh_sign_in(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    everything = mint(stage, session, scopes="rooms *")
    stage.clock.advance(601)
    for body in ({}, {"scopes": "*"}, {"scopes": ["rooms", "*"]}):
        answer = stage.call("POST", KEYS, body, session)
        assert (answer.status_code, answer.json["error"]["code"]) == (403, "REAUTH_REQUIRED")
    target = f"{KEYS}/{everything['id']}/rotate"
    assert stage.call("POST", target, {}, session).json["error"]["code"] == "REAUTH_REQUIRED"
    mint(stage, session, scopes="rooms")


def test_a_user_has_fifty_keys_at_most(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    for _ in range(limits.KEYS_OF_USER):
        mint(stage, session, scopes="rooms")
    answer = stage.call("POST", KEYS, {}, session)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "LIMIT_EXCEEDED")
    mint(stage, stage.user(user(stage, "bob")))


def test_the_use_of_a_key_is_noted_once_a_minute(stage: ApiStage) -> None:
    session = stage.user(user(stage, "ann"))
    made = mint(stage, session)
    used = stage.used_sessions
    used.take_all()
    for wanted in ([made["id"]], []):
        lapse(stage)
        me(stage, made["key"])
        noted = used.take_all()
        assert [each for each in noted if each.startswith("key_")] == wanted
        now_s = stage.clock.wall_ns() // NS_PER_S
        assert stage.engine.maintenance.note_keys_used([made["id"]], now_s) == 1
    (listed,) = stage.call("GET", KEYS, None, session).json
    assert listed["last_used_at"] == now_s
    stage.clock.advance(limits.KEY_USE_NOTE_S)
    me(stage, made["key"])
    assert made["id"] in used.take_all()


def test_keys_are_in_the_audit_log(stage: ApiStage) -> None:
    owner = user(stage, "ann")
    session = stage.user(owner)
    made = mint(stage, session)
    stage.call("POST", f"{KEYS}/{made['id']}/rotate", {}, session)
    stage.call("DELETE", f"{KEYS}/{made['id']}", None, session)
    where = [Condition("user_id", "=", owner)]
    found = stage.identity.store.point(lambda reader: reader.records("audit", where))
    assert {r["action"] for r in found} >= {"api_key_create", "api_key_rotate", "api_key_revoke"}
    assert all(made["id"] in str(r["metadata"]) for r in found if "api_key" in str(r["action"]))


def test_administrators_make_list_and_revoke_keys_of_users(stage: ApiStage) -> None:
    owner, target = user(stage, "ann"), "/api/admin/api-keys"
    body = {"user_id": owner, "scopes": "rooms", "name": "by an admin"}
    made = stage.call("POST", target, body, ADMIN_TOKEN).json
    assert me(stage, made["key"]).json["user_id"] == owner
    mint(stage, stage.user(user(stage, "bob")))
    listed = stage.call("GET", f"{target}?user_id={owner}", None, ADMIN_TOKEN).json
    assert [(each["id"], each["user_id"]) for each in listed] == [(made["id"], owner)]
    assert len(stage.call("GET", target, None, ADMIN_TOKEN).json) == 2
    gone = stage.call("DELETE", f"{target}/{made['id']}", None, ADMIN_TOKEN)
    assert gone.json == {"revoked": True} and is_dead(stage, made["key"])
    assert stage.call("DELETE", f"{target}/{made['id']}", None, ADMIN_TOKEN).status_code == 404
    unknown = stage.call("POST", target, {**body, "user_id": "x"}, ADMIN_TOKEN)
    assert unknown.json["error"]["code"] == "USER_NOT_FOUND"
    for method, path in (("GET", target), ("POST", target), ("DELETE", f"{target}/x")):
        answer = stage.call(method, path, None, stage.user(owner))
        assert answer.json["error"]["code"] == "FORBIDDEN"
