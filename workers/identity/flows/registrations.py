"""Registrations: new accounts with a password (spec/identity.md §1.3).

Each request costs one password hash whether its address is taken or not. With
PYLON_REQUIRE_EMAIL_VERIFICATION it also reads and writes the same records, so neither the answer
nor its time reveals who has an account; without it the answer says `EMAIL_TAKEN`.

A row that the app inserted belongs to nobody yet. `register` gives it to nobody who has not proved
the mailbox, since anybody can type its address. Called by `workers.identity.actions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pylon.api.identity.password_bodies import RegisterBody
from pylon.auth.display_names import clean_name
from pylon.auth.email_address import EmailAddress, parse_email
from pylon.auth.transactions import Step, carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    EmailNotConfigured,
    EmailTaken,
    RecordConflict,
    RecordExists,
    Unavailable,
    UniqueViolation,
)
from pylon.storage.auth_ops import PutRecord
from workers.identity import codes, rates
from workers.identity.accounts import EMAIL, find_account, new_user
from workers.identity.captcha import require_captcha
from workers.identity.decoys import complete_reads, decoy_steps
from workers.identity.identity import Call, Identity
from workers.identity.sign_in import finish_sign_in
from workers.identity.stored_addresses import public_url, stored_address
from workers.identity.stored_passwords import (
    METHOD,
    audit,
    checked_password,
    put_password,
    spend,
)

_TRIES: Final = 3
_NEW_ACCOUNT_STEPS: Final = 5  # row, user, identity, password, code
_VERIFY_S: Final = 600  # of the code that a new account gets


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
