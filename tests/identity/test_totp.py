"""TOTP: enrolment, its end, backup codes, and the second factor at the end of each sign-in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pylon import limits
from pylon.auth.keys import Keys
from pylon.auth_context import AuthContext
from pylon.errors import AccountLocked, InvalidTotpCode, RecordConflict, TotpRequired
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord, SetRecords
from pylon.storage.ops import Transact
from tests.support.api import ApiStage, serve_api
from tests.support.authenticator import (
    PAGE,
    Authenticator,
    answer,
    challenge_of,
    enroll,
    first_factor,
    now_s,
    put_user,
    who_is,
)
from tests.support.manifests import sign_in_app
from workers.identity import totp

pytestmark = pytest.mark.stores
USER = "a" * 40


@pytest.fixture(autouse=True)
def account(stage: ApiStage) -> None:
    put_user(stage, USER)


def records(stage: ApiStage, table: str, user_id: str = USER) -> list[dict[str, Any]]:
    where = [Condition("user_id", "=", user_id)]
    return stage.identity.store.point(lambda reader: reader.records(table, where))


def actions(stage: ApiStage) -> list[tuple[str, bool]]:
    """The audit of the user, the oldest first."""
    found = stage.identity.store.point(
        lambda reader: reader.records("audit", [Condition("user_id", "=", USER)], ("created_at",))
    )
    return [(str(record["action"]), bool(record["success"])) for record in found]


def code_of(answered: Any) -> tuple[int, str]:
    return answered.status_code, answered.json["error"]["code"]


# --- Enrolment -----------------------------------------------------------------------------


def test_a_secret_counts_only_after_its_first_code(stage: ApiStage) -> None:
    token = stage.user(USER)
    made = stage.call("POST", "/api/auth/totp/enroll", {}, token)
    assert made.status_code == 200
    assert re.fullmatch("[A-Z2-7]{32}", made.json["secret"])
    url = urlsplit(made.json["url"])
    assert (url.scheme, url.netloc, url.path) == ("otpauth", "totp", f"/members:{USER}")
    assert parse_qs(url.query) == {
        "secret": [made.json["secret"]], "issuer": ["members"], "algorithm": ["SHA1"],
        "digits": ["6"], "period": ["30"],
    }
    assert first_factor(stage, USER)["user_id"] == USER  # nobody is asked yet
    app = Authenticator(made.json["secret"])
    verified = stage.call(
        "POST", "/api/auth/totp/verify", {"code": app.code(now_s(stage))}, token
    )
    assert {key: verified.json[key] for key in ("verified", "enrolled", "trust_device")} == {
        "verified": True, "enrolled": True, "trust_device": False,
    }
    assert verified.json["token"] != token
    assert who_is(stage, verified.json["token"]) == USER
    with pytest.raises(TotpRequired):
        first_factor(stage, USER)
    assert ("totp_enroll", True) in actions(stage)
    stage.clock.advance(31)  # the token before counts as after a refresh
    assert who_is(stage, token) is None


def test_a_secret_that_gets_no_code_in_time_is_gone(stage: ApiStage) -> None:
    token = stage.user(USER)
    app = Authenticator(stage.call("POST", "/api/auth/totp/enroll", {}, token).json["secret"])
    stage.clock.advance(limits.TOTP_PENDING_S)
    late = stage.call("POST", "/api/auth/totp/verify", {"code": app.code(now_s(stage))}, token)
    assert code_of(late) == (400, "TOTP_NOT_ENROLLED")


def test_another_secret_needs_a_code_of_the_first_and_replaces_it_with_its_own(
    stage: ApiStage,
) -> None:
    old, token = enroll(stage, stage.user(USER))
    for body in ({}, {"code": "000000"}, {"code": "no code"}):
        assert code_of(stage.call("POST", "/api/auth/totp/enroll", body, token)) == (
            401, "INVALID_TOTP_CODE"
        )
    made = stage.call(
        "POST", "/api/auth/totp/enroll", {"code": old.code(now_s(stage))}, token
    )
    new = Authenticator(made.json["secret"])
    stage.clock.advance(60)
    # The old one counts until the new one has given its first code.
    assert answer(stage, challenge_of(stage, USER), old.code(now_s(stage))).status_code == 200
    done = stage.call("POST", "/api/auth/totp/verify", {"code": new.code(now_s(stage))}, token)
    assert done.json["enrolled"]
    stage.clock.advance(60)
    assert code_of(answer(stage, challenge_of(stage, USER), old.code(now_s(stage)))) == (
        401, "INVALID_TOTP_CODE"
    )
    assert answer(stage, challenge_of(stage, USER), new.code(now_s(stage))).status_code == 200


def test_verify_on_an_enrolled_account_makes_the_session_fresh(stage: ApiStage) -> None:
    app, token = enroll(stage, stage.user(USER))
    stage.clock.advance(3_600)
    stale = stage.call("POST", "/api/auth/totp/backup-codes/regenerate", token=token)
    assert code_of(stale) == (403, "REAUTH_REQUIRED")
    done = stage.call("POST", "/api/auth/totp/verify", {"code": app.code(now_s(stage))}, token)
    assert done.json == {"verified": True, "enrolled": False, "trust_device": False}
    made = stage.call("POST", "/api/auth/totp/backup-codes/regenerate", token=token)
    assert made.status_code == 200


def test_disabling_needs_a_code_and_ends_all_of_it(stage: ApiStage) -> None:
    token = stage.user(USER)
    assert code_of(stage.call("POST", "/api/auth/totp/disable", {"code": "000000"}, token)) == (
        400, "TOTP_NOT_ENROLLED"
    )
    app, token = enroll(stage, token)
    assert code_of(stage.call("POST", "/api/auth/totp/disable", {}, token)) == (
        400, "MISSING_CODE"
    )
    assert code_of(stage.call("POST", "/api/auth/totp/disable", {"code": "000000"}, token)) == (
        401, "INVALID_TOTP_CODE"
    )
    stage.call("POST", "/api/auth/totp/backup-codes/regenerate", token=token)
    done = stage.call("POST", "/api/auth/totp/disable", {"code": app.code(now_s(stage))}, token)
    assert (done.status_code, done.json) == (200, {"disabled": True})
    assert records(stage, "totp") == records(stage, "backup_codes") == []
    assert first_factor(stage, USER)["token"]
    assert ("totp_disable", True) in actions(stage)


def test_the_database_holds_no_secret_and_no_backup_code(stage: ApiStage) -> None:
    app, token = enroll(stage, stage.user(USER))
    codes = stage.call("POST", "/api/auth/totp/backup-codes/regenerate", token=token).json["codes"]
    stage.call("POST", "/api/auth/totp/enroll", {"code": app.code(now_s(stage))}, token)
    stored = repr([records(stage, name) for name in ("totp", "backup_codes", "tokens", "audit")])
    for text in (app.secret, *codes, *(code.replace("-", "") for code in codes)):
        assert text not in stored


def test_a_changed_secret_key_opens_with_the_one_before_and_seals_anew(
    stage: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Keys([bytes(range(32))])
    both = Keys([bytes(range(1, 33)), bytes(range(32))])
    object.__setattr__(stage.identity, "keys", old)
    app, token = enroll(stage, stage.user(USER))
    [backup, *_] = stage.call(
        "POST", "/api/auth/totp/backup-codes/regenerate", token=token
    ).json["codes"]
    object.__setattr__(stage.identity, "keys", both)
    assert answer(stage, challenge_of(stage, USER), app.code(now_s(stage))).status_code == 200
    assert both.is_current(records(stage, "totp")[0]["sealed"])
    assert answer(stage, challenge_of(stage, USER), backup).status_code == 200
    object.__setattr__(stage.identity, "keys", Keys([bytes(range(1, 33))]))
    stage.clock.advance(60)
    assert answer(stage, challenge_of(stage, USER), app.code(now_s(stage))).status_code == 200


# --- The end of a sign-in ------------------------------------------------------------------


def test_an_account_without_authenticator_gets_a_session(stage: ApiStage) -> None:
    body = first_factor(stage, USER, method="magic_code", extra={"reset": True})
    assert (body["user_id"], body["reset"]) == (USER, True)
    assert who_is(stage, body["token"]) == USER
    assert actions(stage) == [("sign_in", True)]


def test_the_challenge_says_what_answers_it_and_its_answer_is_the_session(
    stage: ApiStage,
) -> None:
    app, token = enroll(stage, stage.user(USER))
    with pytest.raises(TotpRequired) as caught:
        first_factor(stage, USER, extra={"reset": True})
    error = caught.value.body()["error"]
    challenge = error.pop("challenge")
    assert error == {
        "code": "TOTP_REQUIRED", "message": "Enter the code of your authenticator app",
        "expires_in": 300, "methods": ["totp"],
    }
    assert re.fullmatch(r"mfa_[A-Za-z0-9_-]{43}", challenge)
    assert challenge not in repr(records(stage, "tokens"))
    stage.call("POST", "/api/auth/totp/backup-codes/regenerate", token=token)
    with pytest.raises(TotpRequired) as caught:
        first_factor(stage, USER)
    assert caught.value.details["methods"] == ["totp", "backup_code"]
    done = answer(stage, challenge, app.code(now_s(stage)), PAGE)
    assert set(done.json) == {"token", "user_id", "expires_at", "reset"}
    assert who_is(stage, done.json["token"]) == USER
    assert done.headers["set-cookie"].startswith("members_session=")
    session = stage.identity.store.point(
        lambda reader: reader.records("sessions", [Condition("user_id", "=", USER)],
                                      ("-created_at",))
    )[0]
    assert session["methods"] == "password totp"


def test_a_code_that_comes_along_is_both_factors(stage: ApiStage) -> None:
    app, _ = enroll(stage, stage.user(USER))
    code = app.code(now_s(stage))
    assert first_factor(stage, USER, code=code)["token"]
    for used in (code, "000000"):
        with pytest.raises(InvalidTotpCode):
            first_factor(stage, USER, code=used)
    assert actions(stage).count(("sign_in_failed", False)) == 2


def test_a_challenge_dies_after_five_wrong_codes_and_in_five_minutes(stage: ApiStage) -> None:
    app, _ = enroll(stage, stage.user(USER))
    challenge = challenge_of(stage, USER)
    for _ in range(limits.CHALLENGE_ATTEMPTS):
        assert code_of(answer(stage, challenge, "000000")) == (401, "INVALID_TOTP_CODE")
    assert code_of(answer(stage, challenge, app.code(now_s(stage)))) == (401, "INVALID_CHALLENGE")
    assert actions(stage).count(("totp_challenge_failed", False)) == limits.CHALLENGE_ATTEMPTS
    challenge = challenge_of(stage, USER)
    stage.clock.advance(limits.CHALLENGE_S)
    assert code_of(answer(stage, challenge, app.code(now_s(stage)))) == (401, "INVALID_CHALLENGE")
    assert code_of(answer(stage, "mfa_x", "000000")) == (401, "INVALID_CHALLENGE")


@pytest.mark.parametrize("body", [
    {}, {"challenge": "mfa_x"}, {"challenge": 1, "code": "1"},
    {"challenge": "x" * 101, "code": "1"},
    {"challenge": "mfa_x", "code": "1" * 65}, {"challenge": "mfa_x", "code": None},
])
def test_an_answer_of_another_form_is_refused(stage: ApiStage, body: dict[str, Any]) -> None:
    assert stage.call("POST", "/api/auth/totp/challenge", body).status_code == 400


def test_a_refused_step_stores_neither_session_nor_challenge(stage: ApiStage) -> None:
    held = CheckRecords("users", [Condition("user_id", "=", "nobody")], 1)
    for _ in range(2):  # without an authenticator, then with one
        with pytest.raises(RecordConflict):
            first_factor(stage, USER, [held])
        assert not any(record["purpose"] == "mfa" for record in records(stage, "tokens"))
        _, _ = enroll(stage, stage.user(USER))
        break
    with pytest.raises(RecordConflict):
        first_factor(stage, USER, [held])
    assert not any(record["purpose"] == "mfa" for record in records(stage, "tokens"))


def test_the_steps_of_the_first_factor_are_carried_out_with_the_challenge(
    stage: ApiStage,
) -> None:
    enroll(stage, stage.user(USER))
    put = PutRecord("tokens", {
        "hash": "h", "purpose": "code", "user_id": USER, "email_key": None, "data": None,
        "attempts": 0, "created_at": 1, "expires_at": now_s(stage) + 60, "used_at": None,
    })
    challenge_of(stage, USER, steps=[put])
    assert [r["hash"] for r in records(stage, "tokens") if r["purpose"] == "code"] == ["h"]


def lock(stage: ApiStage) -> None:
    put_user(stage, USER, locked_at=1)


def test_a_locked_account_gets_neither_session_nor_challenge(stage: ApiStage) -> None:
    app, _ = enroll(stage, stage.user(USER))
    challenge = challenge_of(stage, USER)
    lock(stage)
    with pytest.raises(AccountLocked):
        first_factor(stage, USER)
    assert code_of(answer(stage, challenge, app.code(now_s(stage)))) == (403, "ACCOUNT_LOCKED")


class Interrupted:
    """A writer that lets something happen before the first transaction with a given word."""

    def __init__(self, stage: ApiStage, word: str, happens: Any) -> None:
        self._inner, self._word, self._happens = stage.identity.writer, word, happens

    def submit(self, op: Any, *args: Any, **more: Any) -> Any:
        if self._happens is not None and self._word in repr(op):
            happens, self._happens = self._happens, None
            happens()
        return self._inner.submit(op, *args, **more)


@pytest.fixture
def interrupt(stage: ApiStage) -> Iterator[Any]:
    before = stage.identity.writer

    def interrupt(word: str, happens: Any) -> None:
        object.__setattr__(stage.identity, "writer", Interrupted(stage, word, happens))

    yield interrupt
    object.__setattr__(stage.identity, "writer", before)


def test_an_authenticator_that_is_enrolled_meanwhile_counts(
    stage: ApiStage, interrupt: Any
) -> None:
    token = stage.user(USER)
    interrupt("PutSession", lambda: enroll(stage, token))
    with pytest.raises(TotpRequired):
        first_factor(stage, USER)


def test_a_lock_that_comes_meanwhile_counts(stage: ApiStage, interrupt: Any) -> None:
    interrupt("PutSession", lambda: lock(stage))
    with pytest.raises(AccountLocked):
        first_factor(stage, USER)
    assert records(stage, "sessions") == []


def test_an_account_that_is_deleted_meanwhile_gets_no_session(
    stage: ApiStage, interrupt: Any
) -> None:
    gone = DropRecords("users", [Condition("user_id", "=", USER)])
    interrupt("PutSession", lambda: stage.identity.writer.submit(Transact([gone])))
    with pytest.raises(RecordConflict):
        first_factor(stage, USER)
    assert records(stage, "sessions") == []


def test_a_guest_brings_rows_along_after_the_second_factor(tmp_path: Path) -> None:
    folder = tmp_path / "guests"
    folder.mkdir()
    with serve_api(folder, sign_in_app() | {"references": "none"}) as stage:
        put_user(stage, USER)
        app, _ = enroll(stage, stage.user(USER))
        guest = stage.guest()
        guest_id = who_is(stage, guest)
        todo = {"title": "mine", "authorId": guest_id}
        row_id = stage.call("POST", "/api/entities/Todo", todo, guest).json["id"]
        challenge = challenge_of(stage, USER, auth=AuthContext(user_id=guest_id, is_guest=True))
        assert who_is(stage, guest) == guest_id  # nothing is carried before the code
        done = answer(
            stage, challenge, app.code(now_s(stage)), {"Authorization": f"Bearer {guest}"}
        )
        assert done.json["carried"] == {"moved": 1, "skipped": 0}
        row = stage.call("GET", f"/api/entities/Todo/{row_id}", token=done.json["token"])
        assert row.json["authorId"] == USER
        stage.clock.advance(1)  # other workers remember a caller for less
        assert who_is(stage, guest) is None
        assert any("SessionRevoked" in repr(signal) for signal in stage.signals)


def test_a_device_that_is_dropped_meanwhile_is_asked(stage: ApiStage, interrupt: Any) -> None:
    app, token = enroll(stage, stage.user(USER))
    cookie = trusted_cookie(
        answer(stage, challenge_of(stage, USER), app.code(now_s(stage)), PAGE, trust_device=True)
    )
    interrupt(
        "PutSession", lambda: stage.call("DELETE", "/api/auth/trusted-devices", token=token)
    )
    with pytest.raises(TotpRequired):
        first_factor(stage, USER, cookies={"trusted_device": cookie})


# --- Trusted devices -----------------------------------------------------------------------


def trusted_cookie(answered: Any) -> str:
    assert answered.status_code == 200, answered.text
    return str(answered.cookies["pylon_trusted_device"].value)


def test_a_trusted_browser_is_not_asked_for_thirty_days(stage: ApiStage) -> None:
    app, token = enroll(stage, stage.user(USER))
    done = answer(
        stage, challenge_of(stage, USER), app.code(now_s(stage)), PAGE, trust_device=True
    )
    cookie = done.cookies["pylon_trusted_device"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", cookie.value)
    assert (cookie.http_only, cookie.secure, cookie.path) == (True, True, "/")
    assert cookie.max_age == 30 * 86_400
    assert cookie.value not in repr(records(stage, "trusted_devices"))
    trusted = {"trusted_device": cookie.value}
    assert first_factor(stage, USER, cookies=trusted)["token"]
    [device] = stage.call("GET", "/api/auth/trusted-devices", token=token).json["devices"]
    assert set(device) == {"id", "label", "created_at", "expires_at"}
    assert device["created_at"].endswith("Z")
    stage.clock.advance(30 * 86_400)
    with pytest.raises(TotpRequired):
        first_factor(stage, USER, cookies=trusted)
    fresh = first_factor(stage, USER, code=app.code(now_s(stage)))["token"]
    assert stage.call("GET", "/api/auth/trusted-devices", token=fresh).json == {"devices": []}


def test_only_pages_of_trusted_origins_get_the_cookie(stage: ApiStage) -> None:
    app, _ = enroll(stage, stage.user(USER))
    done = answer(stage, challenge_of(stage, USER), app.code(now_s(stage)), trust_device=True)
    assert done.status_code == 200
    assert "pylon_trusted_device" not in done.cookies
    assert records(stage, "trusted_devices") == []


def test_devices_are_listed_and_revoked_by_their_owner_alone(stage: ApiStage) -> None:
    other = "b" * 40
    app, token = enroll(stage, stage.user(USER))
    for _ in range(2):
        answer(stage, challenge_of(stage, USER), app.code(now_s(stage)), PAGE, trust_device=True)
        stage.clock.advance(60)
    devices = stage.call("GET", "/api/auth/trusted-devices", token=token).json["devices"]
    assert len(devices) == 2
    stranger = stage.user(other)
    path = f"/api/auth/trusted-devices/{devices[0]['id']}"
    assert code_of(stage.call("DELETE", path, token=stranger)) == (404, "NOT_FOUND")
    assert stage.call("DELETE", "/api/auth/trusted-devices", token=stranger).json == {"revoked": 0}
    assert stage.call("DELETE", path, token=token).json == {"revoked": 1}
    assert code_of(stage.call("DELETE", path, token=token)) == (404, "NOT_FOUND")
    assert stage.call("DELETE", "/api/auth/trusted-devices", token=token).json == {"revoked": 1}


# --- Codes ---------------------------------------------------------------------------------


def test_backup_codes_have_no_ambiguous_letters_and_differ(stage: ApiStage) -> None:
    codes = totp.new_backup_codes(stage.identity.app.random)
    assert len(set(codes)) == 10
    assert all(re.fullmatch(r"[2-9A-HJKMNP-Z]{4}-[2-9A-HJKMNP-Z]{4}", code) for code in codes)


@pytest.mark.parametrize(("typed", "code"), [
    ("123456", "123456"), (" 123 456 ", "123456"), ("12345", None), ("1234567", None),
    ("١٢٣٤٥٦", None), ("abcdef", None), ("", None),
])
def test_codes_are_read_as_people_type_them(typed: str, code: str | None) -> None:
    assert totp.as_code(typed) == code


@pytest.mark.parametrize("typed", ["abcd-2345", "ABCD2345", " abcd 2345 "])
def test_dashes_and_case_of_a_backup_code_do_not_matter(typed: str) -> None:
    assert totp.as_backup_code(typed) == "ABCD2345"


def test_one_step_of_drift_is_accepted_and_no_more() -> None:
    app = Authenticator("JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP")
    now = 1_700_000_010
    for drift in (-1, 0, 1):
        assert totp.find_step(app.secret, app.code(now, drift), now) == now // 30 + drift
    for drift in (-2, 2):
        assert totp.find_step(app.secret, app.code(now, drift), now) is None
    last = now // 30
    assert totp.find_step(app.secret, app.code(now), now, last) is None
    assert totp.find_step(app.secret, app.code(now, 1), now, last) == last + 1


def test_a_forged_step_is_not_accepted_again(stage: ApiStage) -> None:
    """Two requests with one code: the second finds its step taken in the transaction."""
    app, _ = enroll(stage, stage.user(USER))
    challenge, code = challenge_of(stage, USER), app.code(now_s(stage))
    taken = SetRecords(
        "totp", [Condition("user_id", "=", USER)], {"last_step": now_s(stage) // 30 + 1}, 1
    )
    stage.identity.writer.submit(Transact([taken]))
    assert code_of(answer(stage, challenge, code)) == (401, "INVALID_TOTP_CODE")
