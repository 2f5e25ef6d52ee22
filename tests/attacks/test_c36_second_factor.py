"""C36: ways around the second factor (identity.md §5, attacks 6, 36, 37 and 38).

A code, a step, a backup code and a challenge count once, on all routes together, also for two
requests at once. A browser is trusted for its user alone. Nothing but the end of a sign-in makes a
session from a first factor.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.auth.keys import hash_token
from pylon.auth.transactions import carry_out
from pylon.errors import TotpRequired
from pylon.mail.message import decode
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from tests.support import stores
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
from workers.identity.second_factor import drop_factors
from workers.identity.trusted_devices import drop_devices

pytestmark = pytest.mark.stores
USER, OTHER = "a" * 40, "b" * 40
METHODS = ["password", "magic_code", "magic_link", "reset", "oauth:google", "invite"]
PURPOSES = ["magic_code", "password_reset", "totp_pending", "email_change"]
WORKERS = Path(__file__).parent.parent.parent / "workers" / "identity"


@pytest.fixture
def stage(tested_store: stores.TestStore, tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app()) as made:
        put_user(made, USER)
        put_user(made, OTHER)
        yield made


def backup_codes(stage: ApiStage, token: str) -> list[str]:
    made = stage.call("POST", "/api/auth/totp/backup-codes/regenerate", token=token)
    assert made.status_code == 200, made.text
    codes: list[str] = made.json["codes"]
    return codes


def sessions(stage: ApiStage, user_id: str = USER) -> int:
    """How many sign-ins by password have ended in a session."""
    where = [Condition("user_id", "=", user_id)]
    found = stage.identity.store.point(lambda reader: reader.records("sessions", where))
    return sum(str(record["methods"]).startswith("password") for record in found)


def code_of(answered: Any) -> str:
    found: str = answered.json["error"]["code"]
    return found


class AtOnce:
    """A writer that lets another request come and go before the transaction with a session."""

    def __init__(self, stage: ApiStage, other: Callable[[], Any]) -> None:
        self._inner = stage.identity.writer
        self._other: Callable[[], Any] | None = other
        self.result: Any = None

    def submit(self, op: Any, *args: Any, **more: Any) -> Any:
        if self._other is not None and "PutSession" in repr(op):
            other, self._other = self._other, None
            self.result = other()
        return self._inner.submit(op, *args, **more)


def both_at_once(
    stage: ApiStage, one: Callable[[], Any], other: Callable[[], Any]
) -> tuple[Any, Any]:
    """The results of two requests, of which each has read before the other has written."""
    before = stage.identity.writer
    writer = AtOnce(stage, other)
    object.__setattr__(stage.identity, "writer", writer)
    try:
        return one(), writer.result
    finally:
        object.__setattr__(stage.identity, "writer", before)


# --- 6: once -------------------------------------------------------------------------------


def test_a_challenge_gives_one_session(stage: ApiStage) -> None:
    app, _ = enroll(stage, stage.user(USER))
    challenge = challenge_of(stage, USER)
    assert answer(stage, challenge, app.code(now_s(stage))).status_code == 200
    stage.clock.advance(60)
    again = answer(stage, challenge, app.code(now_s(stage)))
    assert (again.status_code, code_of(again)) == (401, "INVALID_CHALLENGE")
    assert sessions(stage) == 1


def test_a_code_passes_one_challenge_and_an_older_one_none(stage: ApiStage) -> None:
    app, _ = enroll(stage, stage.user(USER))
    at = now_s(stage)
    assert answer(stage, challenge_of(stage, USER), app.code(at)).status_code == 200
    for drift in (0, -1):
        again = answer(stage, challenge_of(stage, USER), app.code(at, drift))
        assert code_of(again) == "INVALID_TOTP_CODE"
    assert answer(stage, challenge_of(stage, USER), app.code(at, 1)).status_code == 200


@pytest.mark.parametrize("route", ["verify", "disable", "enroll"])
def test_a_code_that_was_used_at_sign_in_is_used_on_every_route(
    stage: ApiStage, route: str
) -> None:
    app, _ = enroll(stage, stage.user(USER))
    code = app.code(now_s(stage))
    token = answer(stage, challenge_of(stage, USER), code).json["token"]
    again = stage.call("POST", f"/api/auth/totp/{route}", {"code": code}, token)
    assert (again.status_code, code_of(again)) == (401, "INVALID_TOTP_CODE")


@pytest.mark.parametrize("has_one_challenge", [True, False])
@pytest.mark.parametrize("is_backup", [True, False])
def test_two_requests_at_once_with_one_code_give_one_session(
    stage: ApiStage, has_one_challenge: bool, is_backup: bool
) -> None:
    app, token = enroll(stage, stage.user(USER))
    code = backup_codes(stage, token)[0] if is_backup else app.code(now_s(stage))
    one = challenge_of(stage, USER)
    other = one if has_one_challenge else challenge_of(stage, USER)
    results = both_at_once(
        stage, lambda: answer(stage, one, code), lambda: answer(stage, other, code)
    )
    assert sorted(result.status_code for result in results) == [200, 401]
    refused = next(result for result in results if result.status_code == 401)
    assert code_of(refused) == ("INVALID_CHALLENGE" if has_one_challenge else "INVALID_TOTP_CODE")


@pytest.mark.parametrize("drifts", [(0, 1), (1, 0)])
def test_two_codes_at_once_for_one_challenge_give_one_session(
    stage: ApiStage, drifts: tuple[int, int]
) -> None:
    app, _ = enroll(stage, stage.user(USER))
    challenge, at = challenge_of(stage, USER), now_s(stage)
    results = both_at_once(
        stage, lambda: answer(stage, challenge, app.code(at, drifts[0])),
        lambda: answer(stage, challenge, app.code(at, drifts[1])),
    )
    assert sorted(result.status_code for result in results) == [200, 401]
    assert sessions(stage) == 1


def test_an_attempt_is_counted_before_the_code_is_compared(
    stage: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that dies at the comparison, or many requests at once, have free attempts."""
    enroll(stage, stage.user(USER))
    challenge, counted = challenge_of(stage, USER), []

    def find_step(*_: Any) -> None:
        where = [Condition("hash", "=", hash_token(challenge))]
        [record] = stage.identity.store.point(lambda reader: reader.records("tokens", where))
        counted.append(record["attempts"])

    monkeypatch.setattr(totp, "find_step", find_step)
    for _ in range(limits.CHALLENGE_ATTEMPTS):
        assert code_of(answer(stage, challenge, "123456")) == "INVALID_TOTP_CODE"
    assert code_of(answer(stage, challenge, "123456")) == "INVALID_CHALLENGE"
    assert counted == [1, 2, 3, 4, 5]


