"""Sign-in with a provider over HTTP: start, return, the accounts that it leads to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from pylon.auth.email_address import parse_email
from pylon.auth.transactions import carry_out
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from tests.support.issuers import CLIENT_ID
from tests.support.provider_stage import (
    CALLBACK,
    ERRORS,
    NAME,
    ORIGIN,
    Browser,
    ProviderStage,
    landed,
    serve_provider_stage,
)
from workers.identity.accounts import new_user

ADA = "ada@example.com"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[ProviderStage]:
    with serve_provider_stage(tmp_path) as made:
        yield made


@pytest.fixture
def browser(app: ProviderStage) -> Browser:
    return app.browser()


def add_user(app: ProviderStage, *, is_verified: bool) -> str:
    """An account of Ada's address, registered by password."""
    identity = app.stage.identity
    user_id, steps = new_user(identity, parse_email(ADA), is_verified=is_verified)
    carry_out(identity.writer.submit, [*steps, PutRecord("passwords", {
        "user_id": user_id, "phc": "x", "changed_at": identity.now_s(),
    })])
    return user_id


# --- Start ---------------------------------------------------------------------------------


def test_the_list_of_providers(app: ProviderStage) -> None:
    assert app.stage.call("GET", "/api/auth/providers").json == [
        {"auth_url": "http://localhost:4321/api/auth/login/local", "provider": "local"}
    ]


def test_a_start_redirects_or_answers(app: ProviderStage, browser: Browser) -> None:
    url = browser.begin()
    query = parse_qs(urlsplit(url).query)
    assert url.startswith(f"{app.issuer.url}/authorize?") and query["client_id"] == [CLIENT_ID]
    assert query["redirect_uri"] == ["http://localhost:4321/api/auth/callback/local"]
    answer = app.stage.call("GET", f"/api/auth/login/{NAME}?callback=/done")
    assert answer.status_code == 200 and answer.json.keys() == {"redirect", "state"}
    assert answer.json["state"] in answer.json["redirect"]
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("members_oauth=")
    for attribute in ("Path=/api/auth/callback", "HttpOnly", "SameSite=Lax", "Max-Age=600"):
        assert attribute in cookie


def test_the_database_has_no_secret_of_a_sign_in(app: ProviderStage, browser: Browser) -> None:
    query = parse_qs(urlsplit(browser.begin()).query)
    stored = repr(app.records("tokens"))
    for secret in (
        query["state"][0], query["nonce"][0], query["state"][0][6:], *browser.cookies.values()
    ):
        assert secret not in stored


@pytest.mark.parametrize(("target", "status", "code"), [
    ("/api/auth/login/nobody?callback=/x", 404, "PROVIDER_NOT_FOUND"),
    ("/api/auth/login/local", 400, "MISSING_CALLBACK"),
    ("/api/auth/login/local?callback=https://evil.example/", 403, "UNTRUSTED_REDIRECT"),
    ("/api/auth/login/local?callback=/x&error_callback=//evil.example", 403, "UNTRUSTED_REDIRECT"),
    ("/api/auth/login/local?callback=/x&link=1", 401, "AUTH_REQUIRED"),
    ("/api/auth/callback/nobody?state=x&code=y", 404, "PROVIDER_NOT_FOUND"),
    ("/api/auth/callback/local?state=x&code=y", 403, "OAUTH_INVALID_STATE"),
    ("/api/auth/callback/local", 403, "OAUTH_INVALID_STATE"),
])
def test_refusals(app: ProviderStage, target: str, status: int, code: str) -> None:
    answer = app.stage.call("GET", target)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)
    assert answer.headers["cache-control"] == "no-store"


def test_a_provider_that_is_down(app: ProviderStage) -> None:
    app.issuer.metadata = {"issuer": "https://evil.example"}
    answer = app.stage.call("GET", "/api/auth/login/local?callback=/x")
    assert (answer.status_code, answer.json["error"]["code"]) == (500, "OAUTH_PROVIDER_BROKEN")


# --- Return --------------------------------------------------------------------------------


