"""JWTs: minting, the caller that one is, scopes, read-only ones, a change of the secret, and the
tokens of a foreign issuer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from pylon import config as settings
from pylon import limits
from pylon.auth.jwt_issuers import read_issuers
from pylon.auth.jwts import READONLY, ROLES, SCOPES, TENANT
from pylon.errors import StartRefused
from pylon.setting_checks import refuse_unsafe
from tests.identity.test_passkeys import account, actions, code_of
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.issuers import Issuer, json_answer, serve_issuer
from tests.support.manifests import sign_in_app
from workers.identity.jwts import make_jwts

pytestmark = pytest.mark.stores
SECRET, OTHER = "a" * 32, "b" * 40
PATH = "/api/auth/jwt"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app(), {"PYLON_JWT_SECRET": SECRET}) as made:
        yield made


def mint(stage: ApiStage, token: str, **body: Any) -> str:
    made = stage.call("POST", PATH, body, token)
    assert made.status_code == 200, made.text
    return str(made.json["token"])


def sign(stage: ApiStage, user_id: str, secret: str = SECRET, **claims: Any) -> str:
    """A JWT that somebody else with the secret has made."""
    now_s = stage.identity.now_s()
    body = {"iss": "pylon", "sub": user_id, "iat": now_s, "exp": now_s + 60, **claims}
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode({"alg": "HS256"}, body, OctKey.import_key(secret))


def me(stage: ApiStage, token: str) -> Any:
    return stage.call("GET", "/api/auth/me", token=token)


def test_a_jwt_acts_as_its_user_until_it_ends(stage: ApiStage) -> None:
    session, user_id = account(stage)
    made = stage.call("POST", PATH, {}, session).json
    now_s = stage.identity.now_s()
    assert made["expires_at"] == now_s + 3_600
    parts = jwt.decode(made["token"], OctKey.import_key(SECRET), algorithms=["HS256"])
    assert parts.header == {"alg": "HS256", "typ": "JWT"}
    assert {**parts.claims, "jti": ""} == {
        "iss": "pylon", "sub": user_id, "iat": now_s, "exp": now_s + 3_600, "jti": "",
    }
    assert me(stage, made["token"]).json["user_id"] == user_id
    row = stage.call(
        "POST", "/api/entities/Todo", {"title": "a", "authorId": user_id}, made["token"]
    )
    assert row.status_code == 201, row.text
    stage.clock.advance(3_598)
    assert me(stage, made["token"]).status_code == 200
    stage.clock.advance(2)
    assert code_of(me(stage, made["token"])) == (401, "INVALID_JWT")
    assert actions(stage, user_id)[-1] == ("jwt_mint", True)
    again = stage.call("POST", PATH, {"expires_in": 60}, session).json
    assert again["expires_at"] == stage.identity.now_s() + 60
    other = jwt.decode(again["token"], OctKey.import_key(SECRET), algorithms=["HS256"])
    assert other.claims["jti"] != parts.claims["jti"]


def test_a_jwt_reaches_no_route_that_takes_sessions_only(stage: ApiStage) -> None:
    token = mint(stage, account(stage)[0])
    for method, path in (
        ("POST", PATH), ("GET", "/api/auth/api-keys"), ("DELETE", "/api/auth/account"),
        ("POST", "/api/auth/password/change"), ("GET", "/api/auth/passkey/keys"),
    ):
        body = {} if method == "POST" else None
        assert code_of(stage.call(method, path, body, token)) == (403, "API_KEY_AUTH_FORBIDDEN")
    admin = stage.call("GET", "/api/admin/auth/users", token=token)
    assert admin.status_code == 403


def test_scopes_and_read_only_narrow_what_it_may_do(stage: ApiStage) -> None:
    session, user_id = account(stage)
    todo = {"title": "a", "authorId": user_id}
    reader = mint(stage, session, scopes="entity:Todo:read")
    assert me(stage, reader).json["api_key_scopes"] == "entity:Todo:read"
    assert stage.call("GET", "/api/entities/Todo", token=reader).status_code == 200
    assert code_of(stage.call("GET", "/api/entities/User", token=reader)) == (403, "SCOPE_DENIED")
    for token in (reader, mint(stage, session, readonly=True)):
        for method, path, body in (
            ("POST", "/api/entities/Todo", todo),
            ("POST", "/api/batch", {"operations": [
                {"op": "insert", "entity": "Todo", "data": todo},
            ]}),
            ("POST", "/api/sync/push", {"changes": [{
                "op_id": "1", "entity": "Todo", "row_id": "x", "kind": "insert", "data": todo,
            }]}),
        ):
            answer = stage.call(method, path, body, token)
            assert "SCOPE_DENIED" in answer.text or '"failed":1' in answer.text, answer.text
    assert stage.call("GET", "/api/entities/Todo", token=ADMIN_TOKEN).json["data"] == []
    assert me(stage, mint(stage, session, readonly=True)).json["readonly"] is True
    assert code_of(stage.call("POST", PATH, {"scopes": "all"}, session)) == (400, "INVALID_SCOPE")


@pytest.mark.parametrize("body", [
    {"expires_in": 3_601}, {"expires_in": 0}, {"expires_in": "60"}, {"readonly": 1},
    {"scopes": 5}, {"expires_in": -1},
])
def test_a_jwt_of_another_form_is_not_made(stage: ApiStage, body: dict[str, Any]) -> None:
    assert stage.call("POST", PATH, body, account(stage)[0]).status_code == 400


def test_guests_and_strangers_get_none(stage: ApiStage) -> None:
    assert code_of(stage.call("POST", PATH, {}, stage.guest())) == (401, "AUTH_REQUIRED")
    assert code_of(stage.call("POST", PATH, {})) == (401, "AUTH_REQUIRED")


def test_an_administrator_makes_one_for_a_user(stage: ApiStage) -> None:
    _, user_id = account(stage)
    path = "/api/admin/auth/jwt"
    made = stage.call("POST", path, {"user_id": user_id, "readonly": True}, ADMIN_TOKEN)
    assert me(stage, made.json["token"]).json["user_id"] == user_id
    for unknown in ("nobody", "__admin__", "guest_1"):
        answer = stage.call("POST", path, {"user_id": unknown}, ADMIN_TOKEN)
        assert code_of(answer) == (404, "USER_NOT_FOUND")
    session, _ = account(stage, "ben@example.com")
    assert stage.call("POST", path, {"user_id": user_id}, session).status_code == 403


@pytest.mark.parametrize("end", [
    pytest.param(lambda s, token, _: s.call("DELETE", "/api/auth/sessions", token=token),
                 id="revoke all"),
    pytest.param(lambda s, token, _: s.call("POST", "/api/auth/password/change", {
        "currentPassword": "a long and quiet evening", "newPassword": "another quiet evening",
    }, token), id="password change"),
    pytest.param(lambda s, _, user_id: s.call(
        "POST", f"/api/admin/auth/users/{user_id}/lock", {}, ADMIN_TOKEN), id="lock"),
    pytest.param(lambda s, token, _: s.call("DELETE", "/api/auth/account", token=token),
                 id="account"),
    pytest.param(lambda s, _, user_id: s.call(
        "POST", "/api/admin/sessions/purge", {"user_id": user_id}, ADMIN_TOKEN), id="purge"),
])
def test_a_jwt_dies_within_a_second_of_what_ends_all_sessions(
    stage: ApiStage, end: Callable[[ApiStage, str, str], Any]
) -> None:
    session, user_id = account(stage)
    token = mint(stage, session)
    assert me(stage, token).status_code == 200
    answer = end(stage, session, user_id)
    assert answer.status_code == 200, answer.text
    stage.clock.advance(1.0)
    assert code_of(me(stage, token)) == (401, "INVALID_JWT")


def test_the_claims_are_those_of_the_caller(stage: ApiStage) -> None:
    _, user_id = account(stage)
    token = sign(stage, user_id, **{
        TENANT: "t1", ROLES: ["editor", "admin"], READONLY: True, SCOPES: "entity:*:read",
    })
    assert me(stage, token).json == {
        "user_id": user_id, "tenant_id": "t1", "roles": ["editor", "admin"], "is_admin": False,
        "readonly": True, "api_key_scopes": "entity:*:read", "avatar_url": None,
    }


# --- Secrets -------------------------------------------------------------------------------


def test_without_a_secret_there_are_none(tmp_path: Path) -> None:
    with serve_api(tmp_path, sign_in_app()) as stage:
        session, user_id = account(stage)
        assert code_of(stage.call("POST", PATH, {}, session)) == (501, "JWT_NOT_CONFIGURED")
        assert code_of(me(stage, sign(stage, user_id))) == (401, "INVALID_JWT")


def test_a_change_of_the_secret_keeps_the_tokens_of_the_one_before(stage: ApiStage) -> None:
    session, user_id = account(stage)
    old = mint(stage, session)
    change_secret(stage, jwt_secret=OTHER, jwt_secret_previous=SECRET)
    new = mint(stage, session)
    named = jwt.decode(new, OctKey.import_key(OTHER), algorithms=["HS256"]).header["kid"]
    assert OTHER not in named and len(named) == 16
    assert me(stage, old).json["user_id"] == me(stage, new).json["user_id"] == user_id
    now_s = stage.identity.now_s()
    wrong = jwt.encode(
        {"alg": "HS256", "kid": "0" * 16},
        {"iss": "pylon", "sub": user_id, "iat": now_s, "exp": now_s + 60}, OctKey.import_key(OTHER),
    )
    assert code_of(me(stage, wrong)) == (401, "INVALID_JWT")
    change_secret(stage, jwt_secret=OTHER)
    stage.clock.advance(limits.JWT_CLAIMS_S)  # workers that were not replaced forget it, too
    assert me(stage, new).json["user_id"] == user_id
    assert code_of(me(stage, old)) == (401, "INVALID_JWT")


def change_secret(stage: ApiStage, **values: str) -> None:
    """What a restart with other settings does."""
    config = replace(stage.identity.app.config, **{"jwt_secret_previous": None, **values})
    object.__setattr__(stage.identity, "jwts", cache(partial(make_jwts, config, stage.clock)))


@pytest.mark.parametrize(("environ", "part"), [
    ({"PYLON_JWT_SECRET": "short"}, "has 5 characters"),
    ({"PYLON_JWT_SECRET_PREVIOUS": SECRET}, "without PYLON_JWT_SECRET"),
    ({"PYLON_JWT_JWKS_URL": "https://id.example.com/k"}, "PYLON_JWT_JWKS_ISSUER"),
    ({"PYLON_JWT_JWKS_URL": "https://id.example.com/k", "PYLON_JWT_JWKS_ISSUER": "i"},
     "PYLON_JWT_JWKS_AUDIENCE"),
    ({"PYLON_JWT_JWKS_AUDIENCE": "a"}, "without PYLON_JWT_JWKS_URL"),
    ({"PYLON_JWT_JWKS_URL": "http://id.example.com/k", "PYLON_JWT_JWKS_ISSUER": "i",
      "PYLON_JWT_JWKS_AUDIENCE": "a"}, "https://"),
    ({"PYLON_JWT_JWKS_URL": "https://id.example.com/k", "PYLON_JWT_JWKS_ISSUER": "pylon",
      "PYLON_JWT_JWKS_AUDIENCE": "a"}, "another issuer"),
])
def test_settings_by_which_tokens_could_be_forged_are_refused(
    environ: dict[str, str], part: str
) -> None:
    loaded = settings.load({"PYLON_CORS_ORIGIN": "https://app.example.com", **environ})
    with pytest.raises(StartRefused, match=part) as caught:
        refuse_unsafe(loaded.config)
    assert SECRET not in str(caught.value)


# --- A foreign issuer ----------------------------------------------------------------------


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serve_issuer() as made:
        yield made


def with_issuer(
    folder: Path, issuer: Issuer, **environ: str
) -> AbstractContextManager[ApiStage]:
    return serve_api(folder, sign_in_app(), {
        "PYLON_DEV_MODE": "true", "PYLON_EMAIL_PROVIDER": "console", "PYLON_JWT_SECRET": SECRET,
        "PYLON_JWT_JWKS_URL": f"{issuer.url}/jwks", "PYLON_JWT_JWKS_ISSUER": issuer.url,
        "PYLON_JWT_JWKS_AUDIENCE": "my-api,other", **environ,
    })


def foreign(stage: ApiStage, issuer: Issuer, key: Any = None, **claims: Any) -> str:
    key = key or issuer.key
    now_s = stage.identity.now_s()
    body = {
        "iss": issuer.url, "aud": "my-api", "sub": "stranger|7", "iat": now_s, "exp": now_s + 300,
        **claims,
    }
    body = {name: value for name, value in body.items() if value is not None}
    algorithm = "ES256" if isinstance(key, ECKey) else "RS256"
    return jwt.encode({"alg": algorithm, "kid": key.kid}, body, key)


def test_a_token_of_the_foreign_issuer_acts_as_its_subject(
    tmp_path: Path, issuer: Issuer
) -> None:
    with with_issuer(tmp_path, issuer) as stage:
        for audience in ("my-api", ["x", "other"]):
            token = foreign(stage, issuer, aud=audience, **{ROLES: ["editor"]})
            found = me(stage, token).json
            assert (found["user_id"], found["roles"]) == ("stranger|7", ["editor"])
        for wrong in (
            {"aud": "x"}, {"aud": None}, {"iss": "https://evil.example"}, {"iss": "pylon"},
            {"exp": 1}, {"exp": None}, {"iat": None}, {"sub": None},
            {"iat": stage.identity.now_s() + 61}, {"nbf": stage.identity.now_s() + 61},
        ):
            assert code_of(me(stage, foreign(stage, issuer, **wrong))) == (401, "INVALID_JWT")
        assert issuer.paths().count("/jwks") == 1, "the keys are kept"
        assert me(stage, sign(stage, account(stage)[1])).status_code == 200


def test_new_keys_of_the_issuer_are_fetched_at_most_once_a_minute(
    tmp_path: Path, issuer: Issuer
) -> None:
    new = ECKey.generate_key("P-256", {"kid": "k2"})
    unknown = RSAKey.generate_key(2_048, {"kid": "k9"})
    with with_issuer(tmp_path, issuer) as stage:
        assert me(stage, foreign(stage, issuer)).status_code == 200
        keys = [{**key.as_dict(private=False), "use": "sig"} for key in (issuer.key, new)]
        issuer.answers["/jwks"] = json_answer({"keys": keys})
        assert me(stage, foreign(stage, issuer, new)).status_code == 200
        for _ in range(5):
            stage.clock.advance(1)
            answer = me(stage, foreign(stage, issuer, unknown))
            assert code_of(answer) == (401, "INVALID_JWT")
        assert issuer.paths().count("/jwks") == 2
        stage.clock.advance(60)
        me(stage, foreign(stage, issuer, unknown))
        assert issuer.paths().count("/jwks") == 3


def test_a_signature_is_verified_once_a_minute_and_a_user_each_second(stage: ApiStage) -> None:
    session, _ = account(stage)
    token = mint(stage, session)
    assert me(stage, token).status_code == 200
    change_secret(stage, jwt_secret=OTHER)  # the key of the token is gone
    stage.clock.advance(50)
    assert me(stage, token).status_code == 200
    stage.clock.advance(11)
    assert code_of(me(stage, token)) == (401, "INVALID_JWT")


def test_a_withdrawn_key_of_the_issuer_verifies_no_longer_than_its_keys_are_kept(
    tmp_path: Path, issuer: Issuer
) -> None:
    with with_issuer(tmp_path, issuer) as stage:
        token = foreign(stage, issuer, exp=stage.clock.wall_ns() // 10**9 + 9_000)
        assert me(stage, token).status_code == 200
        new = ECKey.generate_key("P-256", {"kid": "k2"})
        issuer.answers["/jwks"] = json_answer(
            {"keys": [{**new.as_dict(private=False), "use": "sig"}]}
        )
        stage.clock.advance(3_700)
        assert code_of(me(stage, token)) == (401, "INVALID_JWT")


def test_several_issuers_have_their_own_keys_and_audiences(
    tmp_path: Path, issuer: Issuer
) -> None:
    with serve_issuer() as other:
        key = RSAKey.generate_key(2_048, {"kid": "k1"})  # the same name as that of the first one
        other.answers["/jwks"] = json_answer(
            {"keys": [{**key.as_dict(private=False), "use": "sig"}]}
        )
        path = tmp_path / "issuers.toml"
        path.write_text(
            f'[issuers.staff]\nissuer = "{other.url}"\njwks_url = "{other.url}/jwks"\n'
            'audience = "staff"\n'
        )
        environ = {"PYLON_JWT_ISSUERS_FILE": str(path)}
        with with_issuer(tmp_path, issuer, **environ) as stage:
            assert me(stage, foreign(stage, issuer)).status_code == 200
            staff = {"iss": other.url, "aud": "staff"}
            assert me(stage, foreign(stage, issuer, key, **staff)).json["user_id"] == "stranger|7"
            for token in (
                foreign(stage, issuer, key), foreign(stage, issuer, **staff),  # the other's key
                foreign(stage, issuer, key, **staff | {"aud": "my-api"}),
                foreign(stage, issuer, key, **staff | {"iss": "https://nobody.example"}),
                foreign(stage, issuer, key, **staff | {"iss": 7}),
            ):
                assert code_of(me(stage, token)) == (401, "INVALID_JWT")


@pytest.mark.parametrize(("text", "part"), [
    (None, "cannot be read"), ("[issuers", "no TOML"), ("", "no table of an issuer"),
    ("a = 1", "write a table"), ("[issuers.a]\nissuer = 'x'", "needs the keys"),
    ("[issuers.a]\nissuer = 1\njwks_url = 'https://a.example'\naudience = 'x'", "write a text"),
    ("[issuers.a]\nissuer = 'x'\njwks_url = 'http://a.example'\naudience = 'x'", "https://"),
    ("[issuers.a]\nissuer = 'x'\njwks_url = 'https://a.example'\naudience = []", "is empty"),
    ("[issuers.a]\nissuer = 'pylon'\njwks_url = 'https://a.example'\naudience = 'x'", "called"),
])
def test_a_file_of_issuers_that_cannot_be_used_stops_the_start(
    tmp_path: Path, text: str | None, part: str
) -> None:
    path = tmp_path / "issuers.toml"
    if text is not None:
        path.write_text(text)
    loaded = settings.load({"PYLON_JWT_ISSUERS_FILE": str(path)})
    with pytest.raises(StartRefused, match=part):
        read_issuers(loaded.config)


def test_an_issuer_that_is_down_makes_nobody_anonymous(tmp_path: Path, issuer: Issuer) -> None:
    issuer.answers["/jwks"] = json_answer({}, 500)
    with with_issuer(tmp_path, issuer) as stage:
        assert code_of(me(stage, foreign(stage, issuer))) == (503, "UNAVAILABLE")
        del issuer.answers["/jwks"]
        stage.clock.advance(11)
        assert me(stage, foreign(stage, issuer)).status_code == 200
        issuer.answers["/jwks"] = json_answer({}, 500)
        stage.clock.advance(4_000)
        assert me(stage, foreign(stage, issuer)).status_code == 200, "the keys of before count"
