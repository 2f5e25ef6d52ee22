"""A session proves anew who its user is, by the password or a code."""

from __future__ import annotations

from typing import Any

import orjson
import pyotp
import pytest

from pylon.auth.freshness import require_fresh
from pylon.auth.tokens import session_id_of
from pylon.auth_context import ANONYMOUS, Caller
from pylon.bus.identity import CallFacts
from pylon.errors import ReauthRequired
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from tests.support.api import ApiStage
from workers.identity.identity import Call
from workers.identity.sign_in import finish_sign_in

pytestmark = pytest.mark.stores

PASSWORD = "a long and quiet evening"


def make_user(stage: ApiStage, password: str | None = PASSWORD) -> str:
    """Store a user; return the token of a session of theirs."""
    now_s = stage.identity.now_s()
    stage.writer.submit(PutRecord("users", {"user_id": "u1", "created_at": now_s}))
    if password is not None:
        stage.writer.submit(PutRecord("passwords", {
            "user_id": "u1", "phc": stage.identity.hashes.make(password.encode()),
            "changed_at": now_s,
        }))
    answer = finish_sign_in(stage.identity, Call(b"", {}, CallFacts()), "u1", "password")
    token: str = orjson.loads(answer.body)["token"]
    return token


def reauth(stage: ApiStage, token: str, **body: Any) -> Any:
    answer = stage.call("POST", "/api/auth/reauth", body, token)
    return answer.json["error"]["code"] if answer.status_code >= 400 else answer.json


def is_fresh(stage: ApiStage, token: str) -> bool:
    """As a route that needs a fresh sign-in sees it."""
    row = stage.identity.store.point(lambda reader: reader.session(session_id_of(token)))
    assert row is not None
    caller = Caller(ANONYMOUS, row.session_id, row.family, row.auth_time_s)
    try:
        require_fresh(caller, 600, stage.clock, stage.identity.store.point)
    except ReauthRequired:
        return False
    return True


def test_the_password_makes_the_session_and_its_successors_fresh(stage: ApiStage) -> None:
    token = make_user(stage)
    other = orjson.loads(
        finish_sign_in(stage.identity, Call(b"", {}, CallFacts()), "u1", "password").body
    )["token"]
    stage.clock.advance(700)
    assert not is_fresh(stage, token)
    for body in ({"password": "wrong"}, {"password": ""}, {"password": "x" * 2_000}, {},
                 {"code": "123456"}):
        assert reauth(stage, token, **body) == "INVALID_CREDENTIALS"
    assert not is_fresh(stage, token)
    assert reauth(stage, token, password=PASSWORD) == {"auth_time": stage.identity.now_s()}
    assert is_fresh(stage, token) and not is_fresh(stage, other)
    renewed = stage.call("POST", "/api/auth/refresh", token=token).json["token"]
    assert is_fresh(stage, renewed)
    assert stage.signals == [], "the sockets stay"
    noted = stage.identity.store.point(lambda reader: reader.records("audit", [
        Condition("action", "=", "reauth")
    ], ("id",)))
    assert [(bool(each["success"]), each["reason"], each["actor_id"]) for each in noted] == [
        *[(False, "INVALID_CREDENTIALS", "u1")] * 5, (True, None, "u1"),
    ]


def test_a_code_of_the_app_counts_once(stage: ApiStage) -> None:
    token = make_user(stage, None)
    secret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
    sealed = stage.identity.keys.seal("totp", "sealed", "u1", secret.encode())
    stage.writer.submit(PutRecord("totp", {
        "user_id": "u1", "sealed": sealed, "created_at": 1, "confirmed_at": 1, "last_step": 0,
    }))
    stage.clock.advance(700)
    code = pyotp.TOTP(secret).at(stage.identity.now_s())
    assert "auth_time" in reauth(stage, token, code=code)
    assert is_fresh(stage, token)
    assert reauth(stage, token, code=code) == "INVALID_CREDENTIALS"


def test_who_is_locked_a_guest_or_nobody_proves_nothing(stage: ApiStage) -> None:
    token = make_user(stage)
    assert reauth(stage, stage.guest(), password=PASSWORD) == "INVALID_CREDENTIALS"
    answer = stage.call("POST", "/api/auth/reauth", {"password": PASSWORD})
    assert answer.json["error"]["code"] == "AUTH_REQUIRED"
    stage.writer.submit(SetRecords(
        "users", [Condition("user_id", "=", "u1")], {"locked_at": 1}, 1
    ))
    assert reauth(stage, token, password=PASSWORD) == "ACCOUNT_LOCKED"
