"""``POST /api/auth/reauth``: proves anew who the user of a session is, by a password, a code or
a passkey.

The session gets a new `auth_time`, so that changes that need a fresh sign-in go through
(`pylon.auth.freshness`). Its token and its sockets stay.

Invariants: an attempt is counted before the password or the code is compared. The audit log has
the proof, or its refusal. Called by
`workers.identity.actions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pylon.api.identity.reauth_bodies import ReauthAnswer, ReauthBody
from pylon.auth.password_rules import normal_password
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    InvalidCredentials,
    InvalidTotpCode,
    PasskeyVerifyFailed,
    RecordConflict,
    SessionExpired,
    TotpNotEnrolled,
)
from pylon.storage.auth_ops import CheckRecords, Condition, SetRecords
from workers.identity import rates
from workers.identity.identity import Call, Identity
from workers.identity.passkey_proofs import prove
from workers.identity.second_factor import accept_code, read_factors
from workers.identity.sign_in import audit_of, refuse_locked

_WRONG = "The password, the code or the passkey is wrong"


def reauthenticate(identity: Identity, call: Call) -> IdentityAnswer:
    """Carry out the flow.

    Raises:
        InvalidCredentials: the password or the code is wrong.
        RateLimited: too many attempts of this user.
        AccountLocked
        SessionExpired: the session has ended meanwhile.
    """
    body = call.decode(ReauthBody)
    user_id, session_id = call.facts.auth.user_id, call.facts.session_id
    assert user_id is not None and session_id is not None, "the route takes sessions only"
    units = rates.take_rates(identity, (rates.REAUTH_USER, user_id))
    if units:
        carry_out(identity.writer.submit, units)
    try:
        steps = (
            _check_password(identity, user_id, body.password) if body.password is not None
            else _check_passkey(identity, call, user_id, body.credential)
            if body.credential is not None
            else _check_code(identity, user_id, body.code or "")
        )
    except InvalidCredentials:
        _note_refusal(identity, call, user_id)
        raise
    refuse_locked(identity, user_id)
    now_s = identity.now_s()
    is_session = [
        Condition("session_id", "=", session_id), Condition("user_id", "=", user_id)
    ]
    try:
        carry_out(identity.writer.submit, [
            *steps,
            SetRecords("sessions", is_session, {"auth_time": now_s}, 1),
            SetRecords(
                "sessions", [Condition("family", "=", call.facts.family or session_id)],
                {"auth_time": now_s},
            ),
            audit_of(identity, call, "reauth", user_id),
        ])
    except RecordConflict:
        left = identity.store.point(lambda reader: reader.count_records("sessions", is_session))
        if not left:
            raise SessionExpired("The session has ended: sign in again") from None
        _note_refusal(identity, call, user_id)
        raise InvalidCredentials(_WRONG) from None  # the code or the password was used up, changed
    return json_answer(ReauthAnswer(auth_time=now_s))


def _note_refusal(identity: Identity, call: Call, user_id: str) -> None:
    carry_out(identity.writer.submit, [
        audit_of(identity, call, "reauth", user_id, reason=InvalidCredentials.code)
    ])


def _check_password(identity: Identity, user_id: str, password: str) -> list[Step]:
    """Return the step that holds while this is the password."""
    of_user = Condition("user_id", "=", user_id)
    found = identity.store.point(lambda reader: reader.records("passwords", [of_user]))
    normal = normal_password(password)
    if normal is None or not found:
        identity.hashes.verify_nobody((normal or "").encode())
        raise InvalidCredentials(_WRONG)
    phc = str(found[0]["phc"])
    if not identity.hashes.verify(phc, normal.encode()):
        raise InvalidCredentials(_WRONG)
    return [CheckRecords("passwords", [of_user, Condition("phc", "=", phc)], 1)]


def _check_passkey(
    identity: Identity, call: Call, user_id: str, credential: Mapping[str, Any] | str
) -> list[Step]:
    """Return the steps that use the answer of the passkey up."""
    try:
        proof = prove(identity, call, credential)
    except PasskeyVerifyFailed:
        raise InvalidCredentials(_WRONG) from None
    if proof.user_id != user_id:
        raise InvalidCredentials(_WRONG)
    return proof.steps


def _check_code(identity: Identity, user_id: str, code: str) -> list[Step]:
    """Return the steps that use the code up."""
    try:
        return accept_code(identity, user_id, read_factors(identity, user_id), code).steps
    except (InvalidTotpCode, TotpNotEnrolled):
        raise InvalidCredentials(_WRONG) from None