# --- 36: never a session without it --------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_first_factor_leads_to_the_question(stage: ApiStage, method: str) -> None:
    enroll(stage, stage.user(USER))
    with pytest.raises(TotpRequired):
        first_factor(stage, USER, method=method)
    assert sessions(stage) == 0


def test_only_the_end_of_a_sign_in_makes_a_session_of_a_factor() -> None:
    """A new flow with `issuer.issue` would go round the second factor. The change of a password
    replaces the session of its caller."""
    found = set()
    for path in WORKERS.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                found |= {
                    (path.name, function.name) for node in ast.walk(function)
                    if isinstance(node, ast.Attribute) and node.attr == "issue"
                }
    assert found == {("sign_in.py", "_store_session"), ("passwords.py", "change")}


def test_a_challenge_is_no_token(stage: ApiStage) -> None:
    enroll(stage, stage.user(USER))
    challenge = challenge_of(stage, USER)
    assert who_is(stage, challenge) is None
    assert stage.call("POST", "/api/auth/refresh", token=challenge).status_code == 401
    cookie = {"Cookie": f"members_session={challenge}", **PAGE}
    assert stage.call("GET", "/api/auth/me", headers=cookie).json["user_id"] is None


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_token_of_another_purpose_is_no_challenge(stage: ApiStage, purpose: str) -> None:
    app, _ = enroll(stage, stage.user(USER))
    carry_out(stage.identity.writer.submit, [PutRecord("tokens", {
        "hash": hash_token("mfa_other"), "purpose": purpose, "user_id": USER, "email_key": None,
        "data": '{"method":"password","extra":{}}', "attempts": 0, "created_at": now_s(stage),
        "expires_at": now_s(stage) + 300, "used_at": None,
    })])
    assert code_of(answer(stage, "mfa_other", app.code(now_s(stage)))) == "INVALID_CHALLENGE"


