"""Flows of administrators: make, list, lock and unlock users; set a password; forget a second
factor (spec/identity.md §1.0, §1.10).

A route names a user by id or by e-mail address. A locked user signs in by no means, and their
sessions and keys end within a second. Each flow leaves an event of the audit whose actor is the
administrator.

Invariant: what a lock ends, ends in the transaction of the lock, and a sign-in that is under way
has the lock as a condition (`sign_in`). Called by `workers.identity.actions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pylon.api.identity.user_bodies import (
    CreateUserBody,
    LockAnswer,
    LockUserBody,
    PasswordSetAnswer,
    SetPasswordBody,
    TotpResetAnswer,
    UserAnswer,
)
from pylon.auth.audit import audit_step
from pylon.auth.display_names import clean_name
from pylon.auth.email_address import parse_email
from pylon.auth.password_rules import new_password
from pylon.auth.revocation import end_credentials_of
from pylon.auth.transactions import Step, carry_out
from pylon.auth_context import ADMIN_USER_ID
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import EmailTaken, InvalidEmail, RecordConflict, RecordExists, UserNotFound
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord, SetRecords
from pylon.storage.auth_tables import Value
from pylon.storage.interface import Reader
from workers.identity.accounts import EMAIL, find_account, new_user
from workers.identity.commit import commit
from workers.identity.identity import Call, Identity

_LISTED: Final = 200
_TRIES: Final = 3


def list_users(identity: Identity, call: Call) -> IdentityAnswer:
    """Answer with the newest users, or with one."""
    query = call.params.get("user")
    if query is not None:
        found = [_user_of(identity, query)]
    else:
        found = identity.store.point(
            lambda reader: reader.records("users", (), ("-created_at",), _LISTED)
        )
    answers = identity.store.point(lambda reader: [_describe(reader, user) for user in found])
    return json_answer(answers)


def create_user(identity: Identity, call: Call) -> IdentityAnswer:
    """Make a user.

    Raises:
        InvalidEmail, WeakPassword, PasswordTooLong, PwnedPassword, InvalidName, UserCreateFailed
        EmailTaken: the address is somebody's.
    """
    body = call.decode(CreateUserBody)
    email = parse_email(body.email, is_dev=identity.app.config.dev_mode)
    name = None if body.name is None else clean_name(body.name, "name")
    phc = None if body.password is None else _hash(identity, body.password, email.text)
    if find_account(identity, email) is not None:
        raise EmailTaken("This address has an account already")
    user_id, steps = new_user(identity, email, is_verified=body.verified, name=name)
    if phc is not None:
        steps.append(_put_password(identity, user_id, phc))
    try:
        carry_out(identity.writer.submit, [*steps, _audit(identity, call, "sign_up", user_id)])
    except RecordExists:
        raise EmailTaken("This address has an account already") from None
    return _answer_user(identity, user_id, 201)


def lock_user(identity: Identity, call: Call) -> IdentityAnswer:
    """Lock a user, and end all their credentials."""
    reason = call.decode(LockUserBody).reason
    return _set_lock(identity, call, identity.now_s(), reason)


def unlock_user(identity: Identity, call: Call) -> IdentityAnswer:
    """Unlock a user, who signs in again."""
    return _set_lock(identity, call, None, None)


def set_password(identity: Identity, call: Call) -> IdentityAnswer:
    """Set the password of a user; their sessions end.

    Raises:
        UserNotFound, WeakPassword, PasswordTooLong, PwnedPassword
    """
    user = _user_of(identity, call.params["user_id"])
    user_id = str(user["user_id"])
    phc = _hash(identity, call.decode(SetPasswordBody).password, _email_of(identity, user_id))
    families = commit(identity, [
        CheckRecords("users", [Condition("user_id", "=", user_id)], 1),
        _put_password(identity, user_id, phc),
        DropRecords("trusted_devices", [Condition("user_id", "=", user_id)]),
        *end_credentials_of(user_id, identity.now_s()),
        _audit(identity, call, "password_reset", user_id),
    ])
    return json_answer(PasswordSetAnswer(changed=True, revoked_sessions=len(families)))


def reset_totp(identity: Identity, call: Call) -> IdentityAnswer:
    """Forget the authenticator and the backup codes of a user.

    Raises:
        UserNotFound
    """
    user_id = str(_user_of(identity, call.params["user_id"])["user_id"])
    of_user = [Condition("user_id", "=", user_id)]
    had = identity.store.point(lambda reader: reader.count_records("totp", of_user)) > 0
    commit(identity, [
        *(DropRecords(table, of_user) for table in ("totp", "backup_codes", "trusted_devices")),
        _audit(identity, call, "totp_disable", user_id),
    ])
    return json_answer(TotpResetAnswer(reset=had))


def _set_lock(
    identity: Identity, call: Call, locked_at: int | None, reason: str | None
) -> IdentityAnswer:
    name = call.params["user_id"]
    for _ in range(_TRIES):
        user_id = _id_of(identity, name)
        of_user = [Condition("user_id", "=", user_id)]
        is_known = identity.store.point(lambda reader: reader.count_records("users", of_user))  # noqa: B023
        values: dict[str, Value] = {"locked_at": locked_at, "lock_reason": reason}
        steps: list[Step] = [
            SetRecords("users", of_user, values, 1) if is_known else
            PutRecord("users", {"user_id": user_id, "created_at": identity.now_s(), **values}),
        ]
        if locked_at is not None:
            steps += end_credentials_of(user_id, locked_at)
        action = "user_lock" if locked_at is not None else "user_unlock"
        steps.append(_audit(identity, call, action, user_id, reason))
        try:
            families = commit(identity, steps)
        except (RecordConflict, RecordExists):
            continue
        return json_answer(
            LockAnswer(locked=locked_at is not None, revoked_sessions=len(families))
        )
    raise UserNotFound(f'There is no user "{name[:100]}"')


def _user_of(identity: Identity, name: str) -> dict[str, Value]:
    """Return the record of a user, by id or address.

    Raises:
        UserNotFound
    """
    user_id = _id_of(identity, name)
    found = identity.store.point(
        lambda reader: reader.records("users", [Condition("user_id", "=", user_id)])
    )
    if not found:
        raise UserNotFound(f'There is no user "{name[:100]}" who may sign in')
    return found[0]


def _id_of(identity: Identity, name: str) -> str:
    """Return the id of a user, by id or address."""
    if "@" not in name:
        return name
    try:
        account = find_account(
            identity, parse_email(name, is_dev=identity.app.config.dev_mode)
        )
    except InvalidEmail:
        account = None
    if account is None:
        raise UserNotFound(f'There is no user with the address "{name[:100]}"')
    return account.user_id


def _email_of(identity: Identity, user_id: str) -> str:
    where = [Condition("user_id", "=", user_id), Condition("kind", "=", EMAIL)]
    found = identity.store.point(lambda reader: reader.records("identities", where))
    return str(found[0]["subject"]) if found else ""


def _hash(identity: Identity, password: str, email: str) -> str:
    normal = new_password(password)
    identity.rules.check(normal, email)
    return identity.hashes.make(normal.encode())


def _put_password(identity: Identity, user_id: str, phc: str) -> PutRecord:
    return PutRecord(
        "passwords", {"user_id": user_id, "phc": phc, "changed_at": identity.now_s()}, replace=True
    )


def _answer_user(identity: Identity, user_id: str, status: int) -> IdentityAnswer:
    user = _user_of(identity, user_id)
    return json_answer(identity.store.point(lambda reader: _describe(reader, user)), status)


def _describe(reader: Reader, user: dict[str, Value]) -> UserAnswer:
    of_user = [Condition("user_id", "=", user["user_id"])]
    found: Sequence[dict[str, Any]] = reader.records("identities", of_user, ("created_at",))
    email = next((each for each in found if each["kind"] == EMAIL), None)
    methods = [str(each["kind"]) for each in found]
    if reader.count_records("passwords", of_user):
        methods.append("password")
    last, locked = user["last_sign_in_at"], user["locked_at"]
    return UserAnswer(
        user_id=str(user["user_id"]), email=None if email is None else str(email["subject"]),
        is_verified=email is not None and email["verified_at"] is not None,
        sign_in_methods=methods,
        has_totp=reader.count_records("totp", of_user) > 0,
        created_at=int(user["created_at"] or 0),
        last_sign_in_at=last if isinstance(last, int) else None,
        locked_at=locked if isinstance(locked, int) else None,
        lock_reason=None if user["lock_reason"] is None else str(user["lock_reason"]),
    )


def _audit(
    identity: Identity, call: Call, action: str, user_id: str, reason: str | None = None
) -> PutRecord:
    return audit_step(
        action, identity.app.clock, identity.app.random, user_id=user_id,
        actor_id=ADMIN_USER_ID, ip=call.facts.address, user_agent=call.facts.device, reason=reason,
    )
