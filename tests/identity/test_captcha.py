"""Captchas (PYLON_CAPTCHA_PROVIDER), against a service of the test; and disposable addresses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import config as settings
from pylon.auth.disposable_domains import DisposableDomains, read_domains
from pylon.auth.email_address import parse_email
from pylon.errors import DisposableEmail, StartRefused
from pylon.limits import CAPTCHA_CHARS
from tests.support.api import ApiStage, serve_api
from tests.support.browser import Browser
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_code, take_mails
from tests.support.server import PylonServer
from tests.support.siteverify import SECRET, Siteverify, serve_captchas

REGISTER = "/api/auth/password/register"
ADA = {"email": "ada@example.com", "password": "correct horse battery"}


@pytest.fixture
def service() -> Iterator[Siteverify]:
    with serve_captchas() as made:
        yield made


@pytest.fixture
def guarded(tmp_path: Path, service: Siteverify) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app(), service.environ()) as made:
        yield made


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["error"]["code"]


@pytest.mark.stores
@pytest.mark.parametrize(("path", "body"), [
    (REGISTER, ADA), ("/api/auth/magic/send", {"email": "eve@example.com"}),
    ("/api/auth/magic-link/send", {"email": "eve@example.com"}),
    ("/api/auth/password/reset/request", {"email": "eve@example.com"}),
])
def test_what_anybody_may_ask_for_needs_a_captcha_that_counts_once(
    guarded: ApiStage, service: Siteverify, path: str, body: dict[str, str]
) -> None:
    assert code_of(guarded.call("POST", path, body)) == (400, "CAPTCHA_REQUIRED")
    for wrong in ("made up", "x" * (CAPTCHA_CHARS + 1)):
        assert code_of(guarded.call("POST", path, {**body, "captcha": wrong})) == (
            403, "CAPTCHA_FAILED"
        )
    assert not take_mails(guarded), "nothing was sent"
    token = service.token()
    assert guarded.call("POST", path, {**body, "captcha": token}).status_code == 200
    again = guarded.call("POST", path, {**body, "email": "b@example.com", "captcha": token})
    assert code_of(again) == (403, "CAPTCHA_FAILED")
    assert service.asked[-1] == {"secret": SECRET, "response": token, "remoteip": "127.0.0.1"}


@pytest.mark.stores
def test_a_sign_in_needs_none(guarded: ApiStage, service: Siteverify) -> None:
    body = {**ADA, "captcha": service.token()}
    assert guarded.call("POST", REGISTER, body).status_code == 200
    assert guarded.call("POST", "/api/auth/password/login", ADA).status_code == 200


@pytest.mark.parametrize(("status", "body"), [
    (500, b"<p>busy</p>"), (200, b"no JSON"), (200, b"[]"), (302, b""),
    (200, b'{"success": false, "error-codes": ["invalid-input-secret"]}'),
])
def test_a_service_that_is_away_lets_nobody_through(
    guarded: ApiStage, service: Siteverify, status: int, body: bytes
) -> None:
    service.status, service.body = status, body
    answer = guarded.call("POST", REGISTER, {**ADA, "captcha": service.token()})
    assert code_of(answer) == (503, "UNAVAILABLE")
    assert SECRET not in answer.text


@pytest.mark.parametrize("body", [b'{"success": "true"}', b'{"success": 1}', b"{}"])
def test_only_success_is_success(
    guarded: ApiStage, service: Siteverify, body: bytes
) -> None:
    service.body = body
    answer = guarded.call("POST", REGISTER, {**ADA, "captcha": service.token()})
    assert code_of(answer) == (403, "CAPTCHA_FAILED")


def test_questions_to_the_service_are_bounded(tmp_path: Path, service: Siteverify) -> None:
    environ = {**service.environ(), "PYLON_AUTH_RATES": "true"}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        codes = [
            code_of(stage.call("POST", REGISTER, {**ADA, "captcha": "made up"}))[0]
            for _ in range(32)
        ]
    assert codes == [403] * 30 + [429] * 2 and len(service.asked) == 30


@pytest.mark.parametrize(("environ", "part"), [
    ({"PYLON_CAPTCHA_PROVIDER": "turnstile"}, "without PYLON_CAPTCHA_SECRET"),
    ({"PYLON_CAPTCHA_PROVIDER": "turnstile", "PYLON_CAPTCHA_SECRET": "s"},
     "without PYLON_CAPTCHA_SITE_KEY"),
    ({"PYLON_CAPTCHA_SECRET": "s"}, "without PYLON_CAPTCHA_PROVIDER"),
    ({"PYLON_CAPTCHA_PROVIDER": "hcaptcha", "PYLON_CAPTCHA_SECRET": "s",
      "PYLON_CAPTCHA_SITE_KEY": "k", "PYLON_CAPTCHA_VERIFY_URL": "http://a.example/v"},
     "write https://"),
])
def test_settings_by_which_captchas_would_protect_nothing_are_refused(
    environ: dict[str, str], part: str
) -> None:
    loaded = settings.load({"PYLON_CORS_ORIGIN": "https://app.example.com", **environ})
    with pytest.raises(StartRefused, match=part):
        settings.refuse_unsafe(loaded.config)


def test_a_person_registers_on_the_page_of_a_real_server(
    make_server: Callable[..., PylonServer], service: Siteverify,
    program: Callable[[str, str], str], tmp_path: Path,
) -> None:
    server = make_server(sign_in_app(), **service.environ()).start()
    with Browser(program("chromium", "chromium"), tmp_path / "person") as browser:
        page = browser.open(f"http://127.0.0.1:{server.port}/auth/register?next=/api/auth/me")
        page.wait("the widget", "document.querySelector('[name=cf-turnstile-response]') !== null")
        for name, value in (*ADA.items(), ("displayName", "Ada")):
            page.run(f"document.getElementById('{name}').value = {json.dumps(value)}")
        page.run("document.querySelector('form button').click()")
        page.wait("who she is", "location.pathname === '/api/auth/me'")
        assert json.loads(page.run("document.body.innerText"))["user_id"]
    assert server.request("POST", REGISTER, {**ADA, "email": "bot@example.com"})[0] == 400


# --- Disposable addresses ----------------------------------------------------------------


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    path = tmp_path / "domains.txt"
    path.write_text("# ten minutes\nMailinator.com\n\nb\u00fccher.example # of books\n")
    return path


@pytest.mark.parametrize(("email", "is_refused"), [
    ("a@mailinator.com", True), ("a@sub.MAILINATOR.com", True), ("a@b\u00fccher.example", True),
    ("a@notmailinator.com", False), ("mailinator.com@example.com", False), ("a@com.example", False),
])
def test_a_domain_counts_with_those_below_it(domains: Path, email: str, is_refused: bool) -> None:
    known = read_domains(domains)
    if not is_refused:
        known.refuse(parse_email(email))
        return
    with pytest.raises(DisposableEmail):
        known.refuse(parse_email(email))
    DisposableDomains().refuse(parse_email(email))


@pytest.mark.parametrize(("text", "part"), [
    ("a.example\nnot a domain\n", "line 2"), ("nodots\n", "line 1"), ("a..example\n", "line 1"),
    ("a.example\n" * 500_000, "4194304 bytes"), (None, "cannot be read"),
])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: str | None, part: str) -> None:
    path = tmp_path / "domains.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartRefused, match=part):
        read_domains(path)


@pytest.mark.stores
def test_no_account_is_made_with_such_an_address_and_an_old_one_signs_in(
    tmp_path: Path, domains: Path
) -> None:
    environ = {"PYLON_DISPOSABLE_FILE": str(domains)}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        email = "eve@mailinator.com"
        refused = stage.call("POST", REGISTER, {**ADA, "email": email})
        assert code_of(refused) == (400, "DISPOSABLE_EMAIL")

        def sign_in() -> Any:
            stage.clock.advance(61)
            assert stage.call("POST", "/api/auth/magic/send", {"email": email}).status_code == 200
            body = {"email": email, "code": take_code(stage, email)}
            return stage.call("POST", "/api/auth/magic/verify", body)

        assert code_of(sign_in()) == (400, "DISPOSABLE_EMAIL")
        made = stage.call("POST", REGISTER, ADA)
        assert made.status_code == 200
        change = stage.call(
            "POST", "/api/auth/email/change/request", {"newEmail": email}, made.json["token"]
        )
        assert code_of(change) == (400, "DISPOSABLE_EMAIL")
        object.__setattr__(stage.identity, "disposable", DisposableDomains())
        assert sign_in().status_code == 200
        object.__setattr__(stage.identity, "disposable", read_domains(domains))
        assert sign_in().status_code == 200, "an account that is there keeps its address"