def test_the_code_of_another_account_answers_no_challenge(stage: ApiStage) -> None:
    enroll(stage, stage.user(USER))
    thief, token = enroll(stage, stage.user(OTHER))
    for code in (thief.code(now_s(stage)), backup_codes(stage, token)[0]):
        assert code_of(answer(stage, challenge_of(stage, USER), code)) == "INVALID_TOTP_CODE"


def test_a_thief_with_a_session_cannot_replace_or_end_the_authenticator(stage: ApiStage) -> None:
    app, token = enroll(stage, stage.user(USER))
    made = stage.call("POST", "/api/auth/totp/enroll", {}, token)
    assert code_of(made) == "INVALID_TOTP_CODE"
    for code in ("000000", "ABCD-2345"):
        done = stage.call("POST", "/api/auth/totp/disable", {"code": code}, token)
        assert code_of(done) == "INVALID_TOTP_CODE"
    stage.clock.advance(3_600)
    for route, body in (
        ("disable", {"code": app.code(now_s(stage))}), ("backup-codes/regenerate", None)
    ):
        done = stage.call("POST", f"/api/auth/totp/{route}", body, token)
        assert (done.status_code, code_of(done)) == (403, "REAUTH_REQUIRED")


def test_a_secret_that_waits_asks_nobody_and_lets_nobody_in(stage: ApiStage) -> None:
    token = stage.user(USER)
    waiting = Authenticator(stage.call("POST", "/api/auth/totp/enroll", {}, token).json["secret"])
    assert first_factor(stage, USER)["token"]
    other = stage.user(OTHER)  # who has none cannot verify with that of somebody else
    done = stage.call(
        "POST", "/api/auth/totp/verify", {"code": waiting.code(now_s(stage))}, other
    )
    assert code_of(done) == "TOTP_NOT_ENROLLED"


def test_guests_and_strangers_have_no_second_factor(stage: ApiStage) -> None:
    for token in (None, stage.guest()):
        for route in ("enroll", "verify", "disable", "backup-codes/regenerate"):
            body = {"code": "123456"}
            done = stage.call("POST", f"/api/auth/totp/{route}", body, token)
            assert done.status_code == 401, route


def test_the_authenticator_of_who_registered_in_advance_keeps_nobody_out(
    stage: ApiStage,
) -> None:
    """The proof of a mailbox drops it with the other credentials, and asks for no code of it."""
    thief, _ = enroll(stage, stage.user(USER))
    challenge = challenge_of(stage, USER)
    assert first_factor(stage, USER, drop_factors(USER))["token"]
    assert first_factor(stage, USER)["token"]
    assert code_of(answer(stage, challenge, thief.code(now_s(stage)))) == "INVALID_CHALLENGE"
    assert sessions(stage) == 2


# --- over HTTP -----------------------------------------------------------------------------

ADDRESS, PASSWORD = "ann@example.com", "four random words here"


def register(stage: ApiStage) -> tuple[str, str]:
    """The token and the user id of a new account."""
    body = {"email": ADDRESS, "password": PASSWORD}
    made = stage.call("POST", "/api/auth/password/register", body)
    assert made.status_code == 200, made.text
    return made.json["token"], made.json["user_id"]


