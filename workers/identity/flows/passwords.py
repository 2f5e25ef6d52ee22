"""Flows of passwords: register, sign in, change (spec/identity.md §1.3).

Each request costs one password hash whether its account exists or not, and reads and writes the
same records. So neither answers nor times reveal who has an account, except where `register` says
`EMAIL_TAKEN`; with PYLON_REQUIRE_EMAIL_VERIFICATION it does not.

A row that the app inserted belongs to nobody yet. `register` gives it to nobody who has not proved
the mailbox, since anybody can type its address.

Invariants: attempts are counted before the password is compared. The password hash that a decision
rests on is a condition of its transaction, so a sign-in with a password that changes meanwhile
fails. Called by `workers.identity.actions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pylon.api.identity.password_bodies import ChangeBody, LoginBody, RegisterBody
from pylon.auth.audit import audit_step
from pylon.auth.display_names import clean_name
from pylon.auth.email_address import EmailAddress, parse_email
from pylon.auth.password_rules import new_password, normal_password
from pylon.auth.revocation import end_credentials_of
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    EmailNotConfigured,
    EmailNotVerified,
    EmailTaken,
    InvalidCredentials,
    InvalidEmail,
    MissingPassword,
    NoPasswordSet,
    RateLimited,
    RecordConflict,
    RecordExists,
    Unavailable,
    UniqueViolation,
    WrongPassword,
)
from pylon.rates import address_subject
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord, SetRecords
from workers.identity import codes, rates
from workers.identity.accounts import EMAIL, find_account, new_user
from workers.identity.captcha import require_captcha
from workers.identity.commit import commit
from workers.identity.decoys import complete_reads, decoy_steps
from workers.identity.identity import Call, Identity
from workers.identity.known_devices import known_device
from workers.identity.rates import return_units, take_rates
from workers.identity.sign_in import finish_sign_in
from workers.identity.stored_addresses import public_url, stored_address

METHOD: Final = "password"  # of a session
_NOBODY: Final = "nobody"  # no user has this id
_TRIES: Final = 3
_NEW_ACCOUNT_STEPS: Final = 5  # row, user, identity, password, code
_VERIFY_S: Final = 600  # of the code that a new account gets
_TYPED_CHARS: Final = 254  # of an address that is none, as a subject of rates


# --- Register --------------------------------------------------------------------------------


def register(identity: Identity, call: Call) -> IdentityAnswer:
    """Make an account with a password, and sign in.

    Raises:
        InvalidEmail, DisposableEmail, InvalidName, CaptchaRequired, CaptchaFailed
        MissingPassword, WeakPassword, PasswordTooLong, PwnedPassword
        EmailTaken: the address is somebody's.
        UserCreateFailed: the user entity does not take the row.
        RateLimited, Unavailable
    """
    body = call.decode(RegisterBody)
    email = parse_email(body.email, is_dev=identity.app.config.dev_mode)
    identity.disposable.refuse(email)
    normal = checked_password(identity, body.password, "password", email.text)
    name = None if body.display_name is None else clean_name(body.display_name, "displayName")
    require_captcha(identity, call, body.captcha)
    spend(identity, (rates.REGISTER_IP, call.facts.address))
    phc = identity.hashes.make(normal.encode())
    for _ in range(_TRIES):
        try:
            if identity.app.config.require_email_verification:
                return _register_unverified(identity, call, email, name, phc)
            return _register(identity, call, email, name, phc)
        except (RecordExists, RecordConflict, UniqueViolation):
            continue  # somebody was quicker: read again
    raise Unavailable("The address is being registered: try again")


def _register(
    identity: Identity, call: Call, email: EmailAddress, name: str | None, phc: str
) -> IdentityAnswer:
    account = find_account(identity, email)
    if account is not None:
        raise EmailTaken(
            "This address has an account already",
            hint="Sign in, or set a new password" if account.has_identity else
            "Sign in by a code or a link of a mail, which proves that the address is yours",
        )
    user_id, steps = new_user(identity, email, is_verified=False, name=name)
    mail = _verification_mail(identity, email, user_id)
    extra: dict[str, Any] = {"verification_email_sent": bool(mail.steps)}
    if identity.app.config.dev_mode and mail.code is not None:
        extra["dev_code"] = mail.code
    answer = finish_sign_in(
        identity, call, user_id, METHOD,
        [*steps, put_password(identity, user_id, phc), *mail.steps,
         audit(identity, call, "sign_up", user_id)],
        extra=extra,
    )
    identity.wake_mail()
    return answer


def _register_unverified(
    identity: Identity, call: Call, email: EmailAddress, name: str | None, phc: str
) -> IdentityAnswer:
    """Make an account that cannot sign in before its address is verified. If the address is taken,
    its owner gets a mail about that, and the answer is the same."""
    account = find_account(identity, email)
    complete_reads(identity, email, account)
    if account is not None and account.has_identity:
        to = stored_address(identity, account.user_id) or email.text
        url = public_url(identity, "/reset-password")
        steps: list[Step] = [
            *decoy_steps(identity, _NEW_ACCOUNT_STEPS),
            *identity.mails.notices("ACCOUNT_EXISTS", to, url=url),
            audit(identity, call, "sign_up", account.user_id, reason=EmailTaken.code),
        ]
    else:
        if account is None:
            user_id, steps = new_user(identity, email, is_verified=False, name=name)
        else:  # a row of the app, which nobody signs in to before the mailbox is proved
            user_id, now_s = account.user_id, identity.now_s()
            steps = [
                PutRecord("users", {"user_id": user_id, "created_at": now_s}, replace=True),
                PutRecord("identities", {
                    "kind": EMAIL, "subject": email.key, "user_id": user_id, "created_at": now_s,
                }),
            ]
        steps += [
            put_password(identity, user_id, phc),
            *_verification_mail(identity, email, user_id).steps,
            audit(identity, call, "sign_up", user_id),
        ]
    carry_out(identity.writer.submit, steps)
    identity.wake_mail()
    return json_answer({"verification_required": True, "email": email.text}, 202)


@dataclass(frozen=True, slots=True)
class _VerificationMail:
    code: str | None = field(default=None, repr=False)
    steps: tuple[Step, ...] = ()  # none where the server sends no mail


def _verification_mail(
    identity: Identity, email: EmailAddress, user_id: str
) -> _VerificationMail:
    """Return the code for a new address, and the steps that send it. A registration never fails for
    want of a mail server."""
    made = codes.make_code(
        identity, codes.VERIFY_CODE, email.key, _VERIFY_S, user_id=user_id
    )
    try:
        mail = identity.mails.put("VERIFY_EMAIL", email.text, _VERIFY_S, code=made.secret)
    except (EmailNotConfigured, Unavailable):
        return _VerificationMail()
    return _VerificationMail(made.secret, (*made.steps, mail))


# --- Sign in ---------------------------------------------------------------------------------


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


# --- Change ----------------------------------------------------------------------------------


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


def drop_after_change(identity: Identity, user_id: str) -> list[Step]:
    """Return the steps that end what an earlier password has opened: sessions, trusted devices,
    and links on their way, except one that undoes a change of the address."""
    of_user = Condition("user_id", "=", user_id)
    return [
        *end_credentials_of(user_id, identity.now_s()),
        DropRecords("trusted_devices", [of_user]),
        codes.drop_tokens(user_id),
    ]


# --- What the flows share --------------------------------------------------------------------


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


def _has_password(identity: Identity, user_id: str) -> bool:
    of_user = [Condition("user_id", "=", user_id)]
    return identity.store.point(lambda reader: reader.count_records("passwords", of_user)) > 0


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
