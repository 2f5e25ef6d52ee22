"""C47: attacks on passkeys (identity.md §5, attacks 2, 6 and 47).

An answer counts once, from a page and for a domain that are allowed, with a verified user and a
counter that goes on, for the challenge of its own purpose and session. Whatever is wrong, the
error is the same, nobody is signed in, and the challenge is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pylon import limits
from pylon.storage.auth_ops import Condition, SetRecords
from pylon.storage.ops import Transact
from tests.identity.test_passkeys import (
    account,
    actions,
    code_of,
    options,
    register,
    sign_in,
)
from tests.support import stores
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.passkeys import ORIGIN, SoftPasskey, decode, encode

pytestmark = pytest.mark.stores
REFUSED_SIGN_IN = (401, "PASSKEY_VERIFY_FAILED")
REFUSED_KEY = (400, "PASSKEY_REGISTER_FAILED")
LIES: dict[str, dict[str, Any]] = {
    "another origin": {"origin": "https://evil.example"},
    "a host below": {"origin": "https://evil.app.example.com"},
    "another port": {"origin": "https://app.example.com:8443"},
    "http": {"origin": "http://app.example.com"},
    "origin with a slash": {"origin": "https://app.example.com/"},
    "null origin": {"origin": "null"},
    "a frame": {"cross": True},
    "another domain": {"domain": "evil.example"},
    "the domain above": {"domain": "example.com"},
    "another challenge": {"challenge": "A" * 43},
    "no challenge": {"challenge": ""},
    "user not verified": {"flags": 0x01},
    "user not present": {"flags": 0x04},
    "the other kind": {"kind": "webauthn.other"},
}


@pytest.fixture
def stage(tested_store: stores.TestStore, tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, sign_in_app(), {"PYLON_WEBAUTHN_ORIGIN": ORIGIN}) as made:
        yield made


@pytest.fixture
def key(stage: ApiStage) -> SoftPasskey:
    """A passkey of the account ada@example.com."""
    token, _ = account(stage)
    made = SoftPasskey()
    assert register(stage, token, made).status_code == 200
    return made


def open_challenges(stage: ApiStage) -> int:
    where = [Condition("used_at", "null"), Condition("purpose", "=", "passkey_login")]
    return stage.identity.store.point(lambda reader: reader.count_records("tokens", where))


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_wrong_answer_signs_nobody_in_and_uses_its_challenge_up(
    stage: ApiStage, key: SoftPasskey, lie: str
) -> None:
    asked = options(stage)
    wrong = sign_in(stage, key.answer(asked, **LIES[lie]))
    assert code_of(wrong) == REFUSED_SIGN_IN and "set-cookie" not in wrong.headers
    if "challenge" not in lie and lie != "a frame":
        assert open_challenges(stage) == 0
        assert code_of(sign_in(stage, key.answer(asked))) == REFUSED_SIGN_IN
    assert sign_in(stage, key.answer(options(stage))).status_code == 200


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_wrong_passkey_is_not_stored(stage: ApiStage, lie: str) -> None:
    token, _ = account(stage)
    assert code_of(register(stage, token, SoftPasskey(), **LIES[lie])) == REFUSED_KEY
    assert stage.call("GET", "/api/auth/passkey/keys", token=token).json == []


def test_an_answer_counts_once(stage: ApiStage, key: SoftPasskey) -> None:
    answer = key.answer(options(stage))
    assert sign_in(stage, answer).status_code == 200
    assert code_of(sign_in(stage, answer)) == REFUSED_SIGN_IN


class AtOnce:
    """A writer that lets another request come and go before the transaction of this one."""

    def __init__(self, stage: ApiStage, other: Callable[[], Any]) -> None:
        self._inner = stage.identity.writer
        self._other = other
        self._is_done = False

    def submit(self, op: Any) -> Any:
        if isinstance(op, Transact) and not self._is_done:
            self._is_done = True
            self._other()
        return self._inner.submit(op)

    def submit_all(self, ops: Any) -> Any:
        return self._inner.submit_all(ops)


@pytest.mark.parametrize("counts", [True, False])
def test_of_two_requests_with_one_answer_at_once_one_signs_in(
    stage: ApiStage, key: SoftPasskey, counts: bool
) -> None:
    key.counts = counts
    answer = key.answer(options(stage))
    first: list[Any] = []
    inner = stage.identity.writer
    object.__setattr__(
        stage.identity, "writer", AtOnce(stage, lambda: first.append(sign_in(stage, answer)))
    )
    second = sign_in(stage, answer)
    object.__setattr__(stage.identity, "writer", inner)
    assert first[0].status_code == 200
    assert code_of(second) == REFUSED_SIGN_IN


def test_a_counter_that_goes_back_is_noted_and_signs_nobody_in(
    stage: ApiStage, key: SoftPasskey
) -> None:
    user_id = sign_in(stage, key.answer(options(stage), count=7)).json["user_id"]
    for count in (7, 6, 1, 0):
        assert code_of(sign_in(stage, key.answer(options(stage), count=count))) == REFUSED_SIGN_IN
    noted = [action for action, worked in actions(stage, user_id) if not worked]
    assert noted == ["passkey_clone"] * 4
    assert sign_in(stage, key.answer(options(stage), count=8)).status_code == 200


def test_a_stranger_cannot_report_a_copied_passkey(stage: ApiStage, key: SoftPasskey) -> None:
    user_id = sign_in(stage, key.answer(options(stage), count=7)).json["user_id"]
    forged = SoftPasskey(credential_id=key.credential_id, handle=key.handle)
    assert code_of(sign_in(stage, forged.answer(options(stage), count=1))) == REFUSED_SIGN_IN
    noted = [action for action, worked in actions(stage, user_id) if not worked]
    assert noted == ["sign_in_failed"]


def test_the_key_of_another_user_and_their_handle_sign_nobody_in(
    stage: ApiStage, key: SoftPasskey
) -> None:
    token, _ = account(stage, "ben@example.com")
    other = SoftPasskey()
    register(stage, token, other)
    swapped = other.answer(options(stage), handle=key.handle)
    assert code_of(sign_in(stage, swapped)) == REFUSED_SIGN_IN
    renamed = other.answer(options(stage))
    renamed["id"] = renamed["rawId"] = key.id
    renamed["response"]["userHandle"] = key.handle
    assert code_of(sign_in(stage, renamed)) == REFUSED_SIGN_IN


def test_a_passkey_of_somebody_cannot_be_registered_again_by_another(
    stage: ApiStage, key: SoftPasskey
) -> None:
    token, _ = account(stage, "ben@example.com")
    copied = SoftPasskey(credential_id=key.credential_id)
    assert code_of(register(stage, token, copied)) == REFUSED_KEY
    assert stage.call("GET", "/api/auth/passkey/keys", token=token).json == []
    assert sign_in(stage, key.answer(options(stage))).status_code == 200


@pytest.mark.parametrize("late_s", [limits.PASSKEY_CHALLENGE_S, limits.PASSKEY_CHALLENGE_S + 1])
def test_an_old_challenge_counts_no_more(stage: ApiStage, late_s: int) -> None:
    token, _ = account(stage)
    key, late = SoftPasskey(), SoftPasskey()
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json["options"]
    register(stage, token, key)
    asked = options(stage)
    stage.clock.advance(late_s)
    assert code_of(sign_in(stage, key.answer(asked))) == REFUSED_SIGN_IN
    finished = stage.call(
        "POST", "/api/auth/passkey/register/finish", {"credential": late.register(begun)}, token
    )
    assert code_of(finished) == REFUSED_KEY


def test_a_challenge_of_another_session_or_purpose_registers_nothing(stage: ApiStage) -> None:
    token, user_id = account(stage)
    same_user = stage.user(user_id)
    other, _ = account(stage, "ben@example.com")
    key = SoftPasskey()
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json["options"]
    for thief in (other, same_user):
        answer = stage.call("POST", "/api/auth/passkey/register/finish", {
            "credential": key.register(begun),
        }, thief)
        assert code_of(answer) == REFUSED_KEY
    for_sign_in = {**options(stage), "user": begun["user"]}
    answer = stage.call("POST", "/api/auth/passkey/register/finish", {
        "credential": key.register(for_sign_in),
    }, token)
    assert code_of(answer) == REFUSED_KEY
    registered = stage.call("POST", "/api/auth/passkey/register/finish", {
        "credential": key.register(begun),
    }, token)
    assert registered.status_code == 200
    unused = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json["options"]
    assert code_of(sign_in(stage, key.answer(unused))) == REFUSED_SIGN_IN


def test_a_session_that_has_ended_registers_nothing(stage: ApiStage) -> None:
    token, _ = account(stage)
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json["options"]
    body = {"credential": SoftPasskey().register(begun)}
    inner = stage.identity.writer
    object.__setattr__(stage.identity, "writer", AtOnce(
        stage, lambda: stage.call("DELETE", "/api/auth/session", token=token)
    ))
    answer = stage.call("POST", "/api/auth/passkey/register/finish", body, token)
    object.__setattr__(stage.identity, "writer", inner)
    assert answer.status_code in (400, 401, 503), answer.text
    rows = stage.identity.store.point(lambda reader: reader.count_records("passkeys", []))
    assert rows == 0


def test_a_locked_account_is_told_so_only_by_its_own_passkey(
    stage: ApiStage, key: SoftPasskey
) -> None:
    stage.writer.submit(Transact([SetRecords("users", [], {"locked_at": 1})]))
    assert code_of(sign_in(stage, key.answer(options(stage)))) == (403, "ACCOUNT_LOCKED")
    wrong = key.answer(options(stage), flags=0x01)
    assert code_of(sign_in(stage, wrong)) == REFUSED_SIGN_IN


def _nested(depth: int) -> str:
    return encode(b"\x81" * depth + b"\x00")


@pytest.mark.parametrize("spoil", [
    pytest.param(lambda c: {}, id="empty"),
    pytest.param(lambda c: "not json", id="text"),
    pytest.param(lambda c: json.dumps([1]), id="array"),
    pytest.param(lambda c: {**c, "type": "password"}, id="type"),
    pytest.param(lambda c: {**c, "rawId": "AAAA"}, id="raw id"),
    pytest.param(lambda c: {**c, "id": "\0", "rawId": "\0"}, id="nul"),
    pytest.param(lambda c: {**c, "id": 5}, id="number"),
    pytest.param(lambda c: {**c, "response": None}, id="no response"),
    pytest.param(lambda c: {**c, "response": {**c["response"], "signature": ""}}, id="unsigned"),
    pytest.param(lambda c: {**c, "response": {**c["response"], "signature": "%"}}, id="percent"),
    pytest.param(
        lambda c: {**c, "response": {**c["response"], "userHandle": {"a": 1}}}, id="handle"
    ),
    pytest.param(lambda c: {**c, "response": {
        **c["response"], "authenticatorData": c["response"]["authenticatorData"][:40],
    }}, id="short data"),
    pytest.param(lambda c: {**c, "response": {
        **c["response"], "clientDataJSON": encode(b"[" * 20_000),
    }}, id="nested client data"),
    pytest.param(lambda c: {**c, "response": {
        **c["response"], "clientDataJSON": encode(b"\xff\xfe"),
    }}, id="client data no text"),
    pytest.param(lambda c: {**c, "response": {
        **c["response"],
        "authenticatorData": encode(decode(c["response"]["authenticatorData"]) + b"more"),
    }}, id="long data"),
])
def test_an_answer_of_another_form_is_refused_like_a_wrong_one(
    stage: ApiStage, key: SoftPasskey, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    answer = sign_in(stage, spoil(key.answer(options(stage))))
    if answer.status_code == 400:  # no credential at all
        assert code_of(answer) == (400, "MISSING_FIELD")
    else:
        assert code_of(answer) == REFUSED_SIGN_IN


@pytest.mark.parametrize("attestation", [
    {}, {"fmt": "none"}, {"fmt": "none", "attStmt": {}, "authData": b"short"},
    {"fmt": "tpm", "attStmt": {}, "authData": b"\0" * 200}, [1], {"fmt": 5, "authData": {}},
])
def test_an_attestation_of_another_form_is_refused(stage: ApiStage, attestation: Any) -> None:
    token, _ = account(stage)
    answer = register(stage, token, SoftPasskey(), attestation=attestation)
    assert code_of(answer) == REFUSED_KEY


def test_deep_cbor_and_other_keys_are_refused(stage: ApiStage) -> None:
    token, _ = account(stage)
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json["options"]
    credential = SoftPasskey().register(begun)
    credential["response"]["attestationObject"] = _nested(20_000)
    path = "/api/auth/passkey/register/finish"
    assert code_of(stage.call("POST", path, {"credential": credential}, token)) == REFUSED_KEY
    weak = SoftPasskey(key=ec.generate_private_key(ec.SECP384R1()))
    begun = stage.call("POST", "/api/auth/passkey/register/begin", {}, token).json["options"]
    credential = SoftPasskey().register(begun)
    made = cbor2.loads(decode(credential["response"]["attestationObject"]))
    point = weak.key.public_key().public_numbers()  # type: ignore[union-attr]
    cose = cbor2.dumps({1: 2, 3: -35, -1: 2, -2: point.x.to_bytes(48, "big"),  # type: ignore[union-attr]
                        -3: point.y.to_bytes(48, "big")})  # type: ignore[union-attr]
    made["authData"] = made["authData"][:55 + 32] + cose
    credential["response"]["attestationObject"] = encode(cbor2.dumps(made))
    assert code_of(stage.call("POST", path, {"credential": credential}, token)) == REFUSED_KEY


def test_challenges_and_answers_of_one_address_are_limited(tmp_path: Path) -> None:
    environ = {"PYLON_WEBAUTHN_ORIGIN": ORIGIN, "PYLON_AUTH_RATES": "true"}
    with serve_api(tmp_path, sign_in_app(), environ) as stage:
        path = "/api/auth/passkey/login/begin"
        answers = [stage.call("POST", path, {}).status_code for _ in range(31)]
        assert answers == [200] * 30 + [429]
        wrong = {"credential": {"id": "AAAA"}}
        path = "/api/auth/passkey/login/finish"
        answers = [stage.call("POST", path, wrong).status_code for _ in range(31)]
        assert answers == [401] * 30 + [429]


@pytest.mark.parametrize("key_id", ["%00", "%2F", "..", "%ff", "x" * 3_000, "%E2%80%AE"])
def test_the_id_of_a_passkey_in_a_path_is_any_text(stage: ApiStage, key_id: str) -> None:
    token, _ = account(stage)
    for method, body in (("PATCH", {"name": "x"}), ("DELETE", None)):
        answer = stage.call(method, f"/api/auth/passkey/keys/{key_id}", body, token)
        assert answer.status_code in (400, 404), answer.text
