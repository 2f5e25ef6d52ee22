"""Stored passwords: what the flows of registrations, sign-ins and resets do with a password.

Invariants: `check_password` costs one password hash whether the account exists or not, and whether
it has a password or not. `is_password` makes the hash that a decision rests on a condition of its
transaction, so a sign-in with a password that changes meanwhile fails. No password and no hash
reaches a log. Called by the flows.
"""

from __future__ import annotations

from typing import Final

from pylon.auth.audit import audit_step
from pylon.auth.email_address import parse_email
from pylon.auth.password_rules import new_password, normal_password
from pylon.auth.revocation import end_credentials_of
from pylon.auth.transactions import Step, carry_out
from pylon.errors import InvalidEmail, MissingPassword
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord, SetRecords
from workers.identity import codes, rates
from workers.identity.identity import Call, Identity
from workers.identity.rates import take_rates

METHOD: Final = "password"  # of a session
_NOBODY: Final = "nobody"  # no user has this id
_TYPED_CHARS: Final = 254  # of an address that is none, as a subject of rates


def checked_password(
    identity: Identity, given: str | None, name: str, address: str | None
) -> str:
    """Return the form of a new password that is hashed.

    Args:
        name: of the member of the body.
        address: of the account; its local part is no password.

    Raises:
        MissingPassword, WeakPassword, PasswordTooLong, PwnedPassword
    """
    if not given:
        raise MissingPassword(f"{name} is required")
    normal = new_password(given)
    identity.rules.check(normal, address)
    return normal


def check_password(identity: Identity, user_id: str | None, given: str) -> str | None:
    """Return the stored hash if the password is the user's, else None. One hash is computed in any
    case, and a second one if the password has another normal form: imported hashes may be of the
    form that was typed.

    Args:
        user_id: None for an account that does not exist.
    """
    records = identity.store.point(lambda reader: reader.records(
        "passwords", [Condition("user_id", "=", user_id or _NOBODY)]
    ))
    phc = str(records[0]["phc"]) if records else None
    normal = normal_password(given)
    for form in dict.fromkeys(form for form in (normal, given) if form is not None):
        if phc is None:
            identity.hashes.verify_nobody(form.encode("utf-8", "replace"))
        elif identity.hashes.verify(phc, form.encode("utf-8", "replace")):
            return phc
    return None


def is_password(user_id: str, phc: str) -> Step:
    """Return the step that holds while the account has this password."""
    return CheckRecords(
        "passwords", [Condition("user_id", "=", user_id), Condition("phc", "=", phc)], 1
    )


def put_password(
    identity: Identity, user_id: str, phc: str, *, is_new: bool = True
) -> Step:
    """Return the step that sets a password. `is_new`: False for another hash of the same one."""
    if not is_new:
        return SetRecords("passwords", [Condition("user_id", "=", user_id)], {"phc": phc})
    return PutRecord(
        "passwords", {"user_id": user_id, "phc": phc, "changed_at": identity.now_s()}, replace=True
    )


def typed_key(identity: Identity, typed: str) -> str:
    """Return the e-mail key of what somebody typed. A text that is no address is its own key: no
    account has it, and it is a subject of rates like others."""
    try:
        return parse_email(typed, is_dev=identity.app.config.dev_mode).key
    except InvalidEmail:
        return typed.strip().lower()[:_TYPED_CHARS].replace("\0", "")


def spend(identity: Identity, *units: rates.Unit) -> None:
    """Spend a unit of each rate, in a write of its own.

    Raises:
        RateLimited: one of them is used up.
    """
    steps = take_rates(identity, *units)
    if steps:
        carry_out(identity.writer.submit, steps)


def audit(
    identity: Identity, call: Call, action: str, user_id: str | None, *,
    reason: str | None = None,
) -> PutRecord:
    """Return the step that notes an event. `reason`: the code of why it failed."""
    return audit_step(
        action, identity.app.clock, identity.app.random, user_id=user_id, ip=call.facts.address,
        user_agent=call.facts.device, success=reason is None, reason=reason,
        actor_id=None if reason is None else call.facts.auth.user_id,
    )


def drop_after_change(identity: Identity, user_id: str) -> list[Step]:
    """Return the steps that end what an earlier password has opened: sessions, trusted devices,
    and links on their way, except one that undoes a change of the address."""
    of_user = Condition("user_id", "=", user_id)
    return [
        *end_credentials_of(user_id, identity.now_s()),
        DropRecords("trusted_devices", [of_user]),
        codes.drop_tokens(user_id),
    ]