def login(stage: ApiStage, headers: dict[str, str] | None = None, **more: str) -> Any:
    body = {"email": ADDRESS, "password": PASSWORD, **more}
    return stage.call("POST", "/api/auth/password/login", body, headers=headers)


def test_a_password_alone_signs_nobody_in(stage: ApiStage) -> None:
    token, user_id = register(stage)
    app, token = enroll(stage, token)
    asked = login(stage, PAGE)
    assert (asked.status_code, code_of(asked)) == (401, "TOTP_REQUIRED")
    assert "token" not in asked.json and not asked.cookies
    assert code_of(login(stage, totp="000000")) == "INVALID_TOTP_CODE"
    done = answer(stage, asked.json["error"]["challenge"], app.code(now_s(stage)), PAGE)
    assert who_is(stage, done.json["token"]) == user_id
    stage.clock.advance(60)
    both = login(stage, totp=app.code(now_s(stage)))
    assert who_is(stage, both.json["token"]) == user_id
    rotated = stage.call("POST", "/api/auth/refresh", token=both.json["token"])
    assert who_is(stage, rotated.json["token"]) == user_id


def test_a_reset_asks_for_the_code_and_forgets_trusted_devices(stage: ApiStage) -> None:
    token, user_id = register(stage)
    proved = SetRecords("identities", [Condition("user_id", "=", user_id)], {"verified_at": 1})
    carry_out(stage.identity.writer.submit, [proved])
    app, token = enroll(stage, token)
    asked = login(stage).json["error"]["challenge"]
    done = answer(stage, asked, app.code(now_s(stage)), PAGE, trust_device=True)
    device = done.cookies["pylon_trusted_device"].value
    trusted = {"Cookie": f"pylon_trusted_device={device}", **PAGE}
    assert login(stage, trusted).status_code == 200
    waiting = login(stage).json["error"]["challenge"]
    stage.call("POST", "/api/auth/password/reset/request", {"email": ADDRESS})
    mails = stage.identity.store.point(lambda reader: reader.records("outbox", []))
    texts = [
        decode(stage.identity.keys.open("outbox", "sealed", str(r["id"]), str(r["sealed"]))).text
        for r in mails
    ]
    [link] = re.findall(r"/reset-password[?]token=([0-9a-f]{64})", "".join(texts))
    reset = stage.call(
        "POST", "/api/auth/password/reset/complete", {"token": link, "newPassword": PASSWORD}
    )
    assert (reset.status_code, code_of(reset)) == (401, "TOTP_REQUIRED")
    assert code_of(login(stage, trusted)) == "TOTP_REQUIRED"
    # A sign-in that had begun with the password before ends too.
    stage.clock.advance(60)
    assert code_of(answer(stage, waiting, app.code(now_s(stage)))) == "INVALID_CHALLENGE"
    done = answer(stage, reset.json["error"]["challenge"], app.code(now_s(stage)))
    assert done.json["reset"] is True
    assert who_is(stage, done.json["token"]) == user_id


# --- 37: trusted devices -------------------------------------------------------------------


def trusted(stage: ApiStage, app: Authenticator, user_id: str = USER) -> dict[str, str]:
    """The cookies of a browser that this user trusts from now on."""
    done = answer(
        stage, challenge_of(stage, user_id), app.code(now_s(stage)), PAGE, trust_device=True
    )
    stage.clock.advance(60)
    return {"trusted_device": done.cookies["pylon_trusted_device"].value}


def test_the_trusted_device_of_another_user_is_asked(stage: ApiStage) -> None:
    enroll(stage, stage.user(USER))
    thief, _ = enroll(stage, stage.user(OTHER))
    cookies = trusted(stage, thief, OTHER)
    assert first_factor(stage, OTHER, cookies=cookies)["token"]
    with pytest.raises(TotpRequired):
        first_factor(stage, USER, cookies=cookies)


