"""Flows of TOTP: enrolment, its first code, its end, backup codes, and the answer to a challenge
(spec/identity.md §1.5).

    none --enroll--> a secret that waits for its first code --verify--> on --disable--> none

Invariants: a new secret replaces one that is on only with its own first code, and needs a code of
the one before. The first code of a secret gives the session a new token. Each flow that takes a
code counts the attempt first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from pylon import limits
from pylon.api.identity.totp_bodies import (
    BackupCodesAnswer,
    ChallengeBody,
    CodeBody,
    DisableAnswer,
    EnrollAnswer,
    EnrollBody,
    VerifyAnswer,
    VerifyBody,
)
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    AuthRequired,
    InvalidTotpCode,
    MissingCode,
    RecordConflict,
    SealBroken,
    SessionExpired,
    TotpNotEnrolled,
)
from pylon.storage.auth_ops import Condition, DropRecords, PutRecord, SetRecords
from pylon.storage.auth_tables import Value
from workers.identity import totp
from workers.identity.identity import Call, Identity
from workers.identity.passkey_proofs import METHOD, prove
from workers.identity.passkeys import verify_failed
from workers.identity.second_factor import (
    PENDING,
    Accepted,
    Factors,
    accept_code,
    count_attempt,
    drop_factors,
    new_backup_records,
    pending_hash,
    read_factors,
)
from workers.identity.sign_in import audit_of, complete_challenge
from workers.identity.trusted_devices import cleared_cookie, trust_device

_NOT_ENROLLED = "This account has no authenticator app"
_WRONG = "The code is wrong, was used before, or is too old"


def enroll(identity: Identity, call: Call) -> IdentityAnswer:
    """Return a new secret, which waits for its first code."""
    user_id, body = _user_of(call), call.decode(EnrollBody)
    factors = read_factors(identity, user_id)
    steps: list[Step] = [factors.as_before(user_id)]
    if factors.is_on:
        count_attempt(identity, user_id, call.facts.address)
        steps += accept_code(
            identity, user_id, factors, body.code, takes_backup=False
        ).steps
    secret, now_s = totp.new_secret(identity.app.random), identity.now_s()
    steps.append(PutRecord("tokens", {
        "hash": pending_hash(user_id), "purpose": PENDING, "user_id": user_id, "email_key": None,
        "data": identity.keys.seal("tokens", "data", user_id, secret.encode()), "attempts": 0,
        "created_at": now_s, "expires_at": now_s + limits.TOTP_PENDING_S, "used_at": None,
    }, replace=True))
    _carry_out_code(identity, steps)
    issuer, account = identity.app.manifest.name, _account_name(identity, user_id)
    return json_answer(EnrollAnswer(
        secret, totp.enrolment_url(secret, account, issuer), issuer, account
    ))


def verify(identity: Identity, call: Call) -> IdentityAnswer:
    """Take the first code of a new secret, or a code of the one that is on."""
    user_id, body = _user_of(call), call.decode(VerifyBody)
    factors = read_factors(identity, user_id)
    pending = _read_pending(identity, user_id)
    if pending is None and not factors.is_on:
        raise TotpNotEnrolled(_NOT_ENROLLED, hint="First: POST /api/auth/totp/enroll")
    count_attempt(identity, user_id, call.facts.address)
    step = None if pending is None else _first_step(identity, user_id, pending, body.code)
    trusts = body.trust_device and call.facts.is_trusted_origin
    device = trust_device(identity, call, user_id) if trusts else None
    steps: list[Step] = [] if device is None else [device.put]
    cookies = () if device is None else (device.cookie,)
    if pending is None or step is None:
        steps += accept_code(identity, user_id, factors, body.code, takes_backup=False).steps \
            if factors.is_on else _refuse()
        steps.append(_proof_of_now(identity, call))
        _carry_out_code(identity, steps)
        return json_answer(VerifyAnswer(True, False, trusts), cookies=cookies)
    secret = identity.keys.open("tokens", "data", user_id, str(pending["data"]))
    old = identity.store.point(lambda reader: reader.session(call.facts.session_id or ""))
    if old is None:
        raise SessionExpired("The session has ended: sign in again")
    now_s = identity.now_s()
    session = identity.issuer.rotate(old)
    methods = " ".join(dict.fromkeys([*old.methods.split(), "totp"]))
    put = replace(session.put, auth_time_s=now_s, methods=methods)
    of_user = Condition("user_id", "=", user_id)
    _carry_out_code(identity, [
        factors.as_before(user_id),
        DropRecords("tokens", [
            Condition("hash", "=", pending_hash(user_id)),
            Condition("data", "=", pending["data"]), Condition("expires_at", ">", now_s),
        ], 1),
        PutRecord("totp", {
            "user_id": user_id, "sealed": identity.keys.seal("totp", "sealed", user_id, secret),
            "created_at": now_s, "confirmed_at": now_s, "last_step": step,
        }, replace=True),
        # Those of the secret before; devices were trusted with its codes.
        DropRecords("backup_codes", [of_user]), DropRecords("trusted_devices", [of_user]), *steps,
        SetRecords(
            "sessions", [Condition("session_id", "=", old.session_id)],
            {"rotated_at": now_s, "family": old.family}, 1,
        ),
        put, audit_of(identity, call, "totp_enroll", user_id),
    ])
    answer = VerifyAnswer(True, True, trusts, session.token, user_id, put.expires_at_s)
    return json_answer(answer, session_token=session.token, cookies=cookies)


def disable(identity: Identity, call: Call) -> IdentityAnswer:
    """Remove the authenticator, its backup codes and the trusted devices."""
    user_id, body = _user_of(call), call.decode(CodeBody)
    factors = _require_on(identity, user_id)
    count_attempt(identity, user_id, call.facts.address)
    accepted = accept_code(identity, user_id, factors, body.code)
    _carry_out_code(identity, [
        *accepted.steps, *drop_factors(user_id),
        audit_of(identity, call, "totp_disable", user_id, metadata={"method": accepted.method}),
    ])
    return json_answer(DisableAnswer(True), cookies=(cleared_cookie(identity),))


def regenerate_backup_codes(identity: Identity, call: Call) -> IdentityAnswer:
    """Replace the backup codes."""
    user_id = _user_of(call)
    factors = _require_on(identity, user_id)
    codes = totp.new_backup_codes(identity.app.random)
    try:
        carry_out(identity.writer.submit, [
            factors.as_before(user_id), *new_backup_records(identity, user_id, codes),
            audit_of(identity, call, "totp_backup_codes_regenerate", user_id),
        ])
    except RecordConflict:
        raise TotpNotEnrolled(_NOT_ENROLLED) from None
    return json_answer(BackupCodesAnswer(codes))


def answer_challenge(identity: Identity, call: Call) -> IdentityAnswer:
    """End a sign-in that has asked for a code."""
    body = call.decode(ChallengeBody)
    credential = body.credential
    if credential is None:
        if not body.code:
            raise MissingCode("code is required")
        return complete_challenge(
            identity, call, body.challenge, trusts_device=body.trust_device,
            accept=lambda user_id, factors: accept_code(identity, user_id, factors, body.code),
        )
    try:
        return complete_challenge(
            identity, call, body.challenge, trusts_device=body.trust_device,
            accept=lambda user_id, _: _accept_passkey(identity, call, user_id, credential),
        )
    except InvalidTotpCode:  # another request was faster with this answer
        raise verify_failed() from None


def _accept_passkey(
    identity: Identity, call: Call, user_id: str, credential: Mapping[str, Any] | str
) -> Accepted:
    """Return the steps that use the answer of a passkey of this user up."""
    proof = prove(identity, call, credential)
    if proof.user_id != user_id:
        raise verify_failed()
    return Accepted(METHOD, proof.steps)


def _user_of(call: Call) -> str:
    user_id = call.facts.auth.user_id
    if user_id is None or call.facts.auth.is_guest:
        raise AuthRequired("Login required")
    return user_id


def _require_on(identity: Identity, user_id: str) -> Factors:
    factors = read_factors(identity, user_id)
    if not factors.is_on:
        raise TotpNotEnrolled(_NOT_ENROLLED)
    return factors


def _refuse() -> list[Step]:
    raise InvalidTotpCode(_WRONG)


def _read_pending(identity: Identity, user_id: str) -> dict[str, Value] | None:
    where = [
        Condition("hash", "=", pending_hash(user_id)),
        Condition("expires_at", ">", identity.now_s()),
    ]
    found = identity.store.point(lambda reader: reader.records("tokens", where))
    return found[0] if found else None


def _first_step(
    identity: Identity, user_id: str, pending: dict[str, Value], text: str
) -> int | None:
    """Return the step of a code of the secret that waits, or None."""
    code = totp.as_code(text)
    if code is None:
        return None
    try:
        secret = identity.keys.open("tokens", "data", user_id, str(pending["data"]))
    except SealBroken:  # the secret key has changed since
        return None
    return totp.find_step(secret.decode(), code, identity.now_s())


def _proof_of_now(identity: Identity, call: Call) -> Step:
    """Return the step that makes the session fresh."""
    return SetRecords(
        "sessions", [Condition("session_id", "=", call.facts.session_id)],
        {"auth_time": identity.now_s()}, 1,
    )


def _carry_out_code(identity: Identity, steps: list[Step]) -> None:
    """Carry out steps that use up a code.

    Raises:
        InvalidTotpCode: another request was faster with it, or has changed the account.
    """
    try:
        carry_out(identity.writer.submit, steps)
    except RecordConflict:
        raise InvalidTotpCode("The code was used before: wait for the next one") from None


def _account_name(identity: Identity, user_id: str) -> str:
    """Return what an authenticator app shows: the address, or the id of the user."""
    where = [Condition("user_id", "=", user_id), Condition("kind", "=", "email")]
    found = identity.store.point(lambda reader: reader.records("identities", where))
    return str(found[0]["subject"]) if found else user_id
