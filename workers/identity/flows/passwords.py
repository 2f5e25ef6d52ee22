"""Flows of passwords: sign in, change (spec/identity.md §1.3).

Each sign-in costs one password hash whether its account exists or not, and reads and writes the
same records. So neither answers nor times reveal who has an account.

Invariants: attempts are counted before the password is compared. The password hash that a decision
rests on is a condition of its transaction, so a sign-in with a password that changes meanwhile
fails. Called by `workers.identity.actions`.
"""

from __future__ import annotations

from pylon.api.identity.password_bodies import ChangeBody, LoginBody
from pylon.auth.password_rules import normal_password
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    EmailNotVerified,
    InvalidCredentials,
    MissingPassword,
    NoPasswordSet,
    RateLimited,
    RecordConflict,
    WrongPassword,
)
from pylon.rates import address_subject
from pylon.storage.auth_ops import Condition
from workers.identity import rates
from workers.identity.accounts import EMAIL
from workers.identity.commit import commit
from workers.identity.identity import Call, Identity
from workers.identity.known_devices import known_device
from workers.identity.rates import return_units
from workers.identity.sign_in import finish_sign_in
from workers.identity.stored_addresses import stored_address
from workers.identity.stored_passwords import (
    METHOD,
    audit,
    check_password,
    checked_password,
    drop_after_change,
    is_password,
    put_password,
    spend,
    typed_key,
)


def login(identity: Identity, call: Call) -> IdentityAnswer:
    """Sign in with a password, and with the code of an authenticator if it came along.

    Raises:
        InvalidCredentials: the address or the password is wrong.
        TotpRequired, InvalidTotpCode, AccountLocked, EmailNotVerified: the password is right.
        MissingPassword, RateLimited, Unavailable
    """
    body = call.decode(LoginBody)
    if not body.password:
        raise MissingPassword("password is required")
    key = typed_key(identity, body.email)
    found = identity.store.point(lambda reader: reader.records("identities", [
        Condition("kind", "=", EMAIL), Condition("subject", "=", key)
    ]))
    user_id = str(found[0]["user_id"]) if found else None
    of_account = _spend_attempt(identity, call, key, user_id)
    phc = check_password(identity, user_id, body.password)
    if user_id is None or phc is None:
        carry_out(identity.writer.submit, [audit(
            identity, call, "sign_in_failed", user_id, reason=InvalidCredentials.code
        )])
        raise InvalidCredentials("The address or the password is wrong")
    if identity.app.config.require_email_verification and found[0]["verified_at"] is None:
        raise EmailNotVerified(
            "The address of this account is not confirmed yet",
            hint="Enter the code of the mail, or ask for a code to sign in with",
        )
    steps: list[Step] = [*return_units(identity, *of_account), is_password(user_id, phc)]
    if identity.hashes.is_outdated(phc):
        steps.append(put_password(
            identity, user_id, identity.hashes.make(_form(body.password)), is_new=False
        ))
    try:
        return finish_sign_in(identity, call, user_id, METHOD, steps, code=body.totp)
    except RecordConflict:  # the password has changed meanwhile
        raise InvalidCredentials("The address or the password is wrong") from None


def _form(password: str) -> bytes:
    """Return the form of an accepted password that is hashed from now on."""
    return (normal_password(password) or password).encode("utf-8", "replace")


def _spend_attempt(
    identity: Identity, call: Call, key: str, user_id: str | None
) -> tuple[rates.Unit, ...]:
    """Spend the units of an attempt. Return those to give back if it succeeds.

    Raises:
        RateLimited: too many attempts.
    """
    address, config = call.facts.address, identity.app.config
    at_address = f"{key} {address_subject(address)}"
    device = known_device(identity, call, user_id)
    if device is not None:
        of_account: rates.Unit = (rates.LOGIN_DEVICE, device)
    else:
        of_account = (rates.login_account(config), key)
    try:
        spend(
            identity, (rates.login_ip(config), address), (rates.LOGIN_ACCOUNT_IP, at_address),
            of_account,
        )
    except RateLimited as ex:
        if ex.details.get("rate") == rates.login_ip(config).name:
            raise
        raise RateLimited(
            ex.message, hint="A code by mail, or a new password, still lets you in", **ex.details
        ) from None
    return ((rates.LOGIN_ACCOUNT_IP, at_address), of_account)


def change(identity: Identity, call: Call) -> IdentityAnswer:
    """Replace the password of the caller. All sessions end, and a new one begins.

    Raises:
        MissingPassword, WeakPassword, PasswordTooLong, PwnedPassword
        NoPasswordSet: the account has none.
        WrongPassword: the current one is another.
        RateLimited, Unavailable
    """
    body = call.decode(ChangeBody)
    for name, value in (
        ("currentPassword", body.current_password), ("newPassword", body.new_password)
    ):
        if not value:
            raise MissingPassword(f"{name} is required")
    user_id = str(call.facts.auth.user_id)
    if not _has_password(identity, user_id):
        raise NoPasswordSet(
            "This account has no password", hint="Set one with a link of password/reset/request"
        )
    address = stored_address(identity, user_id)
    normal = checked_password(identity, body.new_password, "newPassword", address)
    spend(identity, (rates.REAUTH_USER, user_id))
    old = check_password(identity, user_id, body.current_password or "")
    if old is None:
        carry_out(identity.writer.submit, [audit(
            identity, call, "password_change", user_id, reason=WrongPassword.code
        )])
        raise WrongPassword("The current password is another one")
    phc = identity.hashes.make(normal.encode())
    session = identity.issuer.issue(
        user_id, device=call.facts.device, methods=_methods_of(identity, call),
        tenant_id=call.facts.auth.tenant_id,
    )
    notices = [] if address is None else identity.mails.notices("PASSWORD_CHANGED", address)
    try:
        families = commit(identity, [
            is_password(user_id, old), put_password(identity, user_id, phc),
            *drop_after_change(identity, user_id), session.put, *notices,
            audit(identity, call, "password_change", user_id),
        ])
    except RecordConflict:
        raise WrongPassword("The current password is another one") from None
    identity.wake_mail()
    return json_answer(
        {
            "changed": True, "revoked_sessions": len(set(families) - {call.facts.family}),
            "token": session.token, "user_id": user_id, "expires_at": session.put.expires_at_s,
        },
        session_token=session.token, ends_sessions=True,
    )


def _methods_of(identity: Identity, call: Call) -> list[str]:
    """Return how the caller's session was signed in; its second factor stays proved."""
    session_id = call.facts.session_id or ""
    session = identity.store.point(lambda reader: reader.session(session_id))
    methods = [] if session is None else session.methods.split()
    return methods or [METHOD]


def _has_password(identity: Identity, user_id: str) -> bool:
    of_user = [Condition("user_id", "=", user_id)]
    return identity.store.point(lambda reader: reader.count_records("passwords", of_user)) > 0