def test_a_new_user(app: ProviderStage, browser: Browser) -> None:
    answer = browser.send("GET", browser.agree(browser.begin()))
    assert landed(answer)["page"] == CALLBACK
    assert "oauth_error" not in answer.headers["location"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    user_id = browser.user_id
    assert user_id is not None
    row = app.row(user_id)
    assert (row["email"], row["displayName"]) == (ADA, "Ada")
    assert row["emailVerified"] is not None
    assert app.records("identities", kind="oauth:local")[0]["user_id"] == user_id
    assert {each["action"] for each in app.records("audit")} >= {"sign_in", "oauth_link"}


def test_the_known_user_comes_back_whatever_the_address_is_now(app: ProviderStage) -> None:
    first = app.browser()
    first.sign_in()
    app.issuer.user |= {"email": "other@example.com", "name": "Somebody", "email_verified": False}
    second = app.browser()
    second.sign_in()
    assert second.user_id == first.user_id
    assert app.row(str(first.user_id))["email"] == ADA, "the profile is taken once"
    assert app.row(str(first.user_id))["displayName"] == "Ada"


def test_a_verified_address_of_a_verified_account_is_linked(
    app: ProviderStage, browser: Browser
) -> None:
    user_id = add_user(app, is_verified=True)
    assert browser.sign_in()["page"] == CALLBACK
    assert browser.user_id == user_id
    assert app.records("passwords", user_id=user_id), "nothing is dropped"


def test_an_unverified_address_of_somebody_is_refused(
    app: ProviderStage, browser: Browser
) -> None:
    for is_verified, value in ((True, False), (True, None), (True, "true")):
        if not app.users():
            add_user(app, is_verified=is_verified)
        app.issuer.claims["email_verified"] = value
        page = browser.sign_in()
        assert (page["page"], page["oauth_error"]) == (ERRORS, "OAUTH_EMAIL_NOT_VERIFIED")
        assert page["oauth_error_message"] == "The provider has not verified this e-mail address"
        assert browser.user_id is None
    assert not app.records("identities", kind="oauth:local")


def test_an_unverified_free_address_makes_an_unverified_user(
    app: ProviderStage, browser: Browser
) -> None:
    app.issuer.claims["email_verified"] = False
    browser.sign_in()
    user_id = browser.user_id
    assert user_id is not None and app.row(user_id)["emailVerified"] is None
    assert app.records("identities", kind="email")[0]["verified_at"] is None


def test_the_owner_of_a_mailbox_takes_an_account_over_that_somebody_registered_before(
    app: ProviderStage, browser: Browser
) -> None:
    """Attack 21: the attacker's password, session, key and provider are dead afterwards."""
    user_id = add_user(app, is_verified=False)
    attacker = app.stage.user(user_id)
    identity, now = app.stage.identity, app.stage.identity.now_s()
    carry_out(identity.writer.submit, [
        PutRecord("totp", {
            "user_id": user_id, "sealed": "x", "created_at": now, "confirmed_at": now,
        }),
        PutRecord("identities", {
            "kind": "oauth:evil", "subject": "s", "user_id": user_id, "created_at": now,
        }),
    ])
    page = browser.sign_in()
    assert page["page"] == CALLBACK and "oauth_error" not in page
    assert browser.user_id == user_id
    assert not app.records("passwords", user_id=user_id)
    assert not app.records("totp", user_id=user_id)
    assert not app.records("identities", kind="oauth:evil")
    assert app.row(user_id)["emailVerified"] is not None
    app.stage.clock.advance(2)
    assert app.stage.call("GET", "/api/auth/me", token=attacker).json["user_id"] is None


def test_an_app_finishes_by_json(app: ProviderStage) -> None:
    browser = app.browser()
    answer = browser.send("GET", f"/api/auth/login/{NAME}?callback=/done")
    back = app.issuer.authorize(answer.json["redirect"])
    body = {"state": back["state"], "code": back["code"]}
    answer = browser.send("POST", f"/api/auth/callback/{NAME}", body, {"Origin": ORIGIN})
    assert answer.status_code == 200, answer.text
    assert answer.json.keys() == {"token", "user_id", "provider", "expires_at"}
    assert answer.json["provider"] == NAME
    me = app.stage.call("GET", "/api/auth/me", token=answer.json["token"]).json
    assert me["user_id"] == answer.json["user_id"]


@pytest.mark.parametrize(("body", "status", "code"), [
    ({}, 400, "MISSING_FIELD"), ({"state": "x"}, 400, "MISSING_FIELD"),
    ({"state": "x", "code": "y"}, 403, "OAUTH_INVALID_STATE"),
    ({"state": 5, "code": "y"}, 400, "INVALID_DATA"),
])
def test_refusals_of_json(
    app: ProviderStage, body: dict[str, object], status: int, code: str
) -> None:
    answer = app.stage.call("POST", f"/api/auth/callback/{NAME}", body, headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)


def test_a_form_of_the_provider_is_as_a_redirect(app: ProviderStage, browser: Browser) -> None:
    back = app.issuer.authorize(browser.begin())
    form = {**back, "user": '{"name":{"firstName":"Grace","lastName":"Hopper"}}'}
    app.issuer.claims["name"] = None
    sent = {
        "Content-Type": "application/x-www-form-urlencoded", "Origin": "https://provider.example",
        "Sec-Fetch-Site": "cross-site",
    }
    back = app.issuer.authorize(browser.begin())
    form |= back
    answer = browser.send(
        "POST", f"/api/auth/callback/{NAME}", urlencode(form).encode(), sent
    )
    assert landed(answer)["page"] == CALLBACK
    assert app.row(str(browser.user_id))["displayName"] == "Grace Hopper"


def test_what_a_provider_says_of_an_error_stays_there(
    app: ProviderStage, browser: Browser
) -> None:
    state = parse_qs(urlsplit(browser.begin()).query)["state"][0]
    query = urlencode({
        "state": state, "error": "access_denied", "error_description": "internal.corp <b>",
    })
    answer = browser.send("GET", f"/api/auth/callback/{NAME}?{query}")
    page = landed(answer)
    assert (page["page"], page["oauth_error"]) == (ERRORS, "ACCESS_DENIED")
    assert page["oauth_error_message"] == "The sign-in was cancelled"
    assert "corp" not in answer.headers["location"] and browser.user_id is None


@pytest.mark.parametrize(("lie", "code"), [
    ({"nonce": "x"}, "OAUTH_TOKEN_EXCHANGE_FAILED"), ({"iss": "https://evil.example"},
                                                      "OAUTH_TOKEN_EXCHANGE_FAILED"),
])
def test_a_provider_that_lies_leads_to_the_page_of_errors(
    app: ProviderStage, browser: Browser, lie: dict[str, str], code: str
) -> None:
    app.issuer.claims = lie
    page = browser.sign_in()
    assert (page["page"], page["oauth_error"]) == (ERRORS, code)
    assert app.issuer.url not in page["oauth_error_message"]
    assert not app.users()


def test_a_second_factor_is_asked_for(app: ProviderStage, browser: Browser) -> None:
    """The challenge is in the fragment, which reaches no server."""
    user_id = add_user(app, is_verified=True)
    identity, now = app.stage.identity, app.stage.identity.now_s()
    carry_out(identity.writer.submit, [PutRecord("totp", {
        "user_id": user_id, "sealed": "x", "created_at": now, "confirmed_at": now,
    })])
    page = browser.sign_in()
    assert (page["page"], page["oauth_error"]) == (ERRORS, "TOTP_REQUIRED")
    assert page["fragment"].startswith("mfa=mfa_")
    assert browser.user_id is None


def test_a_locked_account_is_not_signed_in(app: ProviderStage, browser: Browser) -> None:
    user_id = add_user(app, is_verified=True)
    identity = app.stage.identity
    carry_out(identity.writer.submit, [SetRecords(
        "users", [Condition("user_id", "=", user_id)], {"locked_at": identity.now_s()}, 1
    )])
    page = browser.sign_in()
    assert (page["page"], page["oauth_error"]) == (ERRORS, "ACCOUNT_LOCKED")
    assert browser.user_id is None


# --- Linked accounts -----------------------------------------------------------------------


def test_a_signed_in_user_links_a_provider(app: ProviderStage) -> None:
    user_id = add_user(app, is_verified=True)
    app.issuer.user |= {"email": "work@example.com", "sub": "work-1"}
    browser = app.browser()
    browser.cookies["members_session"] = app.stage.user(user_id)
    page = browser.sign_in(link="1")
    assert page["page"] == CALLBACK and "oauth_error" not in page, page
    (found,) = browser.send("GET", "/api/auth/accounts").json
    assert found == {
        "provider": "local", "account_id": "work-1", "email": "work@example.com",
        "created_at": found["created_at"],
    }
    other = app.browser()
    other.sign_in()
    assert other.user_id == user_id
    assert app.row(user_id)["email"] == ADA


def test_an_account_of_somebody_else_is_not_linked(app: ProviderStage) -> None:
    first = app.browser()
    first.sign_in()
    app.issuer.user |= {"sub": "user-2", "email": "bob@example.com"}
    bob = app.browser()
    bob.sign_in()
    app.issuer.user |= {"sub": "user-1"}
    page = bob.sign_in(link="1")
    assert (page["page"], page["oauth_error"]) == (ERRORS, "ALREADY_LINKED")
    assert app.records("identities", kind="oauth:local", subject="user-1")[0]["user_id"] == (
        first.user_id
    )
    app.issuer.user |= {"sub": "user-3"}
    assert bob.sign_in(link="1")["oauth_error"] == "ALREADY_LINKED", "one account of a provider"


def test_a_link_needs_a_fresh_session(app: ProviderStage) -> None:
    browser = app.browser()
    browser.sign_in()
    app.stage.clock.advance(601)
    query = urlencode({"callback": CALLBACK, "link": "1"})
    answer = browser.send("GET", f"/api/auth/login/{NAME}?{query}")
    assert answer.json["error"]["code"] == "REAUTH_REQUIRED"


def test_a_link_of_a_session_that_ended_meanwhile_is_refused(app: ProviderStage) -> None:
    browser = app.browser()
    browser.sign_in()
    app.issuer.user |= {"sub": "user-9"}
    target = browser.agree(browser.begin(link="1"))
    browser.send("DELETE", "/api/auth/sessions", headers={"Origin": ORIGIN})
    page = landed(browser.send("GET", target))
    assert page["oauth_error"] == "AUTH_REQUIRED"
    assert not app.records("identities", subject="user-9")


def test_the_last_way_to_sign_in_stays(app: ProviderStage) -> None:
    app.issuer.claims["email_verified"] = False
    browser = app.browser()
    browser.sign_in()
    user_id = str(browser.user_id)
    target, headers = f"/api/auth/accounts/{NAME}", {"Origin": ORIGIN}
    answer = browser.send("DELETE", target, headers=headers)
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "LAST_SIGN_IN_METHOD")
    identity = app.stage.identity
    carry_out(identity.writer.submit, [PutRecord("passwords", {
        "user_id": user_id, "phc": "x", "changed_at": identity.now_s(),
    })])
    answer = browser.send("DELETE", target, headers=headers)
    assert answer.json == {"unlinked": True, "provider": NAME}
    answer = browser.send("DELETE", target, headers=headers)
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "ACCOUNT_NOT_FOUND")
    assert browser.send("GET", "/api/auth/accounts").json == []


