"""Sign-in by a code, and verification of an address, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.storage.auth_ops import Condition, PutRecord
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_code, take_mails

pytestmark = pytest.mark.stores
ORIGIN = {"Origin": "http://localhost:3000"}
SEND, VERIFY = "/api/auth/magic/send", "/api/auth/magic/verify"
SEND_OWN, VERIFY_OWN = "/api/auth/email/send-verification", "/api/auth/email/verify"


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[ApiStage]:
    """A stage with the rates of production."""
    with serve_api(tmp_path, sign_in_app(), {"PYLON_AUTH_RATES": "true"}) as made:
        yield made


def send(stage: ApiStage, email: str, to: str | None = None) -> str:
    answer = stage.call("POST", SEND, {"email": email})
    assert answer.status_code == 200, answer.json
    return take_code(stage, to)


def verify(stage: ApiStage, email: str, code: str, **more: Any) -> Any:
    return stage.call("POST", VERIFY, {"email": email, "code": code}, **more)


def sign_in(stage: ApiStage, email: str) -> dict[str, Any]:
    answer = verify(stage, email, send(stage, email))
    assert answer.status_code == 200, answer.json
    body: dict[str, Any] = answer.json
    return body


def code_of(answer: Any) -> str:
    return str(answer.json["error"]["code"])


def rows(stage: ApiStage, table: str, **where: Any) -> list[dict[str, Any]]:
    conditions = [Condition(name, "=", value) for name, value in where.items()]
    return stage.identity.store.point(lambda reader: reader.records(table, conditions))


def test_a_code_makes_an_account_whose_address_is_verified(stage: ApiStage) -> None:
    body = sign_in(stage, "Ann@Example.com")
    assert set(body) == {"token", "user_id", "expires_at"}
    me = stage.call("GET", "/api/auth/session", token=body["token"]).json
    assert me["user"]["email"] == "ann@example.com" and me["user"]["emailVerified"]
    assert sign_in(stage, "ann@EXAMPLE.com")["user_id"] == body["user_id"]
    (identity,) = rows(stage, "identities")
    assert identity["subject"] == "ann@example.com" and identity["verified_at"]


def test_the_answer_of_send_is_the_same_for_unknown_addresses(stage: ApiStage) -> None:
    sign_in(stage, "ann@example.com")
    known = stage.call("POST", SEND, {"email": "ann@example.com"})
    unknown = stage.call("POST", SEND, {"email": "eve@example.com"})
    assert known.json == {"sent": True, "email": "ann@example.com"}
    assert unknown.json == {"sent": True, "email": "eve@example.com"}
    assert {mail.to for mail in take_mails(stage)} == {"ann@example.com", "eve@example.com"}


def test_a_wrong_code_is_in_the_audit_log(stage: ApiStage) -> None:
    user_id = sign_in(stage, "ann@example.com")["user_id"]
    for email in ("ann@example.com", "eve@example.com"):
        assert verify(stage, email, "000000").status_code == 401
    failed = rows(stage, "audit", action="sign_in_failed")
    assert [(found["user_id"], found["reason"], found["success"]) for found in failed] == [
        (user_id, "INVALID_CODE", 0), (None, "INVALID_CODE", 0),
    ]


def test_a_code_works_once(stage: ApiStage) -> None:
    code = send(stage, "ann@example.com")
    assert verify(stage, "ann@example.com", code).status_code == 200
    again = verify(stage, "ann@example.com", code)
    assert again.status_code == 401 and code_of(again) == "INVALID_CODE"


def test_a_code_expires_after_ten_minutes(stage: ApiStage) -> None:
    code = send(stage, "ann@example.com")
    stage.clock.advance(601)
    assert code_of(verify(stage, "ann@example.com", code)) == "INVALID_CODE"


def test_a_code_is_none_of_another_address(stage: ApiStage) -> None:
    code = send(stage, "ann@example.com")
    assert code_of(verify(stage, "eve@example.com", code)) == "INVALID_CODE"
    assert verify(stage, "ann@example.com", code).status_code == 200


def test_five_wrong_attempts_kill_a_code(stage: ApiStage) -> None:
    code = send(stage, "ann@example.com")
    wrong = f"{(int(code) + 1) % 10**6:06d}"
    for _ in range(5):
        assert code_of(verify(stage, "ann@example.com", wrong)) == "INVALID_CODE"
    dead = verify(stage, "ann@example.com", code)
    assert dead.status_code == 429 and code_of(dead) == "RATE_LIMITED"
    assert int(dead.headers["retry-after"]) >= 1
    stage.clock.advance(1)
    assert verify(stage, "ann@example.com", send(stage, "ann@example.com")).status_code == 200


def test_the_newest_two_codes_are_valid(stage: ApiStage) -> None:
    codes = []
    for _ in range(3):
        stage.clock.advance(1)
        codes.append(send(stage, "ann@example.com"))
    assert code_of(verify(stage, "ann@example.com", codes[0])) == "INVALID_CODE"
    assert verify(stage, "ann@example.com", codes[1]).status_code == 200
    assert verify(stage, "ann@example.com", codes[2]).status_code == 200


def test_a_dead_code_stays_dead_beside_a_newer_one(stage: ApiStage) -> None:
    old = send(stage, "ann@example.com")
    for _ in range(5):
        verify(stage, "ann@example.com", "x")
    stage.clock.advance(1)
    new = send(stage, "ann@example.com")
    assert code_of(verify(stage, "ann@example.com", old)) == "INVALID_CODE"
    assert verify(stage, "ann@example.com", new).status_code == 200


@pytest.mark.parametrize(("path", "body", "status", "code"), [
    (SEND, {}, 400, "MISSING_EMAIL"), (SEND, {"email": ""}, 400, "MISSING_EMAIL"),
    (SEND, {"email": " "}, 400, "MISSING_EMAIL"), (SEND, {"email": 5}, 400, "INVALID_DATA"),
    (SEND, {"email": "nope"}, 400, "INVALID_EMAIL"), (SEND, {"email": "a@b"}, 400, "INVALID_EMAIL"),
    (SEND, {"email": "a@b.com\r\nBcc: c@d.com"}, 400, "INVALID_EMAIL"),
    (VERIFY, {"code": "1"}, 400, "MISSING_EMAIL"),
    (VERIFY, {"email": "a@b.com"}, 400, "MISSING_CODE"),
    (VERIFY, {"email": "a@b.com", "code": 123456}, 400, "INVALID_DATA"),
    (VERIFY, {"email": "a@b.com", "code": "123456"}, 401, "INVALID_CODE"),
    (SEND_OWN, None, 401, "AUTH_REQUIRED"), (VERIFY_OWN, {"code": "1"}, 401, "AUTH_REQUIRED"),
])
def test_bad_requests_are_told_what_is_wrong(
    stage: ApiStage, path: str, body: Any, status: int, code: str
) -> None:
    answer = stage.call("POST", path, body)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert take_mails(stage) == []


def test_a_session_cookie_needs_a_trusted_origin(stage: ApiStage) -> None:
    answer = verify(stage, "ann@example.com", send(stage, "ann@example.com"), headers=ORIGIN)
    assert "members_session=" in answer.headers["set-cookie"]
    answer = verify(stage, "ann@example.com", send(stage, "ann@example.com"))
    assert "set-cookie" not in answer.headers


def test_mails_to_one_address_have_a_pause_and_an_hourly_limit(limited: ApiStage) -> None:
    sent = 0
    for number in range(100):
        address = f"10.0.{number // 50}.{number}"
        answer = limited.call("POST", SEND, {"email": "ann@example.com"}, remote_addr=address)
        if answer.status_code != 200:
            break
        sent += 1
        again = limited.call("POST", SEND, {"email": "Ann@Example.com"}, remote_addr="10.1.1.1")
        assert again.status_code == 429 and int(again.headers["retry-after"]) > 0
        limited.clock.advance(60)
    # A bucket of ten, which gets one back in six minutes.
    assert sent == len(take_mails(limited)) == 11
    assert 0 < int(answer.headers["retry-after"]) <= 360


def test_a_signed_in_user_verifies_their_address(stage: ApiStage) -> None:
    token = unverified(stage, "ann@example.com")
    answer = stage.call("POST", SEND_OWN, token=token)
    assert answer.json == {"sent": True, "email": "ann@example.com"}
    code = take_code(stage, "ann@example.com")
    wrong = stage.call("POST", VERIFY_OWN, {"code": "x"}, token)
    assert code_of(wrong) == "INVALID_CODE"
    answer = stage.call("POST", VERIFY_OWN, {"code": code}, token)
    assert answer.json["verified"] is True and answer.json["emailVerified"]
    again = stage.call("POST", VERIFY_OWN, {"code": code}, token)
    assert code_of(again) == "INVALID_CODE"
    (identity,) = rows(stage, "identities")
    assert identity["verified_at"]


def test_a_code_of_one_purpose_is_none_of_the_other(stage: ApiStage) -> None:
    token = unverified(stage, "ann@example.com")
    stage.call("POST", SEND_OWN, token=token)
    code = take_code(stage)
    assert code_of(verify(stage, "ann@example.com", code)) == "INVALID_CODE"
    code = send(stage, "ann@example.com")
    assert code_of(stage.call("POST", VERIFY_OWN, {"code": code}, token)) == "INVALID_CODE"


def test_codes_are_in_no_table(stage: ApiStage) -> None:
    stage.call("POST", SEND, {"email": "ann@example.com"})
    stored = [str(row) for table in ("tokens", "outbox", "audit") for row in rows(stage, table)]
    code = take_code(stage)
    assert not any(code in text for text in stored)


def unverified(stage: ApiStage, email: str) -> str:
    """Return the token of a user whose address was never proved, as `register` makes one."""
    stage.call("POST", "/api/entities/User", {"email": email}, stage.user("seed"))
    row = stage.identity.store.point(lambda reader: reader.lookup("User", "email", email))
    assert row is not None
    user_id = json.loads(row)["id"]
    stage.writer.submit(PutRecord("users", {"user_id": user_id, "created_at": 1}))
    stage.writer.submit(PutRecord("identities", {
        "kind": "email", "subject": email, "user_id": user_id, "created_at": 1,
    }))
    return stage.user(user_id)
