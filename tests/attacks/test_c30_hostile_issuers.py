"""C30: providers that answer nonsense or lies (identity.md, attack 30).

Whatever a provider answers, the sign-in ends in one of our fixed errors; no user is confirmed, and
no text of the provider reaches the client.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import OctKey, RSAKey

from pylon.clock import ManualClock, SystemRandom
from pylon.errors import OauthProviderBroken, OauthTokenExchangeFailed, PylonError
from tests.support.issuers import Issuer, json_answer, raw_answer, serve_issuer
from tests.test_provider_client import REDIRECT, provider_of, sign_in
from workers.identity.providers.client import new_start

DISCOVERY = "/.well-known/openid-configuration"
POISON = "internal-host.corp <script>"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serve_issuer() as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


def refused(
    issuer: Issuer, clock: ManualClock, kind: type[PylonError] = OauthTokenExchangeFailed
) -> None:
    """A sign-in is refused with a fixed text."""
    with pytest.raises(kind) as failed:
        sign_in(provider_of(issuer, clock), issuer)
    shown = json.dumps(failed.value.body())
    assert "corp" not in shown and issuer.url not in shown and "127.0.0.1" not in shown


NONSENSE = {
    "500": raw_answer(POISON.encode(), 500),
    "HTML": raw_answer(f"<h1>{POISON}</h1>".encode()),
    "nothing": raw_answer(b""),
    "an array": json_answer([POISON]),
    "null": json_answer(None),
    "deep": raw_answer(b"[" * 100_000, 200, "application/json"),
    "no UTF-8": raw_answer(b'{"a":"\xff"}', 200, "application/json"),
    "an error": json_answer({"error": POISON, "error_description": POISON}, 400),
    "an error with 200": json_answer({"error": POISON, "access_token": "at-1"}),
    "numbers": json_answer({"access_token": 5, "issuer": 5, "keys": 5, "sub": 5, "id_token": 5}),
    "empty texts": json_answer({"access_token": "", "issuer": "", "keys": [], "sub": ""}),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("path", [DISCOVERY, "/jwks", "/token", "/userinfo"])
def test_nonsense_at_each_endpoint(
    issuer: Issuer, clock: ManualClock, path: str, nonsense: str
) -> None:
    issuer.claims_in_token = False  # so that userinfo is asked
    issuer.answers[path] = NONSENSE[nonsense]
    refused(issuer, clock, OauthProviderBroken if path == DISCOVERY else OauthTokenExchangeFailed)


@pytest.mark.parametrize("changes", [
    {"issuer": "https://evil.example"}, {"issuer": None}, {"issuer": []},
    {"authorization_endpoint": "javascript:alert(1)"}, {"authorization_endpoint": None},
    {"authorization_endpoint": "https://user@evil.example/"}, {"jwks_uri": None},
    {"token_endpoint": 5},
])
def test_discovery_that_lies(issuer: Issuer, clock: ManualClock, changes: dict[str, Any]) -> None:
    issuer.metadata = changes
    refused(issuer, clock, OauthProviderBroken)


def test_an_issuer_that_differs_by_a_slash_is_another_one(
    issuer: Issuer, clock: ManualClock
) -> None:
    issuer.metadata = {"issuer": f"{issuer.url}/"}
    refused(issuer, clock, OauthProviderBroken)


NOW = int(time.time())
LIES: dict[str, dict[str, Any]] = {
    "nonce of another sign-in": {"nonce": "0" * 64}, "no nonce": {"nonce": None},
    "nonce of another type": {"nonce": ["x"]},
    "another issuer": {"iss": "https://evil.example"}, "no issuer": {"iss": None},
    "another client": {"aud": "other"}, "no audience": {"aud": None},
    "a part of the client": {"aud": "pylon-client-2"}, "audiences without ours": {"aud": ["a"]},
    "several audiences without azp": {"aud": ["pylon-client", "other"]},
    "azp of another": {"azp": "other"}, "azp of another type": {"azp": ["pylon-client"]},
    "expired": {"exp": NOW - 3_600, "iat": NOW - 7_200}, "no exp": {"exp": None},
    "exp as a text": {"exp": str(NOW + 300)}, "exp true": {"exp": True},
    "from the future": {"iat": NOW + 3_600, "exp": NOW + 7_200}, "no iat": {"iat": None},
    "not yet": {"nbf": NOW + 3_600}, "no subject": {"sub": None}, "empty subject": {"sub": ""},
    "subject of another type": {"sub": 5}, "long subject": {"sub": "x" * 256},
}


@pytest.mark.parametrize("lie", LIES)
def test_claims_that_lie(issuer: Issuer, clock: ManualClock, lie: str) -> None:
    issuer.claims = LIES[lie]
    refused(issuer, clock)


def _unsigned(issuer: Issuer, claims: dict[str, Any]) -> str:
    parts = jwt.encode({"alg": "RS256", "kid": "k1"}, claims, issuer.key).split(".")
    return f"eyJhbGciOiJub25lIiwia2lkIjoiazEifQ.{parts[1]}."


def _hmac(issuer: Issuer, claims: dict[str, Any]) -> str:
    key = OctKey.import_key(issuer.key.as_pem(private=False))
    return jwt.encode({"alg": "HS256", "kid": "k1"}, claims, key, algorithms=["HS256"])


def _stranger(issuer: Issuer, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "k1"}, claims, RSAKey.generate_key(2048))


def _own_key(issuer: Issuer, claims: dict[str, Any]) -> str:
    key = RSAKey.generate_key(2048)
    header = {"alg": "RS256", "kid": "k1", "jwk": key.as_dict(private=False)}
    return jwt.encode(header, claims, key)


def _key_by_url(issuer: Issuer, claims: dict[str, Any]) -> str:
    key = RSAKey.generate_key(2048)
    return jwt.encode({"alg": "RS256", "kid": "k1", "jku": f"{issuer.url}/evil"}, claims, key)


def _unknown_kid(issuer: Issuer, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS256", "kid": "../k1"}, claims, issuer.key)


def _weak_algorithm(issuer: Issuer, claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "RS384", "kid": "k1"}, claims, issuer.key, algorithms=["RS384"])


def _critical(issuer: Issuer, claims: dict[str, Any]) -> str:
    parts = jwt.encode({"alg": "RS256", "kid": "k1"}, claims, issuer.key).split(".")
    header = json.dumps({"alg": "RS256", "kid": "k1", "crit": ["x"], "x": 1}).encode()
    return ".".join([base64.urlsafe_b64encode(header).rstrip(b"=").decode(), *parts[1:]])


def _changed(issuer: Issuer, claims: dict[str, Any]) -> str:
    good = jwt.encode({"alg": "RS256", "kid": "k1"}, claims, issuer.key).split(".")
    other = jwt.encode({"alg": "RS256", "kid": "k1"}, claims | {"sub": "admin"}, issuer.key)
    return ".".join([good[0], other.split(".")[1], good[2]])


def _huge(issuer: Issuer, claims: dict[str, Any]) -> str:
    return jwt.encode(
        {"alg": "RS256", "kid": "k1"}, claims | {"groups": "x" * 100_000}, issuer.key
    )


@pytest.mark.parametrize("forge", [
    _unsigned, _hmac, _stranger, _own_key, _key_by_url, _unknown_kid, _weak_algorithm, _critical,
    _changed, _huge, lambda issuer, claims: "x", lambda issuer, claims: "a.b.c",
    lambda issuer, claims: "...", lambda issuer, claims: "e30.e30.",
])
def test_tokens_that_are_forged(
    issuer: Issuer, clock: ManualClock, forge: Callable[[Issuer, dict[str, Any]], str]
) -> None:
    issuer.sign = forge
    refused(issuer, clock)
    assert "/evil" not in issuer.paths()


def test_a_weak_key_of_the_provider_is_not_used(issuer: Issuer, clock: ManualClock) -> None:
    with pytest.warns(SecurityWarning):
        issuer.key = RSAKey.generate_key(1024, {"kid": "k1"})
    refused(issuer, clock)


def test_userinfo_of_another_user(issuer: Issuer, clock: ManualClock) -> None:
    issuer.claims_in_token = False
    issuer.userinfo = {"sub": "admin", "email": "admin@example.com", "email_verified": True}
    refused(issuer, clock)


def test_a_code_without_its_verifier_or_for_another_redirect(
    issuer: Issuer, clock: ManualClock
) -> None:
    provider = provider_of(issuer, clock)
    start, other = new_start(SystemRandom()), new_start(SystemRandom())
    back = issuer.authorize(provider.authorization_url(start, REDIRECT))
    with pytest.raises(OauthTokenExchangeFailed):
        provider.redeem(back["code"], other, REDIRECT, None)
    back = issuer.authorize(provider.authorization_url(start, REDIRECT))
    with pytest.raises(OauthTokenExchangeFailed):
        provider.redeem(back["code"], start, "https://evil.example/", None)
    back = issuer.authorize(provider.authorization_url(start, REDIRECT))
    provider.redeem(back["code"], start, REDIRECT, None)
    with pytest.raises(OauthTokenExchangeFailed):
        provider.redeem(back["code"], start, REDIRECT, None)


def test_a_token_of_one_provider_is_none_of_another(clock: ManualClock) -> None:
    """Two providers with the same client id: each accepts its own tokens alone."""
    with serve_issuer() as good, serve_issuer() as evil:
        evil.key = RSAKey.generate_key(2048, {"kid": "k1"})
        good.sign = lambda _, claims: evil.id_token(claims["nonce"])
        refused(good, clock)
        evil.claims = {"iss": good.url}
        refused(good, clock)


def test_secrets_are_in_no_log(
    issuer: Issuer, clock: ManualClock, capfd: pytest.CaptureFixture[str]
) -> None:
    issuer.claims = {"nonce": "wrong"}
    provider = provider_of(issuer, clock)
    start = new_start(SystemRandom())
    back = issuer.authorize(provider.authorization_url(start, REDIRECT))
    with pytest.raises(OauthTokenExchangeFailed):
        provider.redeem(back["code"], start, REDIRECT, None)
    logged = "".join(capfd.readouterr())
    assert "provider.failed" in logged
    for secret in (back["code"], start.state, start.nonce, start.verifier, "s3cr3t"):
        assert secret not in logged