def test_tokens_of_a_provider(tmp_path: Path) -> None:
    with serve_provider_stage(tmp_path, {"PYLON_OAUTH_LOCAL_STORE_TOKENS": "true"}) as app:
        browser, target = app.browser(), f"/api/auth/oauth/refresh/{NAME}"
        headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
        browser.sign_in()
        first = browser.send("POST", target, {}, headers).json
        assert first["access_token"].startswith("at-") and first["provider"] == NAME
        assert first["scope"] == "openid email"
        (stored,) = app.records("oauth_tokens")
        assert first["access_token"] not in repr(stored), "it is sealed"
        assert browser.send("POST", target, {}, headers).json == first
        app.stage.clock.advance(3_590)
        second = browser.send("POST", target, {}, headers).json
        assert second["access_token"] != first["access_token"]
        assert second["expires_at"] > first["expires_at"]
        app.issuer.refresh_tokens.clear()
        app.stage.clock.advance(3_590)
        answer = browser.send("POST", target, {}, headers)
        assert (answer.status_code, answer.json["error"]["code"]) == (502, "REFRESH_FAILED")
        answer = browser.send("DELETE", f"/api/auth/accounts/{NAME}", headers=headers)
        assert answer.json["unlinked"]
        assert not app.records("oauth_tokens")
        answer = browser.send("POST", target, {}, headers)
        assert (answer.status_code, answer.json["error"]["code"]) == (404, "ACCOUNT_NOT_FOUND")


