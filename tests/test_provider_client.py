"""workers.identity.providers.client: a whole sign-in with a provider, by each of its variants."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from pylon.clock import ManualClock, SystemRandom
from pylon.errors import (
    InvalidIdToken,
    OauthProviderBroken,
    OauthTokenExchangeFailed,
    ProviderKeysUnavailable,
    ProviderNotFound,
    RefreshFailed,
)
from pylon.provider_settings import ProviderSettings
from tests.support.issuers import (
    CLIENT_ID,
    CLIENT_SECRET,
    Issuer,
    json_answer,
    raw_answer,
    serve_issuer,
)
from workers.identity.providers.client import Confirmed, Provider, new_start
from workers.identity.providers.fetch import Fetcher, make_tls_context
from workers.identity.providers.metadata import Metadata

TLS = make_tls_context()  # reading the authorities takes 0.1 s
REDIRECT = "http://127.0.0.1:4321/api/auth/callback/local"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serve_issuer() as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


def settings_of(issuer: Issuer, /, **changes: Any) -> ProviderSettings:
    made = ProviderSettings(
        "local", client_id=CLIENT_ID, client_secret=CLIENT_SECRET, issuer=issuer.url
    )
    return replace(made, **changes)


def provider_of(issuer: Issuer, clock: ManualClock, /, **changes: Any) -> Provider:
    return Provider(settings_of(issuer, **changes), Fetcher(allows_private=True, tls=TLS), clock)


def sign_in(provider: Provider, issuer: Issuer, **changes: str) -> Confirmed:
    start = new_start(SystemRandom())
    back = issuer.authorize(provider.authorization_url(start, REDIRECT), **changes)
    assert back["state"] == start.state
    return provider.redeem(back["code"], start, REDIRECT, back.get("iss"))


def test_a_sign_in_by_openid_connect(issuer: Issuer, clock: ManualClock) -> None:
    found = sign_in(provider_of(issuer, clock), issuer)
    profile = found.profile
    assert (profile.provider, profile.subject, profile.email) == (
        "local", "user-1", "ada@example.com"
    )
    assert profile.is_email_verified and profile.name == "Ada"
    assert found.tokens.lasts_s == 3600 and found.tokens.refresh_token
    assert "/userinfo" not in issuer.paths(), "the ID token has the address already"


def test_the_authorization_url_has_state_nonce_and_pkce(
    issuer: Issuer, clock: ManualClock
) -> None:
    start = new_start(SystemRandom())
    url = provider_of(issuer, clock).authorization_url(start, REDIRECT)
    query = parse_qs(urlsplit(url).query)
    assert url.startswith(f"{issuer.url}/authorize?")
    assert query["response_type"] == ["code"] and query["code_challenge_method"] == ["S256"]
    assert query["client_id"] == [CLIENT_ID] and query["redirect_uri"] == [REDIRECT]
    assert query["state"] == [start.state] and query["nonce"] == [start.nonce]
    assert len(start.state) == len("pylon_") + 64 and start.state.startswith("pylon_")
    assert start.verifier not in url and len(query["code_challenge"][0]) == 43
    assert CLIENT_SECRET not in url


def test_secrets_of_a_sign_in_are_in_no_repr(issuer: Issuer, clock: ManualClock) -> None:
    start = new_start(SystemRandom())
    found = sign_in(provider_of(issuer, clock), issuer)
    shown = repr(start) + repr(found)
    for secret in (start.state, start.nonce, start.verifier, found.tokens.access_token):
        assert secret not in shown


@pytest.mark.parametrize("methods", [None, ["client_secret_basic"], ["client_secret_post"]])
def test_the_client_authenticates_as_the_provider_lists(
    issuer: Issuer, clock: ManualClock, methods: list[str] | None
) -> None:
    if methods is not None:
        issuer.metadata["token_endpoint_auth_methods_supported"] = methods
    sign_in(provider_of(issuer, clock), issuer)
    seen = next(each for each in issuer.seen if each.path == "/token")
    is_post = methods == ["client_secret_post"]
    assert ("client_secret" in seen.form) == is_post
    assert ("authorization" in seen.headers) != is_post


def test_an_address_that_only_userinfo_has(issuer: Issuer, clock: ManualClock) -> None:
    issuer.claims_in_token = False
    profile = sign_in(provider_of(issuer, clock), issuer).profile
    assert profile.email == "ada@example.com" and profile.is_email_verified


@pytest.mark.parametrize("value", [False, "false", "true", 1, None, "yes"])
def test_an_address_counts_as_verified_only_by_true(
    issuer: Issuer, clock: ManualClock, value: object
) -> None:
    issuer.claims["email_verified"] = value
    assert not sign_in(provider_of(issuer, clock), issuer).profile.is_email_verified


def test_a_verified_claim_of_another_object_does_not_count(
    issuer: Issuer, clock: ManualClock
) -> None:
    """The ID token has an address and no claim about it; userinfo vouches for another address."""
    issuer.claims["email_verified"] = None
    issuer.userinfo = issuer.user | {"email": "other@example.com"}
    profile = sign_in(provider_of(issuer, clock), issuer).profile
    assert (profile.email, profile.is_email_verified) == ("ada@example.com", False)


def test_apple_says_true_as_a_text_and_signs_in_with_a_key(
    issuer: Issuer, clock: ManualClock
) -> None:
    key = ECKey.generate_key("P-256")
    issuer.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    issuer.claims["email_verified"] = "true"
    provider = provider_of(
        issuer, clock, provider="apple", client_secret=None, team_id="T1", key_id="K1",
        private_key=key.as_pem(private=True).decode(), response_mode="form_post",
        scopes="name email",
    )
    url = provider.authorization_url(new_start(SystemRandom()), REDIRECT)
    assert parse_qs(urlsplit(url).query)["response_mode"] == ["form_post"]
    with pytest.raises(OauthTokenExchangeFailed):  # the issuer of the tests wants its own secret
        sign_in(provider, issuer)
    seen = next(each for each in issuer.seen if each.path == "/token")
    token = jwt.decode(seen.form["client_secret"], key, algorithms=["ES256"])
    assert token.header["kid"] == "K1"
    assert (token.claims["iss"], token.claims["sub"], token.claims["aud"]) == (
        "T1", CLIENT_ID, issuer.url
    )
    assert token.claims["exp"] - token.claims["iat"] == 300


def github(issuer: Issuer) -> dict[str, Any]:
    issuer.answers["/user"] = json_answer({
        "id": 583231, "login": "octocat", "name": None, "email": "public@example.com",
        "avatar_url": "https://avatars.example/u/1",
    })
    issuer.answers["/emails"] = json_answer([
        {"email": "old@example.com", "primary": False, "verified": True},
        {"email": "ada@example.com", "primary": True, "verified": True},
    ])
    return {
        "provider": "github", "issuer": None, "authorization_endpoint": f"{issuer.url}/authorize",
        "token_endpoint": f"{issuer.url}/token", "userinfo_endpoint": f"{issuer.url}/user",
        "emails_endpoint": f"{issuer.url}/emails", "scopes": "read:user user:email",
        "subject": "id", "email": None, "email_verified": None, "avatar_url": "avatar_url",
    }


def test_github_has_its_address_in_a_list_of_its_own(issuer: Issuer, clock: ManualClock) -> None:
    profile = sign_in(provider_of(issuer, clock, **github(issuer)), issuer).profile
    assert (profile.subject, profile.email, profile.is_email_verified) == (
        "583231", "ada@example.com", True
    )
    assert (profile.name, profile.avatar_url) == ("octocat", "https://avatars.example/u/1")


@pytest.mark.parametrize("entries", [
    [], {"message": "Requires authentication"},
    [{"email": "ada@example.com", "primary": False, "verified": True}],
    [{"email": "ada@example.com", "primary": True, "verified": "true"}],
])
def test_github_without_a_verified_primary_address_vouches_for_none(
    issuer: Issuer, clock: ManualClock, entries: Any
) -> None:
    values = github(issuer)
    issuer.answers["/emails"] = json_answer(entries)
    profile = sign_in(provider_of(issuer, clock, **values), issuer).profile
    assert not profile.is_email_verified


def test_github_refuses_with_status_200(issuer: Issuer, clock: ManualClock) -> None:
    issuer.answers["/token"] = json_answer({"error": "bad_verification_code"})
    with pytest.raises(OauthTokenExchangeFailed):
        sign_in(provider_of(issuer, clock, **github(issuer)), issuer)


@pytest.mark.parametrize(("value", "kept"), [
    ("https://a.example/p.png", True), ("http://a.example/p.png", False),
    ("javascript:alert(1)", False), ("https://a.example/" + "x" * 3_000, False),
    ("https://a.example/ü", False), (5, False), ("https://", False),
])
def test_a_picture_is_a_https_url(
    issuer: Issuer, clock: ManualClock, value: object, kept: bool
) -> None:
    issuer.claims["picture"] = value
    profile = sign_in(provider_of(issuer, clock), issuer).profile
    assert profile.avatar_url == (value if kept else None)


# --- Signatures ----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
def test_the_four_algorithms(issuer: Issuer, clock: ManualClock, algorithm: str) -> None:
    key: RSAKey | ECKey | OKPKey = issuer.key
    if algorithm == "ES256":
        key = ECKey.generate_key("P-256", {"kid": "k2"})
    elif algorithm == "EdDSA":
        key = OKPKey.generate_key("Ed25519", {"kid": "k2"})
    issuer.answers["/jwks"] = json_answer({"keys": [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k0"}, {"kty": "AKP", "kid": "future"},
        {"kty": "RSA", "n": "broken", "e": "AQAB", "kid": "bad"}, key.as_dict(private=False),
    ]})
    issuer.sign = lambda _, claims: jwt.encode(
        {"alg": algorithm, "kid": key.kid}, claims, key, algorithms=[algorithm]
    )
    assert sign_in(provider_of(issuer, clock), issuer).profile.subject == "user-1"


def test_a_rotated_key_is_fetched_once_a_minute_at_most(
    issuer: Issuer, clock: ManualClock
) -> None:
    provider = provider_of(issuer, clock)
    sign_in(provider, issuer)
    issuer.key = RSAKey.generate_key(2048, {"kid": "k2"})
    sign_in(provider, issuer)
    assert issuer.paths().count("/jwks") == 2
    unknown = RSAKey.generate_key(2048, {"kid": "k3"})
    issuer.sign = lambda _, claims: jwt.encode({"alg": "RS256", "kid": "k3"}, claims, unknown)
    for _ in range(3):
        with pytest.raises(OauthTokenExchangeFailed):
            sign_in(provider, issuer)
    assert issuer.paths().count("/jwks") == 2
    clock.advance(61)
    with pytest.raises(OauthTokenExchangeFailed):
        sign_in(provider, issuer)
    assert issuer.paths().count("/jwks") == 3


# --- Discovery -----------------------------------------------------------------------------


def test_discovery_is_kept_for_an_hour_and_for_a_day_while_the_provider_is_down(
    issuer: Issuer, clock: ManualClock
) -> None:
    provider, path = provider_of(issuer, clock), "/.well-known/openid-configuration"
    start = new_start(SystemRandom())
    assert issuer.paths() == [], "nothing is fetched before the first sign-in"
    for _ in range(3):
        provider.authorization_url(start, REDIRECT)
    assert issuer.paths().count(path) == 1
    clock.advance(3_601)
    issuer.answers[path] = raw_answer(b"<h1>down</h1>", 503)
    for _ in range(3):
        provider.authorization_url(start, REDIRECT)
    assert issuer.paths().count(path) == 2, "a provider that is down is not asked each time"
    clock.advance(24 * 3_600)
    with pytest.raises(OauthProviderBroken):
        provider.authorization_url(start, REDIRECT)
    del issuer.answers[path]
    clock.advance(11)
    provider.authorization_url(start, REDIRECT)


def test_a_response_of_another_issuer_is_refused(issuer: Issuer, clock: ManualClock) -> None:
    """RFC 9207: checked when it is there, demanded when it is announced."""
    provider = provider_of(issuer, clock)
    issuer.extra = {"iss": "https://evil.example"}
    with pytest.raises(OauthTokenExchangeFailed):
        sign_in(provider, issuer)
    assert "/token" not in issuer.paths(), "the code must not reach the wrong provider"
    issuer.extra = {"iss": issuer.url}
    sign_in(provider, issuer)
    issuer.metadata["authorization_response_iss_parameter_supported"] = True
    provider = provider_of(issuer, clock)
    sign_in(provider, issuer)
    issuer.extra = {}
    with pytest.raises(OauthTokenExchangeFailed):
        sign_in(provider, issuer)


# --- Refresh, native apps ------------------------------------------------------------------


def test_a_refresh_token_gives_a_new_access_token(issuer: Issuer, clock: ManualClock) -> None:
    provider = provider_of(issuer, clock)
    first = sign_in(provider, issuer).tokens
    assert first.refresh_token is not None
    second = provider.refresh(first.refresh_token)
    assert second.access_token != first.access_token
    with pytest.raises(RefreshFailed):
        provider.refresh("unknown")


def test_an_id_token_of_a_native_app(issuer: Issuer, clock: ManualClock) -> None:
    provider = provider_of(issuer, clock, native_client_ids=("ios-app",))
    issuer.claims["aud"] = "ios-app"
    assert provider.verify_native(issuer.id_token("n1"), "n1").profile.subject == "user-1"
    hashed = hashlib.sha256(b"n1").hexdigest()
    assert provider.verify_native(issuer.id_token(hashed), "n1").profile.subject == "user-1"
    for token, nonce in (
        (issuer.id_token("n1"), "n2"), (issuer.id_token(None), "n1"),
        (issuer.id_token("n1"), None), ("eyJ.e30.x", None),
    ):
        with pytest.raises(InvalidIdToken):
            provider.verify_native(token, nonce)
    issuer.claims["aud"] = "another-app"
    with pytest.raises(InvalidIdToken):
        provider.verify_native(issuer.id_token("n1"), "n1")
    with pytest.raises(ProviderNotFound):
        provider_of(issuer, clock).verify_native(issuer.id_token(None), None)
    issuer.answers["/jwks"] = raw_answer(b"", 500)
    down = provider_of(issuer, clock, native_client_ids=("ios-app",))
    with pytest.raises(ProviderKeysUnavailable):
        down.verify_native(issuer.id_token(None), None)


def test_microsoft_names_the_tenant_of_each_user(issuer: Issuer) -> None:
    base, tenant = "https://login.microsoftonline.com", "8eaef023-2b34-4da1-9baa-8bc8c9d6a490"
    metadata = Metadata(
        issuer=f"{base}/{{tenantid}}/v2.0", authorization_endpoint="", token_endpoint=""
    )
    assert metadata.issuer_of(tenant) == f"{base}/{tenant}/v2.0"
    for forged in (None, 5, "", "common", "evil/../x", tenant.upper()):
        assert metadata.issuer_of(forged) is None


def test_basic_credentials_are_encoded_as_rfc_6749_says(
    issuer: Issuer, clock: ManualClock
) -> None:
    sign_in(provider_of(issuer, clock), issuer)
    (seen,) = [each for each in issuer.seen if each.path == "/token"]
    raw = base64.b64decode(seen.headers["authorization"][6:]).decode()
    assert raw == "pylon-client:s3cr3t+of+the+client%3A%2B%25"
