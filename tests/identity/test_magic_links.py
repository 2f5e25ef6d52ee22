"""Sign-in by a link, over HTTP: as a client, in the browser that asked, and in another one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.api import ApiStage
from tests.support.outbox import take_mails, take_token

pytestmark = pytest.mark.stores
ORIGIN = {"Origin": "http://localhost:3000"}
SEND, VERIFY = "/api/auth/magic-link/send", "/api/auth/magic-link/verify"
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Origin": "null"}


def send(stage: ApiStage, email: str = "ann@example.com", **more: Any) -> str:
    answer = stage.call("POST", SEND, {"email": email, **more})
    assert answer.status_code == 200, answer.json
    return take_token(stage, "MAGIC_LINK", email)


def code_of(answer: Any) -> str:
    return str(answer.json["error"]["code"])


def cookie_of(answer: Any) -> str:
    """Return the cookie `members_ml` of an answer, as a browser sends it."""
    found = re.search(r"members_ml=[0-9a-f]+", answer.headers["set-cookie"])
    assert found is not None
    return found[0]


def form_of(page: str) -> bytes:
    """Return the form that the button of a page sends."""
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
    return "&".join(f"{name}={value}" for name, value in fields.items()).encode()


def opened(stage: ApiStage, token: str, **headers: str) -> Any:
    return stage.call("GET", f"{VERIFY}?token={token}", headers=headers)


def pressed(stage: ApiStage, page: Any, cookie: str) -> Any:
    """Press the button of a page."""
    return stage.call("POST", VERIFY, form_of(page.text), headers={**FORM, "Cookie": cookie})


def test_a_client_signs_in_by_the_token(stage: ApiStage) -> None:
    token = send(stage)
    answer = stage.call("POST", VERIFY, {"token": token})
    assert answer.status_code == 200 and set(answer.json) == {"token", "user_id", "expires_at"}
    again = stage.call("POST", VERIFY, {"token": token})
    assert (again.status_code, code_of(again)) == (401, "INVALID_TOKEN")


def test_opening_a_link_uses_up_nothing(stage: ApiStage) -> None:
    token = send(stage)
    for method in ("HEAD", "GET", "GET", "HEAD"):
        answer = stage.call(method, f"{VERIFY}?token={token}")
        assert answer.status_code == 200
        assert "members_session" not in answer.headers.get("set-cookie", "")
    page = opened(stage, token)
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text and "default-src 'none'" in page.headers[
        "content-security-policy"]
    assert "form-action 'self'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    answer = pressed(stage, page, cookie_of(page))
    assert answer.status_code == 302 and answer.headers["location"] == "/"
    assert "members_session=" in answer.headers["set-cookie"]
    assert pressed(stage, page, cookie_of(page)).status_code == 401, "once"


def test_the_browser_that_asked_is_signed_in_at_once(stage: ApiStage) -> None:
    asked = stage.call(
        "POST", SEND, {"email": "ann@example.com", "callback": "http://localhost:3000/home"},
        headers=ORIGIN,
    )
    token = take_token(stage, "MAGIC_LINK")
    answer = opened(stage, token, Cookie=cookie_of(asked))
    assert (answer.status_code, answer.headers["location"]) == (302, "http://localhost:3000/home")
    assert "members_session=" in answer.headers["set-cookie"]
    assert opened(stage, token, Cookie=cookie_of(asked)).status_code == 401


def test_another_browser_gets_the_page(stage: ApiStage) -> None:
    stage.call("POST", SEND, {"email": "ann@example.com"}, headers=ORIGIN)
    token = take_token(stage, "MAGIC_LINK")
    answer = opened(stage, token, Cookie="members_ml=" + "0" * 64)
    assert answer.status_code == 200 and "<form" in answer.text


def test_a_form_of_another_site_is_refused(stage: ApiStage) -> None:
    """Else a stranger's link in a hidden form would sign its reader in as the stranger."""
    token = send(stage)
    for cookie in ("", "members_ml=" + "0" * 64):
        for nonce in ("", "&nonce=", "&nonce=" + "1" * 64):
            answer = stage.call(
                "POST", VERIFY, f"token={token}{nonce}".encode(),
                headers={**FORM, "Cookie": cookie},
            )
            assert answer.status_code == 403
            assert "members_session" not in answer.headers.get("set-cookie", "")
    assert stage.call("POST", VERIFY, {"token": token}).status_code == 200


def test_a_callback_is_a_page_of_ours(stage: ApiStage) -> None:
    for callback in ("https://evil.example", "//evil.example", "/\\evil.example",
                     "javascript:alert(1)", "https://localhost:3000@evil.example"):
        answer = stage.call("POST", SEND, {"email": "ann@example.com", "callback": callback})
        assert (answer.status_code, code_of(answer)) == (403, "UNTRUSTED_REDIRECT")
    assert take_mails(stage) == []
    token = send(stage, callback="/welcome?a=1")
    page = opened(stage, token)
    assert pressed(stage, page, cookie_of(page)).headers["location"] == "/welcome?a=1"
    token = send(stage, callback="http://localhost:3000/home")
    page = opened(stage, token)
    policy = page.headers["content-security-policy"]
    assert policy.endswith("form-action 'self' http://localhost:3000")  # where it redirects to
    answer = pressed(stage, page, cookie_of(page))
    assert answer.headers["location"] == "http://localhost:3000/home"


def test_a_link_expires_after_a_quarter_of_an_hour(stage: ApiStage) -> None:
    token = send(stage)
    stage.clock.advance(901)
    assert opened(stage, token).status_code == 401
    assert code_of(stage.call("POST", VERIFY, {"token": token})) == "INVALID_TOKEN"


def test_requests_without_a_token_are_told_so(stage: ApiStage) -> None:
    assert stage.call("GET", VERIFY).status_code == 400
    assert code_of(stage.call("POST", VERIFY, {})) == "MISSING_TOKEN"
    assert code_of(stage.call("POST", VERIFY, {"token": "x"})) == "INVALID_TOKEN"


def test_a_page_escapes_what_it_shows(stage: ApiStage) -> None:
    token = send(stage, "a'&b@example.com")
    page = opened(stage, token).text
    assert "a&#x27;&amp;b@example.com" in page
    assert "<script" not in opened(stage, "%3Cscript%3E").text


def test_a_link_is_in_no_table(stage: ApiStage) -> None:
    stage.call("POST", SEND, {"email": "ann@example.com"})
    stored = [
        str(row) for table in ("tokens", "outbox", "audit")
        for row in stage.identity.store.point(
            lambda reader, table=table: reader.records(table, [])
        )
    ]
    token = take_token(stage, "MAGIC_LINK")
    assert not any(token in text for text in stored)
