"""Passwords: register, sign in, change; on both stores, without processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from pylon.storage.auth_ops import Condition
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_code

pytestmark = pytest.mark.stores

REGISTER: Final = "/api/auth/password/register"
LOGIN: Final = "/api/auth/password/login"
CHANGE: Final = "/api/auth/password/change"
PASSWORD: Final = "four random words here"
ORIGIN: Final = {"Origin": "http://localhost:3000"}


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[ApiStage]:
    """The app with rates of credentials."""
    with serve_api(tmp_path, sign_in_app(), {"PYLON_AUTH_RATES": "true"}) as made:
        yield made


def register(stage: ApiStage, email: str = "ann@example.com", **more: Any) -> dict[str, Any]:
    answer = stage.call("POST", REGISTER, {"email": email, "password": PASSWORD, **more})
    assert answer.status_code == 200, answer.json
    body: dict[str, Any] = answer.json
    return body


def sign_in(stage: ApiStage, email: str, password: str, **more: Any) -> tuple[int, str]:
    answer = stage.call("POST", LOGIN, {"email": email, "password": password}, **more)
    return answer.status_code, answer.json.get("error", {}).get("code", "")


def user_row(stage: ApiStage, user_id: str) -> dict[str, Any]:
    row: dict[str, Any] = stage.call(
        "GET", f"/api/entities/User/{user_id}", token=ADMIN_TOKEN
    ).json
    return row


def count(stage: ApiStage, table: str, *where: Condition) -> int:
    return stage.identity.store.point(lambda reader: reader.count_records(table, list(where)))


# --- Register ----------------------------------------------------------------------------


def test_a_new_account_has_a_session_a_row_and_a_change_event(stage: ApiStage) -> None:
    body = register(stage, " Ann@Example.COM ".strip(), displayName="Ann")
    assert set(body) == {"token", "user_id", "expires_at", "verification_email_sent"}
    me = stage.call("GET", "/api/auth/me", token=body["token"]).json
    assert me["user_id"] == body["user_id"]
    row = user_row(stage, body["user_id"])
    assert (row["email"], row["displayName"]) == ("ann@example.com", "Ann")
    assert row["emailVerified"] is None and row["createdAt"]
    assert "passwordHash" not in row
    pulled = stage.call("GET", "/api/sync/pull?since=0", token=body["token"]).json
    assert [c["row_id"] for c in pulled["changes"] if c["entity"] == "User"] == [body["user_id"]]
    assert sign_in(stage, "ANN@example.com", PASSWORD) == (200, "")


@pytest.mark.parametrize(("body", "code"), [
    ({}, "MISSING_EMAIL"),
    ({"email": ""}, "MISSING_EMAIL"),
    ({"email": 7}, "INVALID_DATA"),
    ({"email": "ann", "password": "short"}, "INVALID_EMAIL"),
    ({"email": "ann"}, "INVALID_EMAIL"),
    ({"email": "a@example.com\r\nBcc: b@example.com", "password": PASSWORD}, "INVALID_EMAIL"),
    ({"email": "ann@example.com"}, "MISSING_PASSWORD"),
    ({"email": "ann@example.com", "password": None}, "MISSING_PASSWORD"),
    ({"email": "ann@example.com", "password": ["x"]}, "INVALID_DATA"),
    ({"email": "ann@example.com", "password": "too short"}, "WEAK_PASSWORD"),
    ({"email": "ann@example.com", "password": "x" * 1_025}, "PASSWORD_TOO_LONG"),
    ({"email": "ann@example.com", "password": PASSWORD, "displayName": "a\nb"}, "INVALID_NAME"),
])
def test_errors_come_in_the_order_of_the_specification(
    stage: ApiStage, body: dict[str, Any], code: str
) -> None:
    answer = stage.call("POST", REGISTER, body)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, code)
    assert count(stage, "identities") == 0


def test_a_taken_address_is_refused_whatever_its_spelling(stage: ApiStage) -> None:
    register(stage)
    for email in ("ann@example.com", "ANN@EXAMPLE.COM"):
        answer = stage.call("POST", REGISTER, {"email": email, "password": "another password"})
        assert (answer.status_code, answer.json["error"]["code"]) == (409, "EMAIL_TAKEN")
    assert sign_in(stage, "ann@example.com", PASSWORD) == (200, "")
    assert sign_in(stage, "ann@example.com", "another password")[0] == 401


def test_roles_and_ids_of_the_body_are_ignored(stage: ApiStage) -> None:
    """Attack 14."""
    body = register(
        stage, role="admin", is_admin=True, id="mine", roles=["admin"], emailVerified="2026-01-01",
        passwordHash="x", user_id="__admin__",
    )
    row = user_row(stage, body["user_id"])
    assert body["user_id"] != "mine" and row["role"] is None and row["emailVerified"] is None
    me = stage.call("GET", "/api/auth/me", token=body["token"]).json
    assert (me["is_admin"], me["roles"]) == (False, [])


def test_a_row_of_the_app_is_given_to_nobody_who_only_types_its_address(stage: ApiStage) -> None:
    made = stage.call(
        "POST", "/api/entities/User", {"email": "boss@example.com", "role": "admin"}, ADMIN_TOKEN
    ).json
    answer = stage.call("POST", REGISTER, {"email": "boss@example.com", "password": PASSWORD})
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "EMAIL_TAKEN")
    assert "mail" in answer.json["error"]["hint"]
    assert count(stage, "identities", Condition("user_id", "=", made["id"])) == 0


def test_the_password_is_stored_nowhere_but_as_a_hash(stage: ApiStage, tmp_path: Path) -> None:
    body = register(stage)
    [record] = stage.identity.store.point(lambda reader: reader.records("passwords", []))
    assert str(record["phc"]).startswith("$argon2id$")
    for table in ("users", "identities", "audit", "sessions", "tokens", "outbox"):
        found = stage.identity.store.point(
            lambda reader, table=table: reader.records(table, [])
        )
        assert PASSWORD not in repr(found) and str(record["phc"]) not in repr(found)
    assert str(record["phc"]) not in repr(user_row(stage, body["user_id"]))


def test_with_required_verification_new_and_taken_addresses_get_one_answer(
    tmp_path: Path,
) -> None:
    with serve_api(
        tmp_path, sign_in_app(), {"PYLON_REQUIRE_EMAIL_VERIFICATION": "true"}
    ) as stage:
        answers = [
            stage.call("POST", REGISTER, {"email": "ann@example.com", "password": password})
            for password in (PASSWORD, "another password")
        ]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].json == answers[1].json == {
            "email": "ann@example.com", "verification_required": True
        }
        assert all("set-cookie" not in answer.headers for answer in answers)
        assert count(stage, "sessions") == 0 and count(stage, "identities") == 1
        # Only the right password tells that the address is not confirmed.
        assert sign_in(stage, "ann@example.com", PASSWORD) == (403, "EMAIL_NOT_VERIFIED")
        assert sign_in(stage, "ann@example.com", "another password")[0] == 401


def test_an_address_is_confirmed_without_a_session(tmp_path: Path) -> None:
    environ = {"PYLON_REQUIRE_EMAIL_VERIFICATION": "true", "PYLON_DEV_MODE": "true",
               "PYLON_EMAIL_PROVIDER": "console"}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        stage.call("POST", REGISTER, {"email": "ann@example.com", "password": PASSWORD})
        code = take_code(stage)
        verify = "/api/auth/email/verify"
        for email in (None, ""):
            answer = stage.call("POST", verify, {"code": code, "email": email})
            assert (answer.status_code, answer.json["error"]["code"]) == (401, "AUTH_REQUIRED")
        # The code of an address is none of another one, known or not.
        stage.call("POST", REGISTER, {"email": "bob@example.com", "password": PASSWORD})
        for email in ("bob@example.com", "nobody@example.com"):
            answer = stage.call("POST", verify, {"code": code, "email": email})
            assert (answer.status_code, answer.json["error"]["code"]) == (401, "INVALID_CODE")
        answer = stage.call("POST", verify, {"code": code, "email": " Ann@Example.com "})
        assert answer.status_code == 200 and answer.json["verified"] is True
        assert set(answer.json) == {"verified", "emailVerified"}, "and no session"
        assert sign_in(stage, "ann@example.com", PASSWORD)[0] == 200
        assert sign_in(stage, "bob@example.com", PASSWORD) == (403, "EMAIL_NOT_VERIFIED")


# --- Sign in -----------------------------------------------------------------------------


def test_unknown_without_password_and_wrong_are_answered_alike(stage: ApiStage) -> None:
    register(stage)
    stage.call("POST", "/api/entities/User", {"email": "app@example.com"}, ADMIN_TOKEN)
    answers = [
        stage.call("POST", LOGIN, {"email": email, "password": "not the password"})
        for email in ("ann@example.com", "nobody@example.com", "app@example.com", "no address")
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json["error"]["code"] == "INVALID_CREDENTIALS"
    failed = Condition("action", "=", "sign_in_failed")
    assert count(stage, "audit", failed) == 4
    assert count(stage, "audit", failed, Condition("actor_id", "not null")) == 0


@pytest.mark.parametrize(("body", "code"), [
    ({}, "MISSING_EMAIL"), ({"email": "a@example.com"}, "MISSING_PASSWORD"),
    ({"email": "a@example.com", "password": ""}, "MISSING_PASSWORD"),
    ({"email": "a@example.com", "password": 1}, "INVALID_DATA"),
])
def test_what_a_sign_in_needs(stage: ApiStage, body: dict[str, Any], code: str) -> None:
    answer = stage.call("POST", LOGIN, body)
    assert (answer.status_code, answer.json["error"]["code"]) == (400, code)


def test_a_password_may_be_typed_on_another_keyboard(stage: ApiStage) -> None:
    password = "Zoe\u0308 liest B\u00fccher"  # a combining diaeresis, and a composed one
    stage.call("POST", REGISTER, {"email": "zoe@example.com", "password": password})
    assert sign_in(stage, "zoe@example.com", "Zo\u00eb liest Bu\u0308cher") == (200, "")
    assert sign_in(stage, "zoe@example.com", "Zoe liest Bucher")[0] == 401


def test_a_cookie_is_set_for_pages_of_trusted_origins_only(stage: ApiStage) -> None:
    register(stage)
    body = {"email": "ann@example.com", "password": PASSWORD}
    plain = stage.call("POST", LOGIN, body)
    assert "set-cookie" not in plain.headers
    cookies = set(stage.call("POST", LOGIN, body, headers=ORIGIN).cookies)
    assert {"members_session", "members_dev"} <= cookies
    foreign = stage.call("POST", LOGIN, body, headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403


def test_each_sign_in_makes_a_new_token(stage: ApiStage) -> None:
    """Attack 8: a planted cookie does not become the session."""
    first = register(stage)
    headers = {
        **ORIGIN, "Cookie": f"members_session={first['token']}", "Content-Type": "application/json"
    }
    answer = stage.call(
        "POST", LOGIN, {"email": "ann@example.com", "password": PASSWORD}, headers=headers
    )
    assert answer.json["token"] != first["token"]
    assert answer.cookies["members_session"].value == answer.json["token"]


def test_an_outdated_hash_is_replaced_at_the_next_sign_in(stage: ApiStage) -> None:
    from workers.identity.hashing import HashPool

    user_id = register(stage)["user_id"]
    old = HashPool(1, memory_kib=32)
    phc = old.make(PASSWORD.encode())
    old.close()
    from pylon.storage.auth_ops import SetRecords

    stage.writer.submit(SetRecords(
        "passwords", [Condition("user_id", "=", user_id)], {"phc": phc}, 1
    ))
    assert sign_in(stage, "ann@example.com", PASSWORD) == (200, "")
    [record] = stage.identity.store.point(lambda reader: reader.records("passwords", []))
    assert record["phc"] != phc and "m=64" in str(record["phc"])
    assert sign_in(stage, "ann@example.com", PASSWORD) == (200, "")


# --- Rates -------------------------------------------------------------------------------


def test_an_address_may_try_five_times_a_minute(strict: ApiStage) -> None:
    register(strict)
    codes = [sign_in(strict, f"u{n}@example.com", "wrong password") for n in range(7)]
    assert [status for status, _ in codes] == [401] * 5 + [429] * 2
    strict.clock.advance(60)
    assert sign_in(strict, "ann@example.com", PASSWORD) == (200, "")


def test_an_operator_sets_the_rates_of_sign_ins(tmp_path: Path) -> None:
    environ = {
        "PYLON_AUTH_RATES": "true", "PYLON_AUTH_LOGIN_IP_PER_MIN": "2",
        "PYLON_AUTH_LOGIN_ACCOUNT_PER_HOUR": "3",
    }
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        found = [sign_in(stage, f"u{n}@example.com", "wrong password")[0] for n in range(3)]
        assert found == [401, 401, 429]
        found = [
            sign_in(stage, "ann@example.com", "guess", remote_addr=f"198.51.100.{n}")[0]
            for n in range(4)
        ]
        assert found == [401, 401, 401, 429]


def test_an_operator_sets_other_limits_of_rates_by_name(tmp_path: Path) -> None:
    environ = {"PYLON_AUTH_RATES": "true", "PYLON_AUTH_RATE_LIMITS": "register_ip=2, send_ip=9"}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        made = [
            stage.call("POST", REGISTER, {"email": f"u{n}@example.com", "password": PASSWORD})
            for n in range(3)
        ]
        assert [answer.status_code for answer in made] == [200, 200, 429]
        assert made[2].json["error"]["code"] == "RATE_LIMITED"


def test_a_stranger_cannot_lock_the_owner_out(strict: ApiStage) -> None:
    """Attack 4: 200 addresses guess; the owner signs in from a known device, and by mail."""
    answer = strict.call(
        "POST", REGISTER, {"email": "ann@example.com", "password": PASSWORD}, headers=ORIGIN,
        remote_addr="192.0.2.1",
    )
    device = answer.cookies["members_dev"].value
    statuses = [
        sign_in(
            strict, "ann@example.com", f"guess number {n}", remote_addr=f"198.51.100.{n}"
        )[0]
        for n in range(1, 121)
    ]
    assert statuses.count(401) == 100 and statuses[-1] == 429
    body = {"email": "ann@example.com", "password": PASSWORD}
    stranger = strict.call("POST", LOGIN, body, remote_addr="203.0.113.9")
    assert stranger.status_code == 429
    error = stranger.json["error"]
    assert error["code"] == "RATE_LIMITED" and "mail" in error["hint"]
    assert int(stranger.headers["retry-after"]) == error["retry_after_secs"] > 0
    known = strict.call(
        "POST", LOGIN, body, remote_addr="203.0.113.9",
        headers={"Cookie": f"members_dev={device}"},
    )
    assert known.status_code == 200
    other = strict.call(  # the mark of another browser is worth nothing
        "POST", LOGIN, body, remote_addr="203.0.113.10",
        headers={"Cookie": "members_dev=" + "0" * 64},
    )
    assert other.status_code == 429


def test_rates_do_not_tell_whether_an_account_exists(strict: ApiStage) -> None:
    register(strict)
    for email in ("ann@example.com", "nobody@example.com"):
        statuses = [
            sign_in(strict, email, "guess", remote_addr=f"192.0.2.{n}")[0] for n in range(102)
        ]
        assert statuses == [401] * 100 + [429] * 2, email


def test_a_right_password_spends_nothing_of_the_account(strict: ApiStage) -> None:
    register(strict)
    for n in range(30):
        strict.clock.advance(12)
        address = f"192.0.2.{n}"
        assert sign_in(strict, "ann@example.com", PASSWORD, remote_addr=address)[0] == 200
    statuses = [
        sign_in(strict, "ann@example.com", "guess", remote_addr=f"198.51.100.{n}")[0]
        for n in range(101)
    ]
    assert statuses == [401] * 100 + [429]


# --- Change ------------------------------------------------------------------------------


def change(
    stage: ApiStage, token: str, current: str, new: str, **more: Any
) -> tuple[int, dict[str, Any]]:
    answer = stage.call(
        "POST", CHANGE, {"currentPassword": current, "newPassword": new}, token, **more
    )
    return answer.status_code, answer.json


def test_a_change_ends_all_sessions_but_the_new_one(stage: ApiStage) -> None:
    first = register(stage)["token"]
    second = stage.call("POST", LOGIN, {"email": "ann@example.com", "password": PASSWORD})
    status, body = change(stage, first, PASSWORD, "entirely other words")
    assert status == 200
    assert (body["changed"], body["revoked_sessions"]) == (True, 1)
    for token in (first, second.json["token"]):
        assert stage.call("GET", "/api/auth/me", token=token).json["user_id"] is None
    assert stage.call("GET", "/api/auth/me", token=body["token"]).json["user_id"]
    assert sign_in(stage, "ann@example.com", PASSWORD)[0] == 401
    assert sign_in(stage, "ann@example.com", "entirely other words") == (200, "")
    assert {type(signal).__name__ for signal in stage.signals} == {"SessionRevoked"}
    assert len(stage.signals) == 2


def test_a_change_needs_the_current_password(stage: ApiStage) -> None:
    """Attack 35."""
    token = register(stage)["token"]
    for current, new, expected in (
        ("wrong password", "entirely other words", (401, "WRONG_PASSWORD")),
        ("", "entirely other words", (400, "MISSING_PASSWORD")),
        (PASSWORD, "", (400, "MISSING_PASSWORD")),
        (PASSWORD, "short", (400, "WEAK_PASSWORD")),
    ):
        status, body = change(stage, token, current, new)
        assert (status, body["error"]["code"]) == expected
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"]
    assert change(stage, "", PASSWORD, "entirely other words")[0] == 401
    guest = stage.guest()
    assert change(stage, guest, PASSWORD, "entirely other words")[1]["error"]["code"] == (
        "NO_PASSWORD_SET"
    )


def test_a_notice_of_a_change_goes_to_the_stored_address(stage: ApiStage) -> None:
    token = register(stage)["token"]
    before = count(stage, "outbox")
    assert change(stage, token, PASSWORD, "entirely other words")[0] == 200
    assert count(stage, "outbox") == before + 1
