"""The end of every sign-in: the question for a second factor, and the session.

A flow that has checked a first factor (password, code, link, reset, provider, invite) calls
`finish_sign_in` with the conditional steps that use the factor up. If the account has an
authenticator and the browser is not trusted, it stores a challenge in the same transaction and
raises `TotpRequired`. Else it stores the session. `complete_challenge` ends the sign-in later. A
guest who signs in brings their rows along (`carry_over`).

Invariants: no other module makes a session from a first factor, so no first factor goes round the
second one. The transaction checks again whether a code is asked for: an authenticator that is
enrolled meanwhile counts. A locked account gets neither session nor challenge. A token leaves the
process only after its session is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.auth.audit import audit_step
from pylon.auth.keys import hash_token
from pylon.auth.transactions import Step
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    AccountLocked,
    InvalidChallenge,
    InvalidTotpCode,
    NotFound,
    RecordConflict,
    TotpRequired,
    Unavailable,
    UniqueViolation,
)
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord, SetRecords
from workers.identity.carry_over import plan_carry
from workers.identity.commit import commit
from workers.identity.identity import Call, Identity
from workers.identity.known_devices import new_device_notice, remember_device
from workers.identity.second_factor import (
    Accepted,
    Factors,
    accept_code,
    count_attempt,
    read_factors,
)
from workers.identity.trusted_devices import NewDevice, random_token, trust_device, trusted_check

CHALLENGE: Final = "mfa"  # a purpose of `tokens`
_PREFIX: Final = "mfa_"
_TRIES: Final = 3
_INVALID: Final = "The challenge is unknown, has expired, or was answered: sign in again"


class _Waiting(msgspec.Struct, frozen=True):
    """What a challenge keeps of the first factor."""

    method: str
    extra: dict[str, Any]


def finish_sign_in(
    identity: Identity, call: Call, user_id: str, method: str, steps: Sequence[Step] = (), *,
    extra: Mapping[str, Any] | None = None, code: str | None = None, is_two_factor: bool = False,
) -> IdentityAnswer:
    """End a sign-in whose first factor is right. Returns the answer with the session.

    Args:
        method: of the first factor, for example `password`.
        steps: use the factor up; carried out with the session, or with the challenge. If they drop
            the authenticator (the proof of a mailbox does, of an account that somebody else may
            have made), no code is asked for.
        extra: further members of the answer.
        code: of the second factor, if it came along.
        is_two_factor: the factor counts as two (a passkey).

    Raises:
        TotpRequired: the steps were carried out, and the challenge is stored.
        InvalidTotpCode, RateLimited: of `code`; nothing was carried out.
        AccountLocked: nothing was carried out.
        RecordConflict, RecordExists: one of the steps does not hold.
    """
    for _ in range(_TRIES):
        factors = Factors() if _drops_factors(steps) else read_factors(identity, user_id)
        refuse_locked(identity, user_id)
        trust = trusted_check(identity, call, user_id) if factors.is_on else None
        methods = [method]
        checks: list[Step] = []
        if trust is not None:
            checks.append(trust)
        if factors.is_on and code is not None:
            count_attempt(identity, user_id, call.facts.address)
            accepted = _accept_typed_code(identity, call, user_id, factors, method, code)
            checks += accepted.steps
            methods.append(accepted.method)
        is_asked = factors.is_on and trust is None and code is None and not is_two_factor
        if not is_two_factor:
            checks.append(factors.as_before(user_id))
        try:
            if is_asked:
                _ask(identity, user_id, factors, [*steps, *checks], _Waiting(
                    method, dict(extra or {})
                ))
            return _store_session(
                identity, call, user_id, methods, [*steps, *checks], extra or {}
            )
        except RecordConflict:
            refuse_locked(identity, user_id)
            if _drops_factors(steps) or not _has_changed(
                identity, call, user_id, factors, trust
            ):
                raise
    raise Unavailable("The account changes meanwhile: try again")


def _accept_typed_code(
    identity: Identity, call: Call, user_id: str, factors: Factors, method: str, code: str
) -> Accepted:
    """Return the steps that use up a code that came with the first factor `method`. A wrong one is
    in the audit log.

    Raises:
        InvalidTotpCode
    """
    try:
        return accept_code(identity, user_id, factors, code)
    except InvalidTotpCode as ex:
        commit(identity, [audit_of(
            identity, call, "sign_in_failed", user_id, reason=ex.code, metadata={"method": method}
        )])
        raise


def complete_challenge(
    identity: Identity, call: Call, challenge: str, *, trusts_device: bool,
    accept: Callable[[str, Factors], Accepted],
) -> IdentityAnswer:
    """End a sign-in by the second factor that its challenge asks for.

    Args:
        accept: checks the factor for a user, and returns the steps that use it up.

    Raises:
        InvalidChallenge: it is unknown, has expired, was answered, or had too many wrong codes.
        InvalidTotpCode, RateLimited, AccountLocked
    """
    now_s, hashed = identity.now_s(), hash_token(challenge)
    is_open = [
        Condition("hash", "=", hashed), Condition("purpose", "=", CHALLENGE),
        Condition("used_at", "null"), Condition("expires_at", ">", now_s),
    ]
    records = identity.store.point(lambda reader: reader.records("tokens", is_open))
    if not records:
        raise InvalidChallenge(_INVALID)
    user_id = str(records[0]["user_id"])
    waiting = msgspec.json.decode(str(records[0]["data"]), type=_Waiting)
    try:
        count_attempt(identity, user_id, call.facts.address, [SetRecords(
            "tokens", [*is_open, Condition("attempts", "<", limits.CHALLENGE_ATTEMPTS)], {}, 1,
            {"attempts": 1},
        )])
    except RecordConflict:
        raise InvalidChallenge(_INVALID) from None
    refuse_locked(identity, user_id)
    factors = read_factors(identity, user_id)
    if not factors.is_on:  # the authenticator has gone since
        raise InvalidChallenge(_INVALID)
    try:
        accepted = accept(user_id, factors)
    except InvalidTotpCode as ex:
        commit(identity, [audit_of(
            identity, call, "totp_challenge_failed", user_id, reason=ex.code
        )])
        raise
    device = trust_device(identity, call, user_id) if (
        trusts_device and call.facts.is_trusted_origin
    ) else None
    uses: list[Step] = [SetRecords("tokens", is_open, {"used_at": now_s}, 1), *accepted.steps]
    try:
        return _store_session(
            identity, call, user_id, [waiting.method, accepted.method], uses, waiting.extra, device
        )
    except RecordConflict:
        left = identity.store.point(lambda reader: reader.count_records("tokens", is_open))
        if left:
            raise InvalidTotpCode("The code was used before: wait for the next one") from None
        raise InvalidChallenge(_INVALID) from None


def audit_of(
    identity: Identity, call: Call, action: str, user_id: str | None, *,
    reason: str | None = None, metadata: dict[str, Any] | None = None,
) -> PutRecord:
    """Return the step that notes an event of a call. `reason`: the code of why it failed."""
    return audit_step(
        action, identity.app.clock, identity.app.random, user_id=user_id,
        tenant_id=call.facts.auth.tenant_id, ip=call.facts.address,
        user_agent=call.facts.device, success=reason is None, reason=reason, metadata=metadata,
        actor_id=None if reason is None else call.facts.auth.user_id,
    )


def refuse_locked(identity: Identity, user_id: str) -> None:
    """Raise if an administrator has locked the account.

    Raises:
        AccountLocked
    """
    if identity.store.point(lambda reader: reader.count_records("users", _locked(user_id))):
        raise AccountLocked("This account is locked", hint="Ask the operator of this service")


def _locked(user_id: str) -> list[Condition]:
    return [Condition("user_id", "=", user_id), Condition("locked_at", "not null")]


def _drops_factors(steps: Sequence[Step]) -> bool:
    return any(isinstance(step, DropRecords) and step.table == "totp" for step in steps)


def _is_open(user_id: str) -> CheckRecords:
    """Return the step that holds while there is an account, and nobody has locked it."""
    return CheckRecords(
        "users", [Condition("user_id", "=", user_id), Condition("locked_at", "null")], 1
    )


def _has_changed(
    identity: Identity, call: Call, user_id: str, factors: Factors, trust: Step | None
) -> bool:
    """Whether what decided on the second factor is another by now."""
    now = read_factors(identity, user_id)
    trust_now = trusted_check(identity, call, user_id) if now.is_on else None
    return now != factors or (trust is None) != (trust_now is None)


def _ask(
    identity: Identity, user_id: str, factors: Factors, steps: Sequence[Step], waiting: _Waiting
) -> None:
    """Store a challenge, and raise it."""
    challenge = _PREFIX + random_token(identity)
    now_s = identity.now_s()
    commit(identity, [
        *steps, _is_open(user_id),
        PutRecord("tokens", {
            "hash": hash_token(challenge), "purpose": CHALLENGE, "user_id": user_id,
            "email_key": None, "data": msgspec.json.encode(waiting).decode(), "attempts": 0,
            "created_at": now_s, "expires_at": now_s + limits.CHALLENGE_S, "used_at": None,
        }),
    ])
    raise TotpRequired(
        "Enter the code of your authenticator app", challenge=challenge,
        expires_in=limits.CHALLENGE_S,
        methods=[*factors.methods, *_other_methods(identity, user_id)],
    )


def _other_methods(identity: Identity, user_id: str) -> list[str]:
    of_user = [Condition("user_id", "=", user_id)]
    count = identity.store.point(lambda reader: reader.count_records("passkeys", of_user))
    return ["passkey"] if count else []


def _store_session(
    identity: Identity, call: Call, user_id: str, methods: Sequence[str], steps: Sequence[Step],
    extra: Mapping[str, Any], device: NewDevice | None = None,
) -> IdentityAnswer:
    """Store the session. If the caller is a guest, their rows become the user's."""
    session = identity.issuer.issue(user_id, device=call.facts.device, methods=methods)
    known, known_cookies = remember_device(identity, call, user_id)
    notices = new_device_notice(identity, call, user_id, methods[0])
    used = [
        *steps, _is_open(user_id), session.put,
        SetRecords(
            "users", [Condition("user_id", "=", user_id)],
            {"last_sign_in_at": identity.now_s()},
        ),
        *([] if device is None else [device.put]), *known, *notices,
        audit_of(identity, call, "sign_in", user_id, metadata={"methods": list(methods)}),
    ]
    body = {
        "token": session.token, "user_id": user_id, "expires_at": session.put.expires_at_s, **extra
    }
    for tries_left in reversed(range(_TRIES)):
        carry = plan_carry(identity, call.facts, user_id, moves_rows=tries_left > 0)
        try:
            commit(identity, used if carry is None else [*used, *carry.steps])
        except (NotFound, UniqueViolation):
            if carry is None or not tries_left:  # not one of the guest's rows
                raise
            continue  # a row of the guest has changed meanwhile: read them again
        if carry is not None:
            body.update(carry.extra())
        break
    if notices:
        identity.wake_mail()
    cookies = (*known_cookies, *(() if device is None else (device.cookie,)))
    return json_answer(body, session_token=session.token, cookies=cookies)

