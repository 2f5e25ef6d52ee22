"""Another address for an account, and the way back, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pylon.storage.auth_ops import PutRecord
from tests.identity.test_magic_codes import code_of, rows, sign_in
from tests.identity.test_magic_links import FORM, cookie_of, form_of
from tests.support.api import ApiStage
from tests.support.outbox import take_mails, take_token

pytestmark = pytest.mark.stores
REQUEST = "/api/auth/email/change/request"
CONFIRM = "/api/auth/email/change/confirm"
REVERT = "/api/auth/email/change/revert"
OLD, NEW = "ann@example.com", "ann@new.example.com"


def ask(stage: ApiStage, token: str, new: str = NEW) -> str:
    """Ask for a change. Return the token of the mail to the new address."""
    answer = stage.call("POST", REQUEST, {"newEmail": new}, token)
    assert (answer.status_code, answer.json) == (200, {"sent": True})
    mails = take_mails(stage)
    by_kind = {mail.kind: mail for mail in mails}
    assert by_kind["EMAIL_CHANGE_REQUESTED"].to == OLD
    assert by_kind["EMAIL_CHANGE"].to == new
    return by_kind["EMAIL_CHANGE"].text.partition("token=")[2][:64]


def change(stage: ApiStage, token: str, new: str = NEW) -> dict[str, Any]:
    answer = stage.call("POST", CONFIRM, {"token": ask(stage, token, new)})
    assert answer.status_code == 200, answer.json
    body: dict[str, Any] = answer.json
    return body


def is_alive(stage: ApiStage, token: str) -> bool:
    stage.clock.advance(2)  # callers are remembered for a moment
    return bool(stage.call("GET", "/api/auth/me", token=token).json["user_id"])


def email_of(stage: ApiStage, token: str) -> str:
    return str(stage.call("GET", "/api/auth/session", token=token).json["user"]["email"])


def test_a_change_moves_the_account_and_ends_its_other_sessions(stage: ApiStage) -> None:
    first, second = sign_in(stage, OLD), sign_in(stage, OLD)
    body = change(stage, first["token"])
    assert body["changed"] is True and body["email"] == NEW
    assert body["user_id"] == first["user_id"]
    assert not is_alive(stage, first["token"]) and not is_alive(stage, second["token"])
    assert email_of(stage, body["token"]) == NEW
    assert [row["subject"] for row in rows(stage, "identities")] == [NEW]
    assert sign_in(stage, NEW)["user_id"] == first["user_id"]
    assert sign_in(stage, OLD)["user_id"] != first["user_id"]


def test_a_link_of_a_change_works_once_and_a_later_one_voids_it(stage: ApiStage) -> None:
    token = sign_in(stage, OLD)["token"]
    earlier = ask(stage, token, "first@new.example.com")
    later = ask(stage, token)
    assert code_of(stage.call("POST", CONFIRM, {"token": earlier})) == "INVALID_TOKEN"
    assert stage.call("POST", CONFIRM, {"token": later}).status_code == 200
    assert code_of(stage.call("POST", CONFIRM, {"token": later})) == "INVALID_TOKEN"


def test_a_taken_address_gets_the_same_answer_and_a_mail(stage: ApiStage) -> None:
    sign_in(stage, NEW)
    token = sign_in(stage, OLD)["token"]
    answer = stage.call("POST", REQUEST, {"newEmail": NEW}, token)
    assert (answer.status_code, answer.json) == (200, {"sent": True})
    mails = {mail.kind: mail.to for mail in take_mails(stage)}
    assert mails == {"ACCOUNT_EXISTS": NEW, "EMAIL_CHANGE_REQUESTED": OLD}


def test_an_address_that_was_taken_meanwhile_is_refused(stage: ApiStage) -> None:
    token = sign_in(stage, OLD)["token"]
    link = ask(stage, token)
    sign_in(stage, NEW)
    answer = stage.call("POST", CONFIRM, {"token": link})
    assert (answer.status_code, code_of(answer)) == (409, "EMAIL_TAKEN")
    assert email_of(stage, token) == OLD and is_alive(stage, token)


def test_the_owner_takes_a_change_back(stage: ApiStage) -> None:
    first = sign_in(stage, OLD)
    thief = change(stage, first["token"])
    revert = take_token(stage, "EMAIL_CHANGED", OLD)
    assert stage.call("GET", f"/email-change/revert?token={revert}").status_code == 200
    # The thief moves on, and asks for links of their own.
    stage.clock.advance(100)
    other = stage.call("POST", REQUEST, {"newEmail": "far@away.example.com"}, thief["token"])
    assert other.status_code == 200
    link = take_token(stage, "EMAIL_CHANGE")
    thief = stage.call("POST", CONFIRM, {"token": link}).json
    back = take_token(stage, "EMAIL_CHANGED")
    answer = stage.call("POST", REVERT, {"token": revert})
    assert answer.status_code == 200, answer.json
    assert answer.json["reverted"] is True and answer.json["email"] == OLD
    assert answer.json["user_id"] == first["user_id"]
    assert not is_alive(stage, thief["token"])
    assert email_of(stage, answer.json["token"]) == OLD
    assert [row["subject"] for row in rows(stage, "identities")] == [OLD]
    assert rows(stage, "passwords") == []
    assert code_of(stage.call("POST", REVERT, {"token": back})) == "INVALID_TOKEN"
    assert code_of(stage.call("POST", REVERT, {"token": revert})) == "INVALID_TOKEN"


def test_a_change_is_taken_back_within_72_hours(stage: ApiStage) -> None:
    change(stage, sign_in(stage, OLD)["token"])
    revert = take_token(stage, "EMAIL_CHANGED", OLD)
    stage.clock.advance(72 * 3600 + 1)
    assert code_of(stage.call("POST", REVERT, {"token": revert})) == "INVALID_TOKEN"


def test_tokens_that_the_account_had_before_are_dead(stage: ApiStage) -> None:
    token = sign_in(stage, OLD)["token"]
    stage.call("POST", "/api/auth/magic-link/send", {"email": OLD})
    magic = take_token(stage, "MAGIC_LINK")
    change(stage, token)
    answer = stage.call("POST", "/api/auth/magic-link/verify", {"token": magic})
    assert code_of(answer) == "INVALID_TOKEN"


def test_the_page_of_a_change_does_it_by_its_button(stage: ApiStage) -> None:
    first = sign_in(stage, OLD)
    link = ask(stage, first["token"])
    page = stage.call("GET", f"/email-change/confirm?token={link}")
    assert page.status_code == 200 and NEW in page.text and is_alive(stage, first["token"])
    refused = stage.call("POST", CONFIRM, form_of(page.text), headers=FORM)
    assert refused.status_code == 403, "without the cookie of the page"
    answer = stage.call(
        "POST", CONFIRM, form_of(page.text), headers={**FORM, "Cookie": cookie_of(page)}
    )
    assert answer.status_code == 302 and "members_session=" in answer.headers["set-cookie"]
    assert not is_alive(stage, first["token"])
    assert stage.call("GET", f"/email-change/confirm?token={link}").status_code == 401
    assert stage.call("GET", "/email-change/confirm").status_code == 400


def test_a_request_needs_a_fresh_sign_in(stage: ApiStage) -> None:
    token = sign_in(stage, OLD)["token"]
    stage.clock.advance(601)
    answer = stage.call("POST", REQUEST, {"newEmail": NEW}, token)
    assert (answer.status_code, code_of(answer)) == (403, "REAUTH_REQUIRED")
    assert take_mails(stage) == []


@pytest.mark.parametrize(("body", "status", "code"), [
    ({}, 400, "MISSING_EMAIL"), ({"newEmail": "nope"}, 400, "INVALID_EMAIL"),
    ({"newEmail": "a@b.com\nBcc: c@d.com"}, 400, "INVALID_EMAIL"),
    ({"newEmail": 5}, 400, "INVALID_DATA"),
])
def test_bad_addresses_are_refused(
    stage: ApiStage, body: dict[str, Any], status: int, code: str
) -> None:
    token = sign_in(stage, OLD)["token"]
    answer = stage.call("POST", REQUEST, body, token)
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert stage.call("POST", REQUEST, {"newEmail": NEW}).status_code == 401


def test_a_row_of_the_app_without_an_identity_can_change_its_address(stage: ApiStage) -> None:
    stage.call("POST", "/api/entities/User", {"email": OLD}, stage.user("seed"))
    row = stage.identity.store.point(lambda reader: reader.lookup("User", "email", OLD))
    assert row is not None
    body = change(stage, stage.user(json.loads(row)["id"]))
    assert email_of(stage, body["token"]) == NEW
    assert [each["subject"] for each in rows(stage, "identities")] == [NEW]
    assert len(rows(stage, "users")) == 1


def test_the_rest_of_a_guests_rows_is_moved_after_a_change_too(stage: ApiStage) -> None:
    first = sign_in(stage, OLD)
    stage.writer.submit(PutRecord("tokens", {
        "hash": "carry_over:guest", "purpose": "carry_over", "user_id": first["user_id"],
        "attempts": 0, "created_at": 1, "expires_at": 2**40,
    }))
    change(stage, first["token"])
    assert len(rows(stage, "tokens", purpose="carry_over")) == 1
