"""The sign-in page at ``/auth/``: forms without scripts, for its own pages only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from falcon import testing

from pylon.api.identity.page_html import PageStyle
from pylon.api.identity.routes import ROUTE_BY_ACTION
from pylon.api.identity.sign_in_page import FORMS
from tests.support.api import ApiStage, serve_api
from tests.support.authenticator import enroll, now_s
from tests.support.manifests import sign_in_app
from tests.support.outbox import take_code, take_mails

OWN = {"Host": "app.example.com", "Origin": "http://app.example.com",
       "Sec-Fetch-Site": "same-origin"}
ADA = {"email": "ada@example.com", "password": "correct horse battery"}
FORM_TYPE = {"Content-Type": "application/x-www-form-urlencoded"}


def get(stage: ApiStage, path: str) -> testing.Result:
    return stage.client.simulate_get(path)


def post(
    stage: ApiStage, name: str, fields: dict[str, str], headers: dict[str, str] | None = None
) -> testing.Result:
    return stage.client.simulate_post(
        f"/auth/{name}", body=urlencode(fields),
        headers={**FORM_TYPE, **(OWN if headers is None else headers)},
    )


def register(stage: ApiStage, **more: str) -> testing.Result:
    return post(stage, "register", {**ADA, "displayName": "Ada", **more})


def session_of(answer: testing.Result) -> str | None:
    found = re.search(r"_session=(\w+)", str(answer.headers.get("set-cookie", "")))
    return None if found is None else found[1]


@pytest.mark.parametrize("name", [
    form.name for form in FORMS if form.action in ROUTE_BY_ACTION
])
def test_each_form_is_a_page_without_scripts(stage: ApiStage, name: str) -> None:
    answer = get(stage, f"/auth/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "form-action 'self';" in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    # With no-referrer browsers would send the form with `Origin: null`.
    assert answer.headers["referrer-policy"] == "strict-origin-when-cross-origin"
    page = answer.text
    assert "<script" not in page and " style=" not in page and "onclick" not in page
    for field in re.findall(r'<input id="(\w+)"', page):
        assert f'<label for="{field}">' in page


def test_the_page_may_be_turned_off(tmp_path: Path) -> None:
    environ = {"PYLON_AUTH_PAGE": "false", "PYLON_WEBAUTHN_ORIGIN": "https://app.example.com"}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        for form in FORMS:
            assert get(stage, f"/auth/{form.name}").status_code == 404
            assert post(stage, form.name, ADA).status_code == 404
        assert get(stage, "/reset-password?token=1").status_code == 404
        assert get(stage, "/auth/passkey").status_code == 404
        made = stage.call("POST", "/api/auth/password/register", ADA)
        assert made.status_code == 200, "the routes stay"


def test_a_registration_and_a_sign_in_set_the_cookie_and_go_on(stage: ApiStage) -> None:
    made = register(stage, next="/notes?x=1")
    assert (made.status_code, made.headers["location"]) == (303, "/notes?x=1")
    token = session_of(made)
    assert token is not None and token not in made.text
    assert stage.call("GET", "/api/auth/me", token=token).json["user_id"]
    again = post(stage, "", ADA)
    assert (again.status_code, again.headers["location"]) == (303, "/")
    assert session_of(again) not in (None, token)


def test_a_refusal_shows_why_and_keeps_the_address_but_no_password(stage: ApiStage) -> None:
    register(stage)
    answer = post(stage, "", {**ADA, "password": "no such password", "next": "/notes"})
    assert answer.status_code == 401
    assert session_of(answer) is None
    page = answer.text
    assert 'role="alert"' in page and "<title>Error: Sign in</title>" in page
    assert 'value="ada@example.com"' in page and 'aria-describedby="error"' in page
    assert "no such password" not in page
    assert 'name="next" value="/notes"' in page


def test_values_of_a_request_are_texts_of_the_page(stage: ApiStage) -> None:
    evil = '"><script>alert(1)</script>'
    answer = post(stage, "", {"email": evil, "password": "x"})
    assert "<script" not in answer.text and "&quot;&gt;&lt;script&gt;" in answer.text
    shown = get(stage, "/auth/second-factor?" + urlencode({"challenge": evil}))
    assert "<script" not in shown.text


def test_an_account_with_an_authenticator_is_asked_for_its_code(stage: ApiStage) -> None:
    token = session_of(register(stage))
    assert token is not None
    app, _ = enroll(stage, token)
    asked = post(stage, "", {**ADA, "next": "/notes"})
    assert (asked.status_code, session_of(asked)) == (200, None)
    found = re.search(r'name="challenge" value="(mfa_[\w-]+)"', asked.text)
    assert found is not None and "Enter your code" in asked.text
    fields = {"challenge": found[1], "next": "/notes"}
    wrong = post(stage, "second-factor", {**fields, "code": "111111"})
    assert wrong.status_code == 401 and found[1] in wrong.text and "111111" not in wrong.text
    done = post(
        stage, "second-factor",
        {**fields, "code": app.code(now_s(stage)), "trust_device": "true"},
    )
    assert (done.status_code, done.headers["location"]) == (303, "/notes")
    assert session_of(done) is not None
    assert "_trusted_device=" in str(done.headers["set-cookie"]) or any(
        "trusted" in name for name in done.cookies
    )


def test_a_code_of_a_mail_signs_in(stage: ApiStage) -> None:
    asked = post(stage, "code", {"email": "bob@example.com", "next": "/notes"})
    assert asked.status_code == 200
    assert 'action="/auth/enter-code"' in asked.text
    assert 'type="hidden" name="email" value="bob@example.com"' in asked.text
    done = post(stage, "enter-code", {
        "email": "bob@example.com", "code": take_code(stage), "next": "/notes",
    })
    assert (done.status_code, done.headers["location"]) == (303, "/notes")
    assert session_of(done) is not None


def test_a_link_of_a_mail_sets_a_new_password(stage: ApiStage) -> None:
    register(stage)
    take_mails(stage)
    asked = post(stage, "reset", {"email": ADA["email"]})
    assert asked.status_code == 200 and "on its way" in asked.text
    (mail,) = take_mails(stage)
    link = re.search(r"https?://[^/]+(/reset-password\?token=\w+)", mail.text)
    assert link is not None
    shown = get(stage, link[1])
    token = re.search(r'name="token" value="(\w+)"', shown.text)
    assert shown.status_code == 200 and token is not None
    assert 'action="/auth/new-password"' in shown.text
    fields = {"token": token[1], "newPassword": "another battery staple"}
    assert post(stage, "new-password", fields).status_code in (200, 303)
    assert post(stage, "new-password", fields).status_code == 401
    assert post(stage, "", ADA).status_code == 401
    assert post(stage, "", {**ADA, "password": fields["newPassword"]}).status_code == 303


@pytest.mark.parametrize("headers", [
    {},
    {"Origin": "http://app.example.com"},  # of another host than the request's
    {"Origin": "https://evil.example", "Host": "app.example.com"},
    {"Origin": "null", "Host": "app.example.com"},
    {**OWN, "Sec-Fetch-Site": "cross-site"},
    {**OWN, "Sec-Fetch-Site": "same-site"},
    {**OWN, "Sec-Fetch-Site": "none"},
])
def test_a_form_of_another_page_signs_nobody_in(
    stage: ApiStage, headers: dict[str, str]
) -> None:
    register(stage)
    answer = post(stage, "", ADA, headers)
    assert answer.status_code == 403
    assert session_of(answer) is None


def test_a_browser_without_fetch_metadata_signs_in_by_its_origin(stage: ApiStage) -> None:
    register(stage)
    headers = {"Host": "app.example.com:8443", "Origin": "https://app.example.com:8443"}
    assert post(stage, "", ADA, headers).status_code == 303


@pytest.mark.parametrize("page", [
    "//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)",
    "https://app.example.com@evil.example/", "/%0d%0aSet-Cookie:x=1", "/a b", "evil.example",
    "http:evil.example", "data:text/html,x", "///evil.example", "https:evil.example",
])
def test_a_page_to_return_to_is_of_a_trusted_origin(stage: ApiStage, page: str) -> None:
    register(stage)
    for answer in (
        get(stage, "/auth/?" + urlencode({"next": page})), post(stage, "", {**ADA, "next": page}),
    ):
        assert answer.status_code == 403
        assert "location" not in answer.headers and session_of(answer) is None


def test_a_trusted_page_is_a_target_of_the_form(stage: ApiStage) -> None:
    trusted = "http://localhost:3000"
    answer = get(stage, "/auth/?" + urlencode({"next": f"{trusted}/in"}))
    if answer.status_code == 200:  # as the settings of the stage say
        assert f"form-action 'self' {trusted};" in answer.headers["content-security-policy"]


def test_a_large_or_broken_form_is_refused(stage: ApiStage) -> None:
    assert post(stage, "", {"email": "a" * 200_000}).status_code == 413
    answer: Any = stage.client.simulate_post(
        "/auth/", body=b"email=\xff\xfe", headers={**FORM_TYPE, **OWN}
    )
    assert answer.status_code == 400


@pytest.mark.parametrize(("accent", "surface"), [
    ("#000000", "#ffffff"), ("#ffff00", "#101010"), ("#777777", "#888888"), ("#1f5fbf", "#fdf6e3"),
])
def test_texts_have_enough_contrast_on_any_colour(accent: str, surface: str) -> None:
    text = PageStyle(accent, surface).text
    for ground, pattern in (
        (surface, r"background:var\(--surface\);\s*color:(#\w+)"),
        (accent, r"background:var\(--accent\);color:(#\w+)"),
    ):
        found = re.search(pattern, text)
        assert found is not None
        assert contrast(ground, found[1]) >= 4.5


def contrast(first: str, second: str) -> float:
    """The ratio of WCAG 2.2."""
    def luminance(colour: str) -> float:
        parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
        lights = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * lights[0] + 0.7152 * lights[1] + 0.0722 * lights[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_an_account_that_must_confirm_its_address_does_so_on_the_page(tmp_path: Path) -> None:
    environ = {
        "PYLON_REQUIRE_EMAIL_VERIFICATION": "true", "PYLON_DEV_MODE": "true",
        "PYLON_EMAIL_PROVIDER": "console",
    }
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        page = register(stage)
        assert page.status_code == 200 and 'action="/auth/confirm"' in page.text
        assert session_of(page) is None
        assert post(stage, "", ADA).status_code == 403
        code = take_code(stage)
        wrong = "000000" if code != "000000" else "000001"
        fields = {"email": ADA["email"]}
        assert post(stage, "confirm", {**fields, "code": wrong}).status_code == 401
        answer = post(stage, "confirm", {**fields, "code": code})
        assert answer.status_code == 200 and "confirmed" in answer.text
        assert session_of(answer) is None, "a code that verifies signs nobody in"
        assert post(stage, "confirm", {**fields, "code": code}).status_code == 401, "once"
        assert post(stage, "", ADA).status_code == 303
