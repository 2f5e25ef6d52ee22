"""The exchange for native apps: a code in place of a session, for the app with the verifier."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon import limits
from pylon.auth.origin import Origins
from pylon.auth.redirects import check_redirect
from pylon.errors import UntrustedRedirect
from pylon.setting_values import native_callbacks
from tests.support.authenticator import enroll
from tests.support.provider_stage import (
    CALLBACK,
    NAME,
    Browser,
    ProviderStage,
    landed,
    serve_provider_stage,
)

pytestmark = pytest.mark.stores
APP = "com.example.app:/auth"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode()[:43]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ProviderStage]:
    with serve_provider_stage(tmp_path, {"PYLON_NATIVE_CALLBACKS": f"{APP},myapp://auth"}) as made:
        yield made


@pytest.fixture
def browser(app: ProviderStage) -> Browser:
    return app.browser()


def code_of(browser: Browser, **more: str) -> str:
    """Sign in by a native app; the code of the redirect to it."""
    answer = browser.send("GET", browser.agree(browser.begin(
        callback=APP, challenge=CHALLENGE, **more
    )))
    location = answer.headers["location"]
    assert answer.status_code == 302 and location.startswith(f"{APP}?code=exc_")
    assert "session" not in str(answer.headers.get("set-cookie"))
    return str(location.partition("code=")[2])


def exchange(app: ProviderStage, code: str, verifier: str = VERIFIER, **more: Any) -> Any:
    body = {"code": code, "verifier": verifier}
    return app.stage.call("POST", "/api/auth/exchange", body, **more)


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["error"]["code"]


def test_an_app_gets_its_session_for_the_code(app: ProviderStage, browser: Browser) -> None:
    code = code_of(browser)
    assert browser.user_id is None, "the browser itself is not signed in"
    assert app.records("identities") == [], "nothing has happened yet"
    assert code not in repr(app.records("tokens"))
    done = exchange(app, code)
    assert done.status_code == 200 and done.json["provider"] == NAME
    me = app.stage.call("GET", "/api/auth/me", token=done.json["token"]).json
    assert me["user_id"] == done.json["user_id"]
    assert "set-cookie" not in done.headers
    assert error_of(exchange(app, code)) == (401, "INVALID_CODE")


@pytest.mark.parametrize("verifier", [
    "w" * 43, CHALLENGE, "v" * 42, "v" * 129, "v" * 42 + "\u00e9", "v" * 43 + "\n",
])
def test_a_wrong_verifier_uses_the_code_up(
    app: ProviderStage, browser: Browser, verifier: str
) -> None:
    code = code_of(browser)
    assert error_of(exchange(app, code, verifier)) == (401, "INVALID_CODE")
    assert error_of(exchange(app, code)) == (401, "INVALID_CODE")
    assert app.records("sessions") == []


def test_a_code_lives_for_a_minute(app: ProviderStage, browser: Browser) -> None:
    late = code_of(browser)
    app.stage.clock.advance(limits.OAUTH_CODE_S)
    assert error_of(exchange(app, late)) == (401, "INVALID_CODE")


def test_the_app_is_asked_for_the_second_factor(app: ProviderStage, browser: Browser) -> None:
    first = exchange(app, code_of(browser)).json
    enroll(app.stage, first["token"])
    asked = exchange(app, code_of(browser))
    assert error_of(asked) == (401, "TOTP_REQUIRED")
    assert asked.json["error"]["challenge"].startswith("mfa_")


def test_a_guest_of_the_app_brings_their_rows_along(app: ProviderStage, browser: Browser) -> None:
    done = exchange(app, code_of(browser), token=app.stage.guest())
    assert done.status_code == 200


def test_an_app_by_json_gets_a_code_too_and_no_session(
    app: ProviderStage, browser: Browser
) -> None:
    target = browser.agree(browser.begin(callback=APP, challenge=CHALLENGE))
    path, _, query = target.partition("?")
    fields = dict(part.split("=", 1) for part in query.split("&"))
    answer = browser.send("POST", path, {"state": fields["state"], "code": fields["code"]},
                          {"Origin": "http://localhost:3000"})
    assert answer.status_code == 200 and answer.json.keys() == {"provider", "code"}
    assert exchange(app, answer.json["code"]).status_code == 200


def test_a_trusted_page_may_ask_for_a_code(app: ProviderStage, browser: Browser) -> None:
    answer = browser.send("GET", browser.agree(browser.begin(challenge=CHALLENGE)))
    found = landed(answer)
    assert found["page"] == CALLBACK and browser.user_id is None
    assert exchange(app, found["code"]).status_code == 200


def test_an_error_goes_to_the_app(app: ProviderStage, browser: Browser) -> None:
    url = browser.begin(callback=APP, error_callback="myapp://auth", challenge=CHALLENGE)
    query = app.issuer.authorize(url)
    answer = browser.send(
        "GET", f"/api/auth/callback/{NAME}?state={query['state']}&error=access_denied"
    )
    assert answer.headers["location"].startswith("myapp://auth?oauth_error=ACCESS_DENIED&")


@pytest.mark.parametrize(("query", "status", "code"), [
    (f"callback={APP}", 400, "MISSING_FIELD"),
    (f"callback={APP}&challenge=short", 400, "INVALID_QUERY"),
    (f"callback={APP}&challenge={'*' * 43}", 400, "INVALID_QUERY"),
    (f"callback={APP}&challenge={CHALLENGE}&link=1", 400, "INVALID_QUERY"),
    (f"callback={APP}/more&challenge={CHALLENGE}", 403, "UNTRUSTED_REDIRECT"),
    (f"callback={APP.upper()}&challenge={CHALLENGE}", 403, "UNTRUSTED_REDIRECT"),
    (f"callback={APP}%3Fx=1&challenge={CHALLENGE}", 403, "UNTRUSTED_REDIRECT"),
    (f"callback=com.evil.app:/auth&challenge={CHALLENGE}", 403, "UNTRUSTED_REDIRECT"),
    (f"callback=myapp://auth@evil&challenge={CHALLENGE}", 403, "UNTRUSTED_REDIRECT"),
    (f"callback={APP}&error_callback=evil:/x&challenge={CHALLENGE}", 403, "UNTRUSTED_REDIRECT"),
])
def test_a_start_by_another_app_is_refused(
    app: ProviderStage, query: str, status: int, code: str
) -> None:
    answer = app.stage.call("GET", f"/api/auth/login/{NAME}?{query}")
    assert error_of(answer) == (status, code)


@pytest.mark.parametrize("body", [
    {}, {"code": "x"}, {"verifier": "x"}, {"code": 5, "verifier": "x"},
    {"code": "x" * 201, "verifier": VERIFIER},
])
def test_an_exchange_of_another_form_is_refused(app: ProviderStage, body: dict[str, Any]) -> None:
    assert app.stage.call("POST", "/api/auth/exchange", body).status_code == 400


def test_a_code_of_another_purpose_is_none(app: ProviderStage, browser: Browser) -> None:
    url = browser.begin(callback=APP, challenge=CHALLENGE)
    state = url.partition("state=")[2].partition("&")[0]
    assert error_of(exchange(app, state)) == (401, "INVALID_CODE")
    code = code_of(browser)
    for path, body in (
        ("/api/auth/magic-link/verify", {"token": code}),
        ("/api/auth/password/reset/complete", {"token": code, "newPassword": "x" * 12}),
        ("/api/auth/totp/challenge", {"challenge": code, "code": "123456"}),
    ):
        assert app.stage.call("POST", path, body).status_code == 401


@pytest.mark.parametrize("raw", [
    "https://app.example.com/x", "javascript:alert", "data:x", "MyApp://auth", "myapp",
    "myapp:", "myapp://a?b=1", "myapp://a#b", "myapp://a b", "intent://x", "file:///x",
])
def test_only_urls_of_an_apps_own_scheme_are_listed(raw: str) -> None:
    with pytest.raises(ValueError, match=r"scheme|URL of a native app"):
        native_callbacks(raw)


def test_other_redirects_go_to_no_app() -> None:
    """Only a sign-in with a provider does, since only there the redirect has no session."""
    with pytest.raises(UntrustedRedirect):
        check_redirect(APP, Origins(frozenset()))
