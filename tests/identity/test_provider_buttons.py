"""The links to providers on the sign-in page, and the way back to it, without any script."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from pylon import limits
from tests.support.api import serve_api
from tests.support.authenticator import enroll, now_s
from tests.support.manifests import sign_in_app
from tests.support.provider_stage import NAME, Browser, ProviderStage, serve_provider_stage

pytestmark = pytest.mark.stores
OWN = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ProviderStage]:
    environ = {
        "PYLON_OAUTH_GITHUB_CLIENT_ID": "x", "PYLON_OAUTH_GITHUB_CLIENT_SECRET": "y",
    }
    with serve_provider_stage(tmp_path, environ) as made:
        yield made


@pytest.fixture
def browser(app: ProviderStage) -> Browser:
    return app.browser()


def links(page: str) -> dict[str, str]:
    """The providers of a page: their texts and targets."""
    found = re.search(r'<nav class="providers"[^>]*>(.*?)</nav>', page)
    if found is None:
        return {}
    return {
        html.unescape(text): html.unescape(href)
        for href, text in re.findall(r'<a href="([^"]*)">([^<]*)</a>', found[1])
    }


def follow(browser: Browser, target: str) -> str:
    """Press the link, and agree at the provider; where the browser goes then."""
    begun = browser.send("GET", target)
    assert begun.status_code == 302, begun.text
    back = browser.send("GET", browser.agree(begun.headers["location"]))
    assert back.status_code == 302, back.text
    return str(back.headers["location"])


def test_a_link_of_the_page_signs_in_and_leads_to_the_wanted_page(
    app: ProviderStage, browser: Browser
) -> None:
    page = browser.send("GET", "/auth/?next=/notes%3Fx%3D1")
    found = links(page.text)
    assert list(found) == ["Continue with GitHub", "Continue with Local"]
    assert "<script" not in page.text.replace('<script src="/auth/passkey.js', "")
    assert follow(browser, found["Continue with Local"]) == "/notes?x=1"
    assert browser.user_id is not None
    assert links(browser.send("GET", "/auth/register").text).keys() == found.keys()
    assert links(browser.send("GET", "/auth/code").text) == {}


def test_without_providers_the_page_has_no_links_to_them(tmp_path: Path) -> None:
    with serve_api(tmp_path, sign_in_app()) as stage:
        assert 'class="providers"' not in stage.client.simulate_get("/auth/").text


def test_an_error_comes_back_to_the_page_with_a_fixed_text(
    app: ProviderStage, browser: Browser
) -> None:
    target = links(browser.send("GET", "/auth/?next=/notes").text)["Continue with Local"]
    url = browser.send("GET", target).headers["location"]
    state = parse_qs(urlsplit(url).query)["state"][0]
    back = browser.send("GET", f"/api/auth/callback/{NAME}?state={state}&error=access_denied")
    location = back.headers["location"]
    assert location.startswith("/auth/?next=%2Fnotes&oauth_error=ACCESS_DENIED")
    page = browser.send("GET", location)
    assert page.status_code == 200 and "The sign-in was cancelled" in page.text
    assert 'role="alert"' in page.text and 'name="next" value="/notes"' in page.text
    evil = urlencode({"oauth_error": "X<script>", "oauth_error_message": "Call 555-1234"})
    page = browser.send("GET", f"/auth/?{evil}")
    assert "555" not in page.text and "X<" not in page.text and "The sign-in failed" in page.text


def test_the_second_factor_is_asked_for_on_the_page(app: ProviderStage, browser: Browser) -> None:
    target = links(browser.send("GET", "/auth/?next=/notes").text)["Continue with Local"]
    follow(browser, target)
    made = app.stage.call(
        "POST", "/api/auth/session", {"user_id": browser.user_id},
        "admin-token-for-tests-0123456789abcdef",
    )
    authenticator, _ = enroll(app.stage, made.json["token"])
    browser.cookies.clear()
    location = follow(browser, target)
    assert location == "/auth/second-factor?next=%2Fnotes", "no challenge is in a URL"
    assert browser.user_id is None
    page = browser.send("GET", location)
    challenge = re.search(r'name="challenge" value="(mfa_[\w-]{43})"', page.text)
    assert challenge is not None
    body = urlencode({
        "challenge": challenge[1], "code": authenticator.code(now_s(app.stage)), "next": "/notes",
    }).encode()
    done = browser.send("POST", "/auth/second-factor", body, OWN)
    assert (done.status_code, done.headers["location"]) == (303, "/notes")
    assert browser.user_id is not None


def test_the_cookie_of_a_challenge_is_for_the_page_alone(
    app: ProviderStage, browser: Browser
) -> None:
    target = links(browser.send("GET", "/auth/").text)["Continue with Local"]
    follow(browser, target)
    made = app.stage.call(
        "POST", "/api/auth/session", {"user_id": browser.user_id},
        "admin-token-for-tests-0123456789abcdef",
    )
    enroll(app.stage, made.json["token"])
    begun = browser.send("GET", target)
    back = browser.send("GET", browser.agree(begun.headers["location"]))
    [line] = [
        part for part in back.headers["set-cookie"].split(", ") if part.startswith("members_mfa=")
    ]
    assert f"Path=/auth/; Max-Age={limits.CHALLENGE_S}; HttpOnly; SameSite=Lax" in line
    evil = '"><script>alert(1)</script>'
    shown = app.stage.call(
        "GET", "/auth/second-factor", headers={"Cookie": f"members_mfa={evil}"}
    )
    assert "<script>alert" not in shown.text
