"""Proofs by passkey: the challenge that a passkey signs, and what its right answer uses up.

A challenge has 256 random bits and is a record of `tokens`, by its hash, with a purpose of its own
for registrations and one for proofs. A proof is the first factor of a sign-in, the second one, or a
renewal of a session. `prove` returns the conditional steps that use up the challenge and move the
counter of the passkey on: of two requests with one answer one is refused with `RecordConflict`.

Invariants: a wrong answer uses its challenge up too. A counter that goes back is noted in the audit
log (`passkey_clone`) once the signature is right, and signs nobody in. Called by the flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pylon import limits
from pylon.auth.keys import hash_token
from pylon.auth.transactions import Step, carry_out
from pylon.errors import PasskeyVerifyFailed, RecordConflict
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from pylon.storage.auth_tables import Value
from workers.identity import passkeys
from workers.identity.identity import Call, Identity
from workers.identity.rates import VERIFY_IP, take_rates
from workers.identity.sign_in import audit_of
from workers.identity.trusted_devices import random_token

REGISTER: Final = "passkey_register"  # purposes of `tokens`
PROVE: Final = "passkey_login"
METHOD: Final = "passkey"
TABLE: Final = "passkeys"


@dataclass(frozen=True, slots=True)
class Proof:
    """A passkey has proved who its user is: `steps` use the proof up."""

    user_id: str
    steps: list[Step]


def new_challenge(
    identity: Identity, purpose: str, user_id: str | None = None, session: str | None = None
) -> tuple[str, PutRecord]:
    """Return a challenge, and the step that stores it.

    Args:
        session: the family of the session that alone may answer it.
    """
    challenge, now_s = random_token(identity), identity.now_s()
    return challenge, PutRecord("tokens", {
        "hash": hash_token(challenge), "purpose": purpose, "user_id": user_id, "data": session,
        "attempts": 0, "created_at": now_s, "expires_at": now_s + limits.PASSKEY_CHALLENGE_S,
    })


def open_challenge(
    identity: Identity, purpose: str, challenge: str, user_id: str | None = None,
    session: str | None = None,
) -> list[Condition] | None:
    """Return the conditions that select an open challenge, or None if there is none."""
    where = [
        Condition("hash", "=", hash_token(challenge)), Condition("purpose", "=", purpose),
        Condition("used_at", "null"), Condition("expires_at", ">", identity.now_s()),
    ]
    if user_id is not None:
        where += [Condition("user_id", "=", user_id), Condition("data", "=", session or "")]
    found = identity.store.point(lambda reader: reader.count_records("tokens", where))
    return where if found else None


def use_challenge(identity: Identity, where: list[Condition]) -> SetRecords:
    """Return the step that uses a challenge up."""
    return SetRecords("tokens", where, {"used_at": identity.now_s()}, 1)


def spend_challenge(identity: Identity, where: list[Condition], *steps: Step) -> None:
    """Use a challenge up whose answer was wrong. `steps` are carried out with it."""
    try:
        carry_out(identity.writer.submit, [use_challenge(identity, where), *steps])
    except RecordConflict:
        return  # another request has used it up, and has noted why


def prove(identity: Identity, call: Call, credential: Mapping[str, Any] | str) -> Proof:
    """Check the answer of a passkey to a challenge of the purpose `PROVE`.

    Raises:
        PasskeyVerifyFailed: see the error.
        RateLimited: too many answers from this address.
        WebauthnNotConfigured
    """
    party = passkeys.relying_party(identity.app.config)
    units = take_rates(identity, (VERIFY_IP, call.facts.address))
    if units:
        carry_out(identity.writer.submit, units)
    try:
        answer = passkeys.read_answer(credential)
    except ValueError:
        raise passkeys.verify_failed() from None
    is_open = open_challenge(identity, PROVE, answer.challenge)
    record = _find(identity, answer.credential_id)
    if is_open is None or record is None:
        if is_open is not None:
            spend_challenge(identity, is_open)
        raise passkeys.verify_failed()
    user_id, known = str(record["user_id"]), record["sign_count"]
    public_key = record["public_key"]
    assert isinstance(public_key, bytes) and isinstance(known, int)
    try:
        verified = passkeys.verify_answer(party, answer, user_id, public_key)
    except PasskeyVerifyFailed as ex:
        spend_challenge(identity, is_open, audit_of(
            identity, call, "sign_in_failed", user_id, reason=ex.code,
            metadata={"method": METHOD},
        ))
        raise
    if (verified.sign_count or known) and verified.sign_count <= known:
        spend_challenge(identity, is_open, audit_of(
            identity, call, "passkey_clone", user_id, reason="SIGN_COUNT",
            metadata={"name": record["name"], "known": known, "given": verified.sign_count},
        ))
        raise passkeys.verify_failed()
    is_key = [
        Condition("credential_id", "=", answer.credential_id), Condition("user_id", "=", user_id),
        Condition("sign_count", "<" if verified.sign_count else "=", verified.sign_count),
    ]
    return Proof(user_id, [
        use_challenge(identity, is_open),
        SetRecords(TABLE, is_key, {
            "sign_count": verified.sign_count, "backed_up": int(verified.is_backed_up),
            "last_used_at": identity.now_s(),
        }, 1),
    ])


def _find(identity: Identity, credential_id: str) -> dict[str, Value] | None:
    where = [Condition("credential_id", "=", credential_id)]
    if "\0" in credential_id:
        return None
    found = identity.store.point(lambda reader: reader.records(TABLE, where))
    return found[0] if found else None
