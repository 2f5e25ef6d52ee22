"""C10: forged and misused JWTs (identity.md §5, attacks 10 and 11).

The algorithm of a token decides which key verifies it, and each key has one algorithm. So neither
`none`, nor a public key as a secret, nor a key of the header's choice makes a token count. Whatever
is wrong, the answer is the same 401, and nobody becomes anonymous, an administrator or a guest.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.jwk import RSAKey

from pylon.auth.jwts import READONLY, ROLES, SCOPES, TENANT
from tests.identity.test_jwts import SECRET, foreign, me, mint, with_issuer
from tests.identity.test_passkeys import account, code_of
from tests.support import stores
from tests.support.api import ApiStage, serve_api
from tests.support.issuers import Issuer, serve_issuer
from tests.support.manifests import sign_in_app

pytestmark = pytest.mark.stores
REFUSED = (401, "INVALID_JWT")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serve_issuer() as made:
        yield made


@pytest.fixture
def stage(
    tested_store: stores.TestStore, tmp_path: Path, issuer: Issuer
) -> Iterator[ApiStage]:
    with with_issuer(tmp_path, issuer) as made:
        yield made


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hs256(header: dict[str, Any], claims: Any, secret: bytes = SECRET.encode()) -> str:
    """A token by the standard library, which signs whatever it is given."""
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def claims_of(stage: ApiStage, user_id: str, **more: Any) -> dict[str, Any]:
    now_s = stage.identity.now_s()
    found = {"iss": "pylon", "sub": user_id, "iat": now_s, "exp": now_s + 60, **more}
    return {name: value for name, value in found.items() if value is not None}


def test_the_forger_of_this_module_is_right(stage: ApiStage) -> None:
    """Else the refusals below would prove nothing."""
    _, user_id = account(stage)
    token = hs256({"alg": "HS256"}, claims_of(stage, user_id))
    assert me(stage, token).json["user_id"] == user_id


@pytest.mark.parametrize("header", [
    {"alg": "none"}, {"alg": "None"}, {"alg": "NONE"}, {"alg": ""}, {"typ": "JWT"}, {"alg": None},
    {"alg": ["HS256"]}, {"alg": "hs256"}, {"alg": "HS384"}, {"alg": "HS512"}, {"alg": "RS256"},
    {"alg": "ES256"}, {"alg": "EdDSA"}, {"alg": "PS256"}, {"alg": "HS256", "kid": 5},
    {"alg": "HS256", "kid": "../../dev/null"}, {"alg": "HS256", "kid": ""},
    {"alg": "HS256", "crit": ["exp"]}, {"alg": "HS256", "crit": ["b64"], "b64": False},
    {"alg": "dir", "enc": "A256GCM"},
])
@pytest.mark.parametrize("signed", [True, False])
def test_another_header_counts_for_nothing(
    stage: ApiStage, header: dict[str, Any], signed: bool
) -> None:
    _, user_id = account(stage)
    token = hs256(header, claims_of(stage, user_id))
    if not signed:
        token = token.rpartition(".")[0] + "."
    assert code_of(me(stage, token)) == REFUSED


def test_a_public_key_is_no_secret(stage: ApiStage, issuer: Issuer) -> None:
    _, user_id = account(stage)
    public = RSAKey.import_key(issuer.key.as_dict(private=False)).public_key
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    jwk = json.dumps(issuer.key.as_dict(private=False)).encode()
    for secret in (pem, pem.strip(), der, jwk, b"", b"\0"):
        for iss in ("pylon", issuer.url):
            for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "k1"}):
                token = hs256(header, claims_of(stage, user_id, iss=iss, aud="my-api"), secret)
                assert code_of(me(stage, token)) == REFUSED
                token = hs256(header, claims_of(stage, user_id, iss=iss), secret)
                assert code_of(me(stage, token)) == REFUSED


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_a_header_brings_no_key_along(stage: ApiStage, issuer: Issuer, name: str) -> None:
    own = RSAKey.generate_key(2_048, {"kid": "k1"})
    value: Any = {
        "jwk": own.as_dict(private=False), "jku": f"{issuer.url}/evil", "x5u": f"{issuer.url}/evil",
        "x5c": ["AAAA"],
    }[name]
    claims = claims_of(stage, "stranger|7", iss=issuer.url, aud="my-api")
    token = jws.serialize_compact(
        {"alg": "RS256", "kid": "k1", name: value}, json.dumps(claims), own
    )
    assert code_of(me(stage, token)) == REFUSED
    assert "/evil" not in issuer.paths()


@pytest.mark.parametrize("change", [
    {"iss": None}, {"iss": "other"}, {"iss": ["pylon"]}, {"aud": "my-api"}, {"aud": []},
    {"exp": None}, {"iat": None}, {"exp": "9999999999"}, {"exp": True}, {"exp": -1},
    {"exp": 1e400}, {"exp": 2**60}, {"iat": "now"}, {"iat": -5}, {"sub": None}, {"sub": ""},
    {"sub": 7}, {"sub": "__admin__"}, {"sub": "guest_" + "0" * 32}, {"sub": "x" * 201},
    {"sub": "a\u0000b"}, {"sub": "a\ud800"}, {TENANT: "a\u0000"}, {"sub": "nobody"},
    {TENANT: 5}, {TENANT: ""}, {ROLES: "admin"},
    {ROLES: [5]}, {ROLES: ["x"] * 33}, {READONLY: "false"}, {READONLY: None}, {SCOPES: 5},
    {SCOPES: ""}, {SCOPES: ["*"]}, {"nbf": "soon"},
], ids=str)
def test_other_claims_are_refused(stage: ApiStage, change: dict[str, Any]) -> None:
    _, user_id = account(stage)
    token = hs256({"alg": "HS256"}, {**claims_of(stage, user_id), **change})
    assert code_of(me(stage, token)) == REFUSED


@pytest.mark.parametrize(("name", "by_s"), [("exp", -60), ("exp", -59), ("iat", 61), ("nbf", 61)])
def test_a_token_counts_in_its_time_only(stage: ApiStage, name: str, by_s: int) -> None:
    _, user_id = account(stage)
    now_s = stage.identity.now_s()
    moved = {"exp": now_s + 60 + by_s, "iat": now_s + by_s, "nbf": now_s + by_s}[name]
    token = hs256({"alg": "HS256"}, claims_of(stage, user_id, **{name: moved}))
    answer = me(stage, token)
    if (name, by_s) == ("exp", -59):
        assert answer.status_code == 200
        stage.clock.advance(1.0)
        answer = me(stage, token)
    assert code_of(answer) == REFUSED


@pytest.mark.parametrize("payload", [
    b"[]", b"null", b"5", b"", b"{", b"\xff", b"[" * 5_000, b'{"sub":"a","sub":"b"}',
])
def test_other_payloads_are_refused(stage: ApiStage, payload: bytes) -> None:
    assert code_of(me(stage, hs256({"alg": "HS256"}, payload))) == REFUSED


def test_a_huge_or_changed_token_is_refused(stage: ApiStage) -> None:
    session, user_id = account(stage)
    huge = hs256({"alg": "HS256"}, claims_of(stage, user_id, x="y" * 10_000))
    assert code_of(me(stage, huge)) == REFUSED
    head, body, signature = mint(stage, session).split(".")
    other = part(claims_of(stage, user_id, **{ROLES: ["admin"]}))
    for token in (
        f"{head}.{other}.{signature}", f"{head}.{body}.", f"{head}.{body}.{signature[:-2]}",
        f"{head}.{body}.{signature}AA", f"{head}.{body}.{'A' * len(signature)}",
    ):
        assert code_of(me(stage, token)) == REFUSED


def test_a_foreign_token_is_no_own_one_and_the_other_way_round(
    stage: ApiStage, issuer: Issuer
) -> None:
    _, user_id = account(stage)
    assert code_of(me(stage, foreign(stage, issuer, iss="pylon", aud=None))) == REFUSED
    assert code_of(me(stage, foreign(stage, issuer, iss="pylon"))) == REFUSED
    own = hs256({"alg": "HS256"}, claims_of(stage, user_id, iss=issuer.url, aud="my-api"))
    assert code_of(me(stage, own)) == REFUSED
    for subject in ("__admin__", "guest_1"):
        assert code_of(me(stage, foreign(stage, issuer, sub=subject))) == REFUSED


@pytest.mark.parametrize("where", [
    pytest.param(lambda token: {"Cookie": f"members_session={token}"}, id="cookie"),
    pytest.param(lambda token: {"Authorization": f"Basic {token}"}, id="basic"),
])
def test_a_jwt_counts_in_the_bearer_header_only(
    stage: ApiStage, where: Callable[[str], dict[str, str]]
) -> None:
    token = mint(stage, account(stage)[0])
    assert me(stage, token).json["user_id"] is not None  # known to the cache of callers now
    found = stage.call("GET", "/api/auth/me", headers=where(token))
    assert (found.status_code, found.json["user_id"]) == (200, None)


def test_no_token_and_no_secret_is_in_an_error_or_the_audit_log(stage: ApiStage) -> None:
    session, user_id = account(stage)
    token = mint(stage, session)
    stored = repr(stage.identity.store.point(lambda reader: [
        reader.records(table, []) for table in ("audit", "tokens", "sessions")
    ]))
    assert token not in stored and token.rpartition(".")[2] not in stored
    wrong = hs256({"alg": "HS256"}, claims_of(stage, user_id), b"x" * 32)
    answer = me(stage, wrong)
    assert wrong.rpartition(".")[2] not in answer.text and SECRET not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "[::1]", "localhost"])
def test_keys_are_fetched_from_public_addresses_only(
    tmp_path: Path, issuer: Issuer, host: str
) -> None:
    port = issuer.url.rpartition(":")[2]
    environ = {
        "PYLON_JWT_JWKS_URL": f"https://{host}:{port}/jwks", "PYLON_JWT_JWKS_ISSUER": issuer.url,
        "PYLON_JWT_JWKS_AUDIENCE": "my-api",
    }
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        assert code_of(me(stage, foreign(stage, issuer))) == (503, "UNAVAILABLE")
        assert issuer.seen == []
