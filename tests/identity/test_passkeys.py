"""Passkeys: registration, sign-in, a user's list, and where a passkey is another proof."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pylon import config as settings
from pylon import limits
from pylon.errors import StartRefused, TotpRequired
from pylon.mail.message import decode as decode_mail
from pylon.setting_checks import refuse_unsafe
from pylon.storage.auth_ops import Condition, DropRecords, PutRecord
from pylon.storage.ops import Transact
from tests.support.api import ApiStage, serve_api
from tests.support.authenticator import enroll, first_factor, now_s, who_is
from tests.support.manifests import sign_in_app
from tests.support.passkeys import DOMAIN, ORIGIN, SoftPasskey

pytestmark = pytest.mark.stores
PAGE = {"Origin": "http://localhost:3000"}
PASSWORD = "a long and quiet evening"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app(), {"PYLON_WEBAUTHN_ORIGIN": ORIGIN}) as made:
        yield made


ANDROID = "android:apk-key-hash:" + "q" * 43


def account(stage: ApiStage, email: str = "ada@example.com") -> tuple[str, str]:
    """The token of a new account with a password, and its user id."""
    made = stage.call(
        "POST", "/api/auth/password/register", {"email": email, "password": PASSWORD}
    )
    assert made.status_code == 200, made.text
    return made.json["token"], made.json["user_id"]


def register(
    stage: ApiStage, token: str, key: SoftPasskey, name: str | None = "My phone", **lies: Any
) -> Any:
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token)
    assert begun.status_code == 200, begun.text
    return stage.call("POST", "/api/auth/passkey/register/finish", {
        "credential": key.register(begun.json["options"], **lies), "name": name,
    }, token)


def options(stage: ApiStage) -> dict[str, Any]:
    begun = stage.call("POST", "/api/auth/passkey/login/begin", {})
    assert begun.status_code == 200, begun.text
    found: dict[str, Any] = begun.json["options"]
    return found


def sign_in(stage: ApiStage, credential: Any, token: str | None = None, **more: Any) -> Any:
    return stage.call(
        "POST", "/api/auth/passkey/login/finish", {"credential": credential}, token, **more
    )


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json["error"]["code"]


def actions(stage: ApiStage, user_id: str) -> list[tuple[str, bool]]:
    found = stage.identity.store.point(lambda reader: reader.records(
        "audit", [Condition("user_id", "=", user_id)], ("id",)
    ))
    return [(str(record["action"]), bool(record["success"])) for record in found]


def notices(stage: ApiStage) -> list[tuple[str, str]]:
    """The kind and the text of each mail of the outbox."""
    found = stage.identity.store.point(lambda reader: reader.records("outbox", [], ("id",)))
    mails = [
        decode_mail(stage.identity.keys.open(
            "outbox", "sealed", str(record["id"]), str(record["sealed"])
        ))
        for record in found
    ]
    return [(mail.kind, mail.text) for mail in mails]


# --- Registration --------------------------------------------------------------------------


def test_a_registration_asks_for_a_discoverable_passkey_with_user_verification(
    stage: ApiStage,
) -> None:
    token, user_id = account(stage)
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json
    assert (begun["rpId"], begun["userName"]) == (DOMAIN, "ada@example.com")
    asked = begun["options"]
    assert begun["challenge"] == asked["challenge"] and len(asked["challenge"]) == 43
    assert begun["userId"] == asked["user"]["id"]
    assert asked["rp"] == {"id": DOMAIN, "name": "members"}
    assert asked["attestation"] == "none"
    assert asked["authenticatorSelection"]["residentKey"] == "required"
    assert asked["authenticatorSelection"]["userVerification"] == "required"
    assert [each["alg"] for each in asked["pubKeyCredParams"]] == [-7, -8, -257]
    assert asked["excludeCredentials"] == []
    key = SoftPasskey()
    done = register(stage, token, key)
    assert (done.status_code, done.json) == (
        200, {"registered": True, "id": key.id, "name": "My phone"}
    )
    again = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json
    assert [each["id"] for each in again["options"]["excludeCredentials"]] == [key.id]
    assert actions(stage, user_id)[-1] == ("passkey_register", True)
    assert ("PASSKEY_ADDED", True) in [(kind, "My phone" in text) for kind, text in notices(stage)]


@pytest.mark.parametrize("make", [
    pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), id="ES256"),
    pytest.param(ed25519.Ed25519PrivateKey.generate, id="EdDSA"),
    pytest.param(lambda: rsa.generate_private_key(65_537, 2_048), id="RS256"),
])
def test_a_passkey_of_each_algorithm_signs_in_as_two_factors(stage: ApiStage, make: Any) -> None:
    token, user_id = account(stage)
    key = SoftPasskey(key=make())
    assert register(stage, token, key).status_code == 200
    enroll(stage, token)
    with pytest.raises(TotpRequired):
        first_factor(stage, user_id)
    done = sign_in(stage, key.answer(options(stage)), headers=PAGE)
    assert (done.status_code, done.json["user_id"]) == (200, user_id)
    assert who_is(stage, done.json["token"]) == user_id
    assert done.headers["set-cookie"].startswith("members_session=")
    assert actions(stage, user_id)[-1] == ("sign_in", True)
    listed = stage.call("GET", "/api/auth/sessions", token=done.json["token"]).json
    assert [each["methods"] for each in listed if each["current"]] == [["passkey"]]


def test_the_members_of_the_published_server_count_too(stage: ApiStage) -> None:
    token, user_id = account(stage)
    key = SoftPasskey()
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json
    response = key.register(begun["options"])["response"]
    body = {
        "challenge": begun["challenge"], "credentialId": key.id,
        "clientDataJSON": response["clientDataJSON"],
        "attestationObject": response["attestationObject"],
    }
    for name in ("credentialId", "clientDataJSON", "attestationObject"):
        part = {other: value for other, value in body.items() if other != name}
        missing = stage.call("POST", "/api/auth/passkey/register/finish", part, token)
        assert code_of(missing) == (400, "MISSING_FIELD")
        assert missing.json["error"]["field"] == name
    other = stage.call(
        "POST", "/api/auth/passkey/register/finish", {**body, "challenge": "x" * 43}, token
    )
    assert code_of(other) == (400, "PASSKEY_REGISTER_FAILED")
    done = stage.call("POST", "/api/auth/passkey/register/finish", body, token)
    assert done.status_code == 200, done.text
    response = key.answer(options(stage))["response"]
    signed = stage.call("POST", "/api/auth/passkey/login/finish", {
        "credentialId": key.id, "authenticatorData": response["authenticatorData"],
        "clientDataJSON": response["clientDataJSON"], "signature": response["signature"],
    })
    assert signed.json["user_id"] == user_id


def test_a_registration_needs_a_fresh_session_of_an_account(stage: ApiStage) -> None:
    token, _ = account(stage)
    begin = "/api/auth/passkey/register/begin"
    assert code_of(stage.call("POST", begin, {})) == (401, "AUTH_REQUIRED")
    assert code_of(stage.call("POST", begin, {}, stage.guest())) == (401, "AUTH_REQUIRED")
    stage.clock.advance(601)
    assert code_of(stage.call("POST", begin, {}, token)) == (403, "REAUTH_REQUIRED")
    assert stage.call("POST", "/api/auth/reauth", {"password": PASSWORD}, token).status_code == 200
    assert register(stage, token, SoftPasskey()).status_code == 200


def test_a_user_has_so_many_passkeys_and_no_more(stage: ApiStage) -> None:
    token, _ = account(stage)
    for _ in range(limits.PASSKEYS_OF_USER):
        assert register(stage, token, SoftPasskey()).status_code == 200
    full = stage.call("POST", "/api/auth/passkey/register/begin", {}, token)
    assert code_of(full) == (400, "LIMIT_EXCEEDED")


def test_a_passkey_without_a_name_has_that_of_its_device(stage: ApiStage) -> None:
    token, _ = account(stage)
    assert register(stage, token, SoftPasskey(), None).json["name"] == "Passkey"
    assert code_of(register(stage, token, SoftPasskey(), "a\nb"))[0] == 400


# --- The list ------------------------------------------------------------------------------


def test_a_user_lists_renames_and_deletes_their_own_passkeys_only(stage: ApiStage) -> None:
    token, user_id = account(stage)
    other, _ = account(stage, "ben@example.com")
    key = SoftPasskey(flags=0x05 | 0x18)
    register(stage, token, key)
    path = f"/api/auth/passkey/keys/{key.id}"
    assert stage.call("GET", "/api/auth/passkey/keys", token=other).json == []
    assert code_of(stage.call("PATCH", path, {"name": "x"}, other)) == (404, "NOT_FOUND")
    assert code_of(stage.call("DELETE", path, token=other)) == (404, "NOT_FOUND")
    renamed = stage.call("PATCH", path, {"name": "  Desk key "}, token)
    assert renamed.json == {"id": key.id, "name": "Desk key"}
    assert code_of(stage.call("PATCH", path, {"name": "a\u202eb"}, token))[0] == 400
    [listed] = stage.call("GET", "/api/auth/passkey/keys", token=token).json
    assert (listed["id"], listed["name"], listed["last_used_at"]) == (key.id, "Desk key", None)
    assert listed["backed_up"] and listed["transports"] == ["hybrid", "internal"]
    used = sign_in(stage, key.answer(options(stage)))
    assert used.status_code == 200
    [listed] = stage.call("GET", "/api/auth/passkey/keys", token=token).json
    assert listed["last_used_at"] == now_s(stage)
    assert stage.call("DELETE", path, token=token).json == {"deleted": True}
    assert code_of(stage.call("DELETE", path, token=token)) == (404, "NOT_FOUND")
    assert actions(stage, user_id)[-1] == ("passkey_revoke", True)
    assert "PASSKEY_REMOVED" in [kind for kind, _ in notices(stage)]
    assert code_of(sign_in(stage, key.answer(options(stage)))) == (401, "PASSKEY_VERIFY_FAILED")


def test_a_deletion_needs_a_fresh_session(stage: ApiStage) -> None:
    token, _ = account(stage)
    key = SoftPasskey()
    register(stage, token, key)
    stage.clock.advance(601)
    stale = stage.call("DELETE", f"/api/auth/passkey/keys/{key.id}", token=token)
    assert code_of(stale) == (403, "REAUTH_REQUIRED")


def test_the_last_way_to_sign_in_stays(stage: ApiStage) -> None:
    token, user_id = account(stage)
    first, second = SoftPasskey(), SoftPasskey()
    register(stage, token, first)
    register(stage, token, second)
    stage.writer.submit(Transact([  # as an account that was made without one
        DropRecords("passwords", [Condition("user_id", "=", user_id)], 1)
    ]))
    assert stage.call(
        "DELETE", f"/api/auth/passkey/keys/{first.id}", token=token
    ).json == {"deleted": True}
    last = stage.call("DELETE", f"/api/auth/passkey/keys/{second.id}", token=token)
    assert code_of(last) == (409, "LAST_SIGN_IN_METHOD")
    stage.writer.submit(Transact([PutRecord("identities", {
        "kind": "oauth:acme", "subject": "1", "user_id": user_id, "created_at": 1,
    })]))
    done = stage.call("DELETE", f"/api/auth/passkey/keys/{second.id}", token=token)
    assert done.status_code == 200


# --- Other proofs --------------------------------------------------------------------------


def test_a_passkey_answers_the_challenge_of_a_second_factor(stage: ApiStage) -> None:
    token, user_id = account(stage)
    other_token, _ = account(stage, "ben@example.com")
    key, strange = SoftPasskey(), SoftPasskey()
    register(stage, token, key)
    register(stage, other_token, strange)
    enroll(stage, token)
    with pytest.raises(TotpRequired) as caught:
        first_factor(stage, user_id)
    assert caught.value.details["methods"] == ["totp", "passkey"]
    body = {"challenge": caught.value.details["challenge"]}
    foreign = stage.call("POST", "/api/auth/totp/challenge", {
        **body, "credential": strange.answer(options(stage)),
    })
    assert code_of(foreign) == (401, "PASSKEY_VERIFY_FAILED")
    answer = {**body, "credential": key.answer(options(stage))}
    done = stage.call("POST", "/api/auth/totp/challenge", answer)
    assert (done.status_code, done.json["user_id"]) == (200, user_id)
    again = stage.call("POST", "/api/auth/totp/challenge", answer)
    assert code_of(again) == (401, "INVALID_CHALLENGE")
    assert code_of(stage.call("POST", "/api/auth/totp/challenge", body)) == (400, "MISSING_CODE")


def test_a_passkey_makes_a_session_fresh_but_only_that_of_its_user(stage: ApiStage) -> None:
    token, _ = account(stage)
    other, _ = account(stage, "ben@example.com")
    key = SoftPasskey()
    register(stage, token, key)
    stage.clock.advance(601)
    foreign = stage.call(
        "POST", "/api/auth/reauth", {"credential": key.answer(options(stage))}, other
    )
    assert code_of(foreign) == (401, "INVALID_CREDENTIALS")
    path = "/api/auth/passkey/register/begin"
    assert code_of(stage.call("POST", path, {}, other)) == (403, "REAUTH_REQUIRED")
    answer = {"credential": key.answer(options(stage))}
    assert stage.call("POST", "/api/auth/reauth", answer, token).status_code == 200
    assert stage.call("POST", path, {}, token).status_code == 200
    stage.clock.advance(601)
    replayed = stage.call("POST", "/api/auth/reauth", answer, token)
    assert code_of(replayed) == (401, "INVALID_CREDENTIALS")


def test_a_guest_who_signs_in_by_passkey_brings_their_rows_along(stage: ApiStage) -> None:
    token, _ = account(stage)
    key = SoftPasskey()
    register(stage, token, key)
    done = sign_in(stage, key.answer(options(stage)), stage.guest())
    assert done.status_code == 200 and "carried" in done.json


def test_the_export_and_the_end_of_an_account_have_its_passkeys(stage: ApiStage) -> None:
    token, _ = account(stage)
    key = SoftPasskey()
    register(stage, token, key)
    exported = stage.call("GET", "/api/auth/account/export", token=token).json["passkeys"]
    assert [(each["credential_id"], each["name"]) for each in exported] == [(key.id, "My phone")]
    assert "public_key" not in exported[0]
    assert stage.call("DELETE", "/api/auth/account", token=token).status_code == 200
    assert code_of(sign_in(stage, key.answer(options(stage)))) == (401, "PASSKEY_VERIFY_FAILED")


# --- Settings ------------------------------------------------------------------------------


def test_without_origins_there_are_no_passkeys_in_production(tmp_path: Path) -> None:
    with serve_api(tmp_path, sign_in_app()) as stage:
        for path in ("register/begin", "login/begin"):
            token, _ = account(stage, f"{path[0]}@example.com")
            answer = stage.call("POST", f"/api/auth/passkey/{path}", {}, token)
            assert code_of(answer) == (501, "WEBAUTHN_NOT_CONFIGURED")
        page = stage.client.simulate_get("/auth/")
        assert "passkey" not in page.text and "script" not in page.text
        assert "script-src" not in page.headers["content-security-policy"]
        assert stage.client.simulate_get("/auth/passkey.js").status_code == 404


def test_in_dev_mode_pages_of_localhost_use_passkeys(tmp_path: Path) -> None:
    environ = {"PYLON_DEV_MODE": "true", "PYLON_EMAIL_PROVIDER": "console"}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        token, user_id = account(stage)
        key = SoftPasskey(origin="http://localhost:5173", domain="localhost")
        assert register(stage, token, key).status_code == 200
        assert sign_in(stage, key.answer(options(stage))).json["user_id"] == user_id
        strange = key.answer(options(stage), origin="http://localhost.evil.example")
        assert code_of(sign_in(stage, strange)) == (401, "PASSKEY_VERIFY_FAILED")


@pytest.mark.parametrize(("origins", "domain", "part"), [
    ("http://app.example.com", None, "https only"),
    ("https://127.0.0.1", None, "an address"),
    ("https://app.example.com,https://www.example.com", None, "PYLON_WEBAUTHN_RP_ID"),
    ("https://app.example.com", "example.org", "not within example.org"),
    ("https://badexample.com", "example.com", "not within example.com"),
    ("*", None, "https only"),
    (None, "example.com", "without PYLON_WEBAUTHN_ORIGIN"),
    (ANDROID, None, "Android apps only"),
    ("android:apk-key-hash:abc", None, "43 characters"),
])
def test_origins_that_browsers_would_refuse_are_refused_at_the_start(
    origins: str | None, domain: str | None, part: str
) -> None:
    environ = {"PYLON_CORS_ORIGIN": "https://app.example.com"}
    if origins is not None:
        environ["PYLON_WEBAUTHN_ORIGIN"] = origins
    if domain is not None:
        environ["PYLON_WEBAUTHN_RP_ID"] = domain
    with pytest.raises(StartRefused, match=part):
        refuse_unsafe(settings.load(environ).config)


def test_several_origins_share_the_domain_above_them(tmp_path: Path) -> None:
    environ = {
        "PYLON_WEBAUTHN_ORIGIN": "https://app.example.com,https://www.example.com",
        "PYLON_WEBAUTHN_RP_ID": "example.com",
    }
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        token, _ = account(stage)
        key = SoftPasskey(domain="example.com")
        assert register(stage, token, key).status_code == 200
        answer = key.answer(options(stage), origin="https://www.example.com")
        assert sign_in(stage, answer).status_code == 200


def test_an_android_app_uses_the_passkeys_of_the_domain(tmp_path: Path) -> None:
    environ = {
        "PYLON_WEBAUTHN_ORIGIN": f"{ANDROID}, https://app.example.com",
    }
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        token, _ = account(stage)
        key = SoftPasskey()
        assert register(stage, token, key, origin=ANDROID).status_code == 200
        assert sign_in(stage, key.answer(options(stage), origin=ANDROID)).status_code == 200
        other = ANDROID[:-1] + "A"
        assert code_of(sign_in(stage, key.answer(options(stage), origin=other)))[0] == 401


# --- The sign-in page ----------------------------------------------------------------------


def test_the_page_has_a_hidden_button_and_allows_its_script_alone(stage: ApiStage) -> None:
    page = stage.client.simulate_get("/auth/", query_string="next=/notes")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'; connect-src 'self';" in policy
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert 'id="passkey" data-begin="/auth/passkey/begin" hidden' in page.text
    assert page.text.count("<script") == 1
    path = page.text.partition('<script src="')[2].partition('"')[0]
    script = stage.call("GET", path)
    assert script.headers["content-type"].startswith("text/javascript")
    assert "navigator.credentials.get" in script.text
    other = stage.client.simulate_get("/auth/register")
    assert "<script" not in other.text
    assert "script-src" not in other.headers["content-security-policy"]


def test_the_form_of_the_page_signs_in_and_shows_a_refusal(stage: ApiStage) -> None:
    own = {"Sec-Fetch-Site": "same-origin"}
    token, _ = account(stage)
    key = SoftPasskey()
    register(stage, token, key)
    begun = stage.client.simulate_post("/auth/passkey/begin", headers=own)
    credential = json.dumps(key.answer(begun.json["options"]))
    headers = {**own, "Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({"credential": credential, "next": "/notes"})
    done = stage.client.simulate_post("/auth/passkey", body=body, headers=headers)
    assert (done.status_code, done.headers["location"]) == (303, "/notes")
    assert "members_session" in done.cookies
    replayed = stage.client.simulate_post("/auth/passkey", body=body, headers=headers)
    assert replayed.status_code == 401 and "members_session" not in replayed.cookies
    assert 'role="alert"' in replayed.text and 'id="passkey"' in replayed.text
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert stage.client.simulate_post(
            "/auth/passkey/begin", headers=headers
        ).status_code == 403
