"""Users for administrators: make, list, lock, unlock, set a password, forget a second factor."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import orjson
import pytest

from pylon.auth.tokens import session_id_of
from pylon.bus.identity import CallFacts
from pylon.bus.messages import SessionRevoked
from pylon.errors import AccountLocked, RecordConflict
from pylon.storage.auth_ops import Condition, PutRecord
from tests.support.api import ADMIN_TOKEN, ApiStage
from tests.support.server import PylonServer
from workers.identity.identity import Call
from workers.identity.sign_in import finish_sign_in

pytestmark = pytest.mark.stores

ADA = "ada@example.com"
PASSWORD = "a long and quiet evening"


def admin(stage: ApiStage, method: str, path: str, body: Any = None) -> Any:
    answer = stage.call(method, f"/api/admin/auth/users{path}", body, ADMIN_TOKEN)
    return {"status": answer.status_code, **answer.json} if isinstance(answer.json, dict) else (
        answer.json
    )


def create(stage: ApiStage, email: str = ADA, **more: Any) -> str:
    made = admin(stage, "POST", "", {"email": email, **more})
    assert made["status"] == 201, made
    user_id: str = made["user_id"]
    return user_id


def code_of(answer: Any) -> str:
    code: str = answer["error"]["code"]
    return code


def sign_in(stage: ApiStage, user_id: str) -> str:
    answer = finish_sign_in(stage.identity, Call(b"", {}, CallFacts()), user_id, "password")
    token: str = orjson.loads(answer.body)["token"]
    return token


def test_a_user_is_made_with_a_row_an_identity_and_a_password(stage: ApiStage) -> None:
    user_id = create(stage, password=PASSWORD, name="Ada", verified=True)
    row = stage.call("GET", f"/api/entities/User/{user_id}", token=ADMIN_TOKEN).json
    assert (row["email"], row["displayName"]) == (ADA, "Ada") and row["emailVerified"]
    (found,) = admin(stage, "GET", f"?user={ADA}")
    assert found["user_id"] == user_id and found["email"] == ADA and found["is_verified"]
    assert found["sign_in_methods"] == ["email", "password"] and not found["has_totp"]
    (record,) = stage.identity.store.point(lambda r: r.records("passwords", []))
    assert stage.identity.hashes.verify(str(record["phc"]), PASSWORD.encode())
    assert code_of(admin(stage, "POST", "", {"email": "ADA@example.com"})) == "EMAIL_TAKEN"
    for body, code in (
        ({"email": "nope"}, "INVALID_EMAIL"), ({"email": "b@example.com", "password": "short"},
                                               "WEAK_PASSWORD"),
    ):
        assert code_of(admin(stage, "POST", "", body)) == code
    create(stage, "b@example.com")
    assert {user["email"] for user in admin(stage, "GET", "")} == {ADA, "b@example.com"}


@pytest.mark.parametrize("by", ["id", "address"])
def test_a_lock_ends_sessions_and_refuses_sign_ins_until_the_unlock(
    stage: ApiStage, by: str
) -> None:
    user_id = create(stage)
    name = user_id if by == "id" else ADA
    token = sign_in(stage, user_id)
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] == user_id
    answer = admin(stage, "POST", f"/{name}/lock", {"reason": "spam"})
    assert (answer["locked"], answer["revoked_sessions"]) == (True, 1)
    assert stage.signals == [SessionRevoked(session_id_of(token))]
    stage.clock.advance(1)
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] is None
    assert stage.call("POST", "/api/auth/refresh", token=token).status_code == 401
    with pytest.raises(AccountLocked):
        sign_in(stage, user_id)
    minted = stage.call("POST", "/api/auth/session", {"user_id": user_id}, ADMIN_TOKEN)
    assert (minted.status_code, minted.json["error"]["code"]) == (403, "ACCOUNT_LOCKED")
    (found,) = admin(stage, "GET", f"?user={user_id}")
    assert found["locked_at"] and found["lock_reason"] == "spam"
    assert admin(stage, "POST", f"/{name}/unlock")["locked"] is False
    assert sign_in(stage, user_id)
    events = stage.identity.store.point(lambda r: r.records(
        "audit", [Condition("user_id", "=", user_id), Condition("actor_id", "=", "__admin__")]
    ))
    assert sorted(str(event["action"]) for event in events) == [
        "sign_up", "user_lock", "user_unlock",
    ]


def test_a_lock_that_comes_during_a_sign_in_wins(
    stage: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id = create(stage)
    submit = stage.writer.submit

    def lock_first(op: Any) -> Any:
        monkeypatch.setattr(stage.writer, "submit", submit)
        admin(stage, "POST", f"/{user_id}/lock")
        return submit(op)

    monkeypatch.setattr(stage.writer, "submit", lock_first)
    with pytest.raises((AccountLocked, RecordConflict)):
        sign_in(stage, user_id)
    assert stage.identity.store.point(lambda r: r.count_records("sessions", [])) == 0


def test_a_new_password_ends_sessions_and_trusted_devices(stage: ApiStage) -> None:
    user_id = create(stage, password=PASSWORD)
    token = sign_in(stage, user_id)
    stage.writer.submit(PutRecord("trusted_devices", {
        "hash": "h", "id": "d", "user_id": user_id, "label": "", "created_at": 1,
        "expires_at": 2**40,
    }))
    body = {"password": "another quiet evening"}
    assert admin(stage, "POST", f"/{ADA}/password", body)["revoked_sessions"] == 1
    (record,) = stage.identity.store.point(lambda r: r.records("passwords", []))
    assert stage.identity.hashes.verify(str(record["phc"]), body["password"].encode())
    stage.clock.advance(1)
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] is None
    assert stage.identity.store.point(lambda r: r.count_records("trusted_devices", [])) == 0
    assert code_of(admin(stage, "POST", f"/{ADA}/password", {"password": "x"})) == "WEAK_PASSWORD"


def test_a_second_factor_is_forgotten(stage: ApiStage) -> None:
    user_id = create(stage)
    assert admin(stage, "POST", f"/{user_id}/reset-totp")["reset"] is False
    stage.writer.submit(PutRecord("totp", {
        "user_id": user_id, "sealed": "x", "created_at": 1, "confirmed_at": 1,
    }))
    stage.writer.submit(PutRecord("backup_codes", {
        "user_id": user_id, "hash": "x", "created_at": 1,
    }))
    assert admin(stage, "GET", f"?user={user_id}")[0]["has_totp"]
    assert admin(stage, "POST", f"/{user_id}/reset-totp")["reset"] is True
    assert not admin(stage, "GET", f"?user={user_id}")[0]["has_totp"]
    assert stage.identity.store.point(lambda r: r.count_records("backup_codes", [])) == 0


def test_unknown_users_are_named_and_others_are_refused(stage: ApiStage) -> None:
    for name in ("nobody@example.com", "no%20address@", "unknown"):
        answer = admin(stage, "POST", f"/{name}/reset-totp")
        assert (answer["status"], code_of(answer)) == (404, "USER_NOT_FOUND")
    token = stage.user("u1")
    for method, path in (("GET", ""), ("POST", "/u1/lock"), ("POST", "/u1/reset-totp")):
        answer = stage.call(method, f"/api/admin/auth/users{path}", None, token)
        assert answer.json["error"]["code"] == "FORBIDDEN"


def test_pylonctl_user(members: PylonServer) -> None:
    """The verbs against real processes; the password is hashed in the identity process."""

    def ctl(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pylon.cli.main", "user", *args], env=members.full_env(),
            cwd=members.folder, text=True, capture_output=True, timeout=60, check=False,
            input=stdin,
        )

    made = ctl("create", "eve@example.com", "--password", "--json", stdin=PASSWORD + "\n")
    assert made.returncode == 0, made.stderr
    user_id = json.loads(made.stdout)["user_id"]
    assert ctl("list", "--user", "eve@example.com").stdout == (
        f"{user_id}  eve@example.com  active  email,password\n"
    )
    status, _, _ = members.request(
        "POST", "/api/auth/session", {"user_id": user_id}, token=members.env["PYLON_ADMIN_TOKEN"]
    )
    assert status == 201
    assert "signed in" in ctl("sessions", "eve@example.com").stdout
    locked = ctl("lock", "eve@example.com", "--reason", "spam")
    assert locked.stdout == "eve@example.com is locked; 1 sessions have ended\n"
    assert "locked" in ctl("list").stdout
    assert ctl("unlock", user_id).returncode == 0
    done = ctl("set-password", user_id, stdin="another quiet evening\n")
    assert done.stdout == "the password is set; 0 sessions have ended\n"
    assert ctl("reset-totp", user_id).stdout == "there was none\n"
    assert ctl("lock", "nobody@example.com").returncode == 1
    assert "eve@example.com" in ctl("export", user_id).stdout
    assert ctl("delete", user_id).returncode == 1, "nobody has said yes"
    deleted = ctl("delete", user_id, "--yes")
    assert deleted.stdout == f"the account {user_id} has ended\n", deleted.stderr
    assert ctl("list", "--user", user_id).returncode == 1
