"""Attack: somebody registers with the address of a victim in advance, and waits.

When the victim proves the mailbox, by code or by link, the stranger's password, authenticator,
keys, linked providers and sessions are dead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.storage.auth_ops import Condition, PutRecord
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_code, take_mails, take_token

pytestmark = pytest.mark.stores
EMAIL = "victim@example.com"
TABLES = ("passwords", "totp", "backup_codes", "passkeys", "api_keys", "trusted_devices")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app()) as made:
        yield made


def register_in_advance(stage: ApiStage, *, is_verified: bool) -> tuple[str, str]:
    """Make the stranger's account, with every credential. Return the user and a session."""
    stage.call("POST", "/api/entities/User", {"email": EMAIL}, stage.user("seed"))
    row = stage.identity.store.point(lambda reader: reader.lookup("User", "email", EMAIL))
    assert row is not None
    user_id = str(json.loads(row)["id"])
    of_user: dict[str, Any] = {"user_id": user_id, "created_at": 1}
    for table, values in {
        "users": of_user,
        "identities": {**of_user, "kind": "email", "subject": EMAIL,
                       **({"verified_at": 1} if is_verified else {})},
        "passwords": {"user_id": user_id, "phc": "$argon2id$x", "changed_at": 1},
        "totp": {**of_user, "sealed": "x", "confirmed_at": 1},
        "backup_codes": {**of_user, "hash": "h"},
        "api_keys": {**of_user, "id": "key_1", "name": "k", "prefix": "p", "hash": "h",
                     "alg": "sha256"},
        "trusted_devices": {**of_user, "hash": "h", "id": "dev_1", "label": "x",
                            "expires_at": 2**40},
    }.items():
        stage.writer.submit(PutRecord(table, values))
    stage.writer.submit(PutRecord(
        "identities", {**of_user, "kind": "oauth:google", "subject": "stranger"}
    ))
    return user_id, stage.user(user_id)


def count(stage: ApiStage, table: str, user_id: str) -> int:
    where = [Condition("user_id", "=", user_id)]
    return stage.identity.store.point(lambda reader: reader.count_records(table, where))


def come_by(stage: ApiStage, way: str) -> Any:
    """Let the victim sign in by a mail."""
    if way == "code":
        stage.call("POST", "/api/auth/magic/send", {"email": EMAIL})
        body = {"email": EMAIL, "code": take_code(stage, EMAIL)}
        return stage.call("POST", "/api/auth/magic/verify", body)
    stage.call("POST", "/api/auth/magic-link/send", {"email": EMAIL})
    token = take_token(stage, "MAGIC_LINK", EMAIL)
    return stage.call("POST", "/api/auth/magic-link/verify", {"token": token})


@pytest.mark.parametrize("way", ["code", "link"])
def test_what_the_stranger_had_is_dead(stage: ApiStage, way: str) -> None:
    user_id, session = register_in_advance(stage, is_verified=False)
    answer = come_by(stage, way)
    assert answer.status_code == 200, answer.json
    assert answer.json["user_id"] == user_id and answer.json["credentials_dropped"] is True
    assert [mail.to for mail in take_mails(stage)] == [EMAIL]
    assert {table: count(stage, table, user_id) for table in TABLES} == dict.fromkeys(TABLES, 0)
    assert count(stage, "identities", user_id) == 1
    stage.clock.advance(2)
    assert stage.call("GET", "/api/auth/me", token=session).json["user_id"] is None
    me = stage.call("GET", "/api/auth/me", token=answer.json["token"])
    assert me.json["user_id"] == user_id
    again = come_by(stage, way)
    assert again.status_code == 200 and "credentials_dropped" not in again.json


@pytest.mark.parametrize("way", ["code", "link"])
def test_a_verified_account_keeps_its_credentials_and_is_asked_for_its_code(
    stage: ApiStage, way: str
) -> None:
    user_id, session = register_in_advance(stage, is_verified=True)
    answer = come_by(stage, way)
    assert answer.status_code == 401 and answer.json["error"]["code"] == "TOTP_REQUIRED"
    assert all(count(stage, table, user_id) for table in TABLES if table != "passkeys")
    assert stage.call("GET", "/api/auth/me", token=session).json["user_id"] == user_id


def test_a_redirect_carries_the_challenge_in_its_fragment(stage: ApiStage) -> None:
    register_in_advance(stage, is_verified=True)
    origin = {"Origin": "http://localhost:3000"}
    asked = stage.call(
        "POST", "/api/auth/magic-link/send",
        {"email": EMAIL, "callback": "http://localhost:3000/in"}, headers=origin,
    )
    cookie = asked.headers["set-cookie"].partition(";")[0]
    token = take_token(stage, "MAGIC_LINK", EMAIL)
    answer = stage.call(
        "GET", f"/api/auth/magic-link/verify?token={token}", headers={"Cookie": cookie}
    )
    assert answer.status_code == 302
    target, _, fragment = answer.headers["location"].partition("#")
    assert target == "http://localhost:3000/in?oauth_error=TOTP_REQUIRED"
    assert fragment.startswith("mfa=mfa_")
    assert "members_session=" not in answer.headers.get("set-cookie", "")
