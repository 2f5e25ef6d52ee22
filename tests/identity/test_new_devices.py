"""A sign-in from a device that the user has not used before sends them a notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_mails

pytestmark = pytest.mark.stores

ADA = {"email": "ada@example.com", "password": "four random words here"}
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36"
PAGE = {"Origin": "http://localhost:3000", "User-Agent": CHROME, "Content-Type": "application/json"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app()) as made:
        yield made


def notices(stage: ApiStage) -> list[str]:
    """The texts of the notices since the last call."""
    return [mail.text for mail in take_mails(stage) if mail.kind == "NEW_DEVICE"]


def sign_in(stage: ApiStage, headers: dict[str, str] | None = None) -> Any:
    answer = stage.call("POST", "/api/auth/password/login", ADA, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_browser_that_the_user_has_not_used_is_told_of(stage: ApiStage) -> None:
    made = stage.call("POST", "/api/auth/password/register", ADA, headers=PAGE)
    assert notices(stage) == [], "the first sign-in is the user's own"
    device = made.cookies["members_dev"].value
    sign_in(stage, {**PAGE, "Cookie": f"members_dev={device}"})
    assert notices(stage) == [], "the browser is known"
    sign_in(stage, PAGE)
    [text] = notices(stage)
    assert "ada@example.com" in text and "Chrome on Linux" in text and " UTC" in text
    sign_in(stage, {**PAGE, "Cookie": f"members_dev={'0' * 64}"})
    assert len(notices(stage)) == 1


def test_a_client_without_cookies_is_told_of_once(stage: ApiStage) -> None:
    stage.call("POST", "/api/auth/password/register", ADA, headers=PAGE)
    token = sign_in(stage).json["token"]
    [text] = notices(stage)
    assert "an app or a script" in text
    sign_in(stage)
    assert notices(stage) == [], "the user has a session of such a client"
    stage.call("DELETE", "/api/auth/sessions", token=token)
    sign_in(stage)
    assert len(notices(stage)) == 1


def test_a_code_of_a_mail_needs_no_notice_to_the_same_mailbox(stage: ApiStage) -> None:
    stage.call("POST", "/api/auth/password/register", ADA, headers=PAGE)
    stage.call("POST", "/api/auth/magic/send", {"email": ADA["email"]})
    [mail] = [mail for mail in take_mails(stage) if mail.kind == "MAGIC_CODE"]
    body = {"email": ADA["email"], "code": mail.subject[-6:]}
    assert stage.call("POST", "/api/auth/magic/verify", body, headers=PAGE).status_code == 200
    assert notices(stage) == []


def test_a_wrong_password_sends_no_notice(stage: ApiStage) -> None:
    stage.call("POST", "/api/auth/password/register", ADA, headers=PAGE)
    wrong = {**ADA, "password": "another password"}
    assert stage.call("POST", "/api/auth/password/login", wrong).status_code == 401
    assert notices(stage) == []


def test_links_of_mails_lead_to_the_pages_of_the_app(tmp_path: Path) -> None:
    app = sign_in_app()
    app["auth"]["urls"] = {
        "reset": "https://app.example.com/new-password?lang=en", "magic_link": "/welcome",
    }
    environ = {"PYLON_PUBLIC_URL": "https://api.example.com/"}
    with serve_api(tmp_path, app, environ) as stage:
        token = stage.call("POST", "/api/auth/password/register", ADA).json["token"]
        stage.call("POST", "/api/auth/password/reset/request", {"email": ADA["email"]})
        stage.clock.advance(61)
        stage.call("POST", "/api/auth/magic-link/send", {"email": ADA["email"]})
        change = {"newEmail": "eve@example.com"}
        stage.call("POST", "/api/auth/email/change/request", change, token)
        text_by_kind = {mail.kind: mail.text for mail in take_mails(stage)}
        for kind, begin in (
            ("PASSWORD_RESET", "https://app.example.com/new-password?lang=en&token="),
            ("MAGIC_LINK", "https://api.example.com/welcome?token="),
            ("EMAIL_CHANGE", "https://api.example.com/email-change/confirm?token="),
        ):
            assert begin in text_by_kind[kind]