@pytest.mark.parametrize("value", ["", "x", "x" * 43, "x" * 10_000])
def test_a_made_up_device_is_asked(stage: ApiStage, value: str) -> None:
    app, _ = enroll(stage, stage.user(USER))
    trusted(stage, app)
    with pytest.raises(TotpRequired):
        first_factor(stage, USER, cookies={"trusted_device": value})


def test_a_device_is_asked_again_after_what_ends_its_trust(stage: ApiStage) -> None:
    app, token = enroll(stage, stage.user(USER))
    cookies = trusted(stage, app)
    assert first_factor(stage, USER, cookies=cookies)["token"]
    carry_out(stage.identity.writer.submit, [drop_devices(USER)])  # a change or a reset
    with pytest.raises(TotpRequired):
        first_factor(stage, USER, cookies=cookies)
    cookies = trusted(stage, app)
    done = stage.call("POST", "/api/auth/totp/disable", {"code": app.code(now_s(stage))}, token)
    assert done.status_code == 200, done.text
    assert stage.call("GET", "/api/auth/trusted-devices", token=token).json == {"devices": []}
    stage.clock.advance(60)
    app, _ = enroll(stage, first_factor(stage, USER)["token"])
    with pytest.raises(TotpRequired):
        first_factor(stage, USER, cookies=cookies)


# --- 38: backup codes ----------------------------------------------------------------------


def test_a_backup_code_counts_once_and_any_case_will_do(stage: ApiStage) -> None:
    _, token = enroll(stage, stage.user(USER))
    codes = backup_codes(stage, token)
    typed = codes[0].lower().replace("-", " ")
    assert answer(stage, challenge_of(stage, USER), typed).status_code == 200
    for again in (codes[0], typed):
        assert code_of(answer(stage, challenge_of(stage, USER), again)) == "INVALID_TOTP_CODE"
    assert answer(stage, challenge_of(stage, USER), codes[1]).status_code == 200


def test_new_backup_codes_end_the_old_ones(stage: ApiStage) -> None:
    _, token = enroll(stage, stage.user(USER))
    old, new = backup_codes(stage, token), backup_codes(stage, token)
    assert code_of(answer(stage, challenge_of(stage, USER), old[0])) == "INVALID_TOTP_CODE"
    assert answer(stage, challenge_of(stage, USER), new[0]).status_code == 200


def test_guesses_of_backup_codes_end_the_challenge(stage: ApiStage) -> None:
    _, token = enroll(stage, stage.user(USER))
    codes = backup_codes(stage, token)
    challenge = challenge_of(stage, USER)
    for _ in range(limits.CHALLENGE_ATTEMPTS):
        assert code_of(answer(stage, challenge, "ABCD-2345")) == "INVALID_TOTP_CODE"
    assert code_of(answer(stage, challenge, codes[0])) == "INVALID_CHALLENGE"


def test_a_new_authenticator_ends_the_backup_codes_of_the_one_before(stage: ApiStage) -> None:
    app, token = enroll(stage, stage.user(USER))
    codes = backup_codes(stage, token)
    made = stage.call("POST", "/api/auth/totp/enroll", {"code": app.code(now_s(stage))}, token)
    stage.clock.advance(60)
    new = Authenticator(made.json["secret"])
    done = stage.call("POST", "/api/auth/totp/verify", {"code": new.code(now_s(stage))}, token)
    assert done.json["enrolled"]
    stage.clock.advance(60)
    assert code_of(answer(stage, challenge_of(stage, USER), codes[0])) == "INVALID_TOTP_CODE"


def test_regenerating_meanwhile_ends_the_code_that_is_being_used(stage: ApiStage) -> None:
    _, token = enroll(stage, stage.user(USER))
    code = backup_codes(stage, token)[0]
    challenge = challenge_of(stage, USER)
    used, _ = both_at_once(
        stage, lambda: answer(stage, challenge, code), lambda: backup_codes(stage, token)
    )
    assert code_of(used) == "INVALID_TOTP_CODE"
    assert sessions(stage) == 0
