"""C31 to C34: sign-in with a provider that somebody else began, replays or bends (RFC 9700).

A state belongs to one browser and one provider, and is good once. Pages to return to are trusted
ones. What travels in URLs is in no log and in no Referer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tests.support.issuers import CLIENT_ID, CLIENT_SECRET
from tests.support.provider_stage import (
    CALLBACK,
    NAME,
    ORIGIN,
    ProviderStage,
    landed,
    serve_provider_stage,
)

OTHER = {
    "PYLON_OAUTH_OTHER_ISSUER": "http://127.0.0.1:9", "PYLON_OAUTH_OTHER_CLIENT_ID": CLIENT_ID,
    "PYLON_OAUTH_OTHER_CLIENT_SECRET": CLIENT_SECRET,
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ProviderStage]:
    with serve_provider_stage(tmp_path, OTHER) as made:
        yield made


def refused(answer: object) -> None:
    found = getattr(answer, "json", {})
    assert getattr(answer, "status_code", 0) == 403, found
    assert found["error"]["code"] == "OAUTH_INVALID_STATE"
    assert "members_session" not in str(getattr(answer, "headers", {}))


# --- 31: states ----------------------------------------------------------------------------


def test_a_state_is_good_once(app: ProviderStage) -> None:
    browser = app.browser()
    target = browser.agree(browser.begin())
    assert landed(browser.send("GET", target))["page"] == CALLBACK
    asked = app.issuer.paths().count("/token")
    refused(browser.send("GET", target))
    assert app.issuer.paths().count("/token") == asked, "a replay does not reach the provider"


def test_a_state_of_another_browser_signs_nobody_in(app: ProviderStage) -> None:
    """Login CSRF: the attacker's own sign-in, finished in the victim's browser."""
    attacker = app.browser()
    target = attacker.agree(attacker.begin())
    refused(app.browser().send("GET", target))
    victim = app.browser()
    victim.begin()
    refused(victim.send("GET", target))
    refused(victim.send("GET", target, headers={"Origin": ORIGIN}))
    assert victim.user_id is None
    assert landed(attacker.send("GET", target))["page"] == CALLBACK, "nothing was used up"


@pytest.mark.parametrize("headers", [
    {}, {"Origin": "https://evil.example"}, {"Origin": "null"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
])
def test_a_post_without_the_cookie_needs_a_trusted_page(
    app: ProviderStage, headers: dict[str, str]
) -> None:
    back = app.issuer.authorize(app.browser().begin())
    path = f"/api/auth/callback/{NAME}"
    refused(app.stage.call("POST", path, back, headers=headers))
    form = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
    refused(app.stage.call("POST", path, urlencode(back).encode(), headers=form))
    assert app.stage.call("POST", path, back, headers={"Origin": ORIGIN}).status_code == 200


def test_a_form_of_a_trusted_page_does_not_replace_the_cookie(app: ProviderStage) -> None:
    back = app.issuer.authorize(app.browser().begin())
    refused(app.stage.call(
        "POST", f"/api/auth/callback/{NAME}", urlencode(back).encode(),
        headers={"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"},
    ))


def test_a_state_of_another_provider_is_refused(app: ProviderStage) -> None:
    browser = app.browser()
    target = browser.agree(browser.begin())
    refused(browser.send("GET", target.replace("/local?", "/other?")))
    assert landed(browser.send("GET", target))["page"] == CALLBACK


def test_a_state_lives_for_ten_minutes(app: ProviderStage) -> None:
    browser = app.browser()
    target = browser.agree(browser.begin())
    app.stage.clock.advance(601)
    refused(browser.send("GET", target))


def test_tokens_of_other_purposes_are_no_states(app: ProviderStage) -> None:
    browser = app.browser()
    browser.sign_in()
    token = browser.cookies["members_session"]
    for state in ("", "pylon_", "pylon_" + "0" * 64, token, "x" * 4_000, "\x00", "ü"):
        refused(browser.send("GET", f"/api/auth/callback/{NAME}?{urlencode({'state': state})}"))
    refused(browser.send("GET", f"/api/auth/callback/{NAME}?code=x"))


def test_two_tabs_of_one_browser_sign_in(app: ProviderStage) -> None:
    browser = app.browser()
    first, second = browser.begin(), browser.begin()
    for url in (first, second):
        assert landed(browser.send("GET", browser.agree(url)))["page"] == CALLBACK


def test_a_planted_session_cookie_is_replaced(app: ProviderStage) -> None:
    """Session fixation (attack 8)."""
    browser = app.browser()
    browser.cookies["members_session"] = planted = app.stage.user("attacker")
    browser.sign_in()
    assert browser.cookies["members_session"] != planted
    assert browser.user_id != "attacker"


def test_a_page_of_another_site_does_not_begin_a_link(app: ProviderStage) -> None:
    """The browser may be signed in at the provider as the attacker."""
    browser = app.browser()
    browser.sign_in()
    target = f"/api/auth/login/{NAME}?{urlencode({'callback': CALLBACK, 'link': '1'})}"
    answer = browser.send("GET", target, headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.json["error"]["code"]) == (403, "CSRF_REJECTED")
    for headers in (
        {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "same-site"}, {},
        {"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN},
    ):
        assert browser.send("GET", target, headers=headers).status_code == 200


# --- 32: pages to return to ----------------------------------------------------------------


@pytest.mark.parametrize("parameter", ["callback", "error_callback"])
@pytest.mark.parametrize("url", [
    "//evil.example", "/\\evil.example", "https://ok@evil.example", f"{ORIGIN}.evil.example",
    f"{ORIGIN}@evil.example", "/%0d%0aSet-Cookie:%20a=b", "/\r\nSet-Cookie: a=b",
    "javascript:alert(1)", "/x#access_token=y", "https://evil.example", "data:text/html,x",
])
def test_no_browser_is_sent_to_a_page_that_is_not_trusted(
    app: ProviderStage, parameter: str, url: str
) -> None:
    query = {"callback": "/x", parameter: url, "redirect": "1"}
    answer = app.stage.call("GET", f"/api/auth/login/{NAME}?{urlencode(query)}")
    assert (answer.status_code, answer.json["error"]["code"]) == (403, "UNTRUSTED_REDIRECT")
    assert "location" not in answer.headers and "evil" not in answer.headers.get("set-cookie", "")


def test_a_callback_that_is_encoded_twice_stays_what_it_was(app: ProviderStage) -> None:
    query = urlencode({"callback": quote("//evil.example", safe="")})
    answer = app.stage.call("GET", f"/api/auth/login/{NAME}?{query}")
    assert answer.json["error"]["code"] == "UNTRUSTED_REDIRECT"


# --- 33: what travels in URLs --------------------------------------------------------------


def test_code_and_state_are_in_no_log_and_no_page_learns_them(
    app: ProviderStage, capfd: pytest.CaptureFixture[str]
) -> None:
    browser = app.browser()
    url = browser.begin()
    app.issuer.claims = {"nonce": "wrong"}
    back = app.issuer.authorize(url)
    answer = browser.send("GET", f"/api/auth/callback/{NAME}?{urlencode(back)}")
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    logged = "".join(capfd.readouterr())
    for secret in (back["code"], back["state"], CLIENT_SECRET, *browser.cookies.values()):
        assert secret not in logged and secret not in answer.headers["location"]


# --- 34: takeover --------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [False, "false", "true", 0, 1, None, [], {}, "yes"])
def test_an_address_that_the_provider_does_not_vouch_for_takes_nothing_over(
    app: ProviderStage, claim: object
) -> None:
    owner = app.browser()
    owner.sign_in()
    app.issuer.user = {"sub": "evil", "email": "ADA@example.com"}
    app.issuer.claims = {"email_verified": claim}
    attacker = app.browser()
    assert attacker.sign_in()["oauth_error"] == "OAUTH_EMAIL_NOT_VERIFIED"
    assert attacker.user_id is None
    assert not app.records("identities", subject="evil")


def test_the_subject_decides_and_not_the_address(app: ProviderStage) -> None:
    """A provider gives an address to another user later: the account stays with the first."""
    owner = app.browser()
    owner.sign_in()
    app.issuer.user = {"sub": "user-1 ", "email": "new@example.com", "email_verified": True}
    other = app.browser()
    other.sign_in()
    assert other.user_id != owner.user_id