def test_tokens_are_kept_only_if_the_operator_says_so(app: ProviderStage) -> None:
    browser = app.browser()
    browser.sign_in()
    assert not app.records("oauth_tokens")
    answer = browser.send("POST", f"/api/auth/oauth/refresh/{NAME}", headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.json["error"]["code"]) == (501, "PROVIDER_NOT_CONFIGURED")


# --- Native apps ---------------------------------------------------------------------------


def test_an_id_token_of_a_native_app_signs_in_once(tmp_path: Path) -> None:
    with serve_provider_stage(tmp_path) as app:
        provider = app.stage.identity.providers[NAME]
        provider.settings = replace(provider.settings, native_client_ids=("ios-app",))
        app.issuer.claims = {"aud": "ios-app"}
        body = {"id_token": app.issuer.id_token("n1"), "nonce": "n1"}
        answer = app.stage.call("POST", f"/api/auth/native/{NAME}", body)
        assert answer.status_code == 200, answer.text
        assert answer.json.keys() == {"token", "user_id", "provider", "expires_at"}
        for bad, code in (
            (body, "INVALID_ID_TOKEN"), ({"id_token": "x.y.z"}, "INVALID_ID_TOKEN"),
            ({"id_token": app.issuer.id_token("n2"), "nonce": "n1"}, "INVALID_ID_TOKEN"),
            ({}, "MISSING_FIELD"),
        ):
            answer = app.stage.call("POST", f"/api/auth/native/{NAME}", bad)
            assert answer.json["error"]["code"] == code
        answer = app.stage.call("POST", "/api/auth/native/google", body)
        assert answer.json["error"]["code"] == "PROVIDER_NOT_FOUND"
