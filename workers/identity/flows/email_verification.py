"""E-mail verification: a user shows that they read the mail of their address.

The code belongs to the stored address. A code that was sent before the address changed is none of
the new one. Verification codes sign nobody in (spec/identity.md §1.4). With
PYLON_REQUIRE_EMAIL_VERIFICATION a new account has no session before its address is verified, so the
code may also come without one, with the address.
"""

from __future__ import annotations

from typing import Final

from pylon.api.identity.mail_bodies import CodeBody
from pylon.auth.email_address import EmailAddress
from pylon.auth.transactions import Step, carry_out
from pylon.auth_context import ADMIN
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import AuthRequired, EmailTaken, RecordConflict, RecordExists
from pylon.storage.auth_ops import Condition, PutRecord, SetRecords
from pylon.storage.ops import UpdateRow
from workers.identity import rates
from workers.identity.accounts import EMAIL, find_account, verified_stamp
from workers.identity.codes import VERIFY_CODE, find_code, invalid_code, make_code
from workers.identity.identity import Call, Identity
from workers.identity.mailboxes import (
    address_of_caller,
    typed_address,
    user_record,
    user_row,
)
from workers.identity.rates import take_rates

CODE_S: Final = 600


def send(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/email/send-verification"""
    user_id, email = address_of_caller(identity, call)
    made = make_code(identity, VERIFY_CODE, email.key, CODE_S, user_id=user_id)
    carry_out(identity.writer.submit, [
        *take_rates(
            identity, (rates.SEND_IP, call.facts.address), (rates.SEND_ADDRESS, email.key),
            (rates.SEND_PAUSE, email.key),
        ),
        *made.steps, identity.mails.put("VERIFY_EMAIL", email.text, CODE_S, code=made.secret),
    ])
    identity.wake_mail()
    answer = {"sent": True, "email": email.text}
    if identity.app.config.dev_mode:
        answer["dev_code"] = made.secret
    return json_answer(answer)


def verify(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/email/verify"""
    body = call.decode(CodeBody)
    user_id, email = _whose(identity, call, body)
    carry_out(identity.writer.submit, take_rates(
        identity, (rates.VERIFY_IP, call.facts.address), (rates.VERIFY_ACCOUNT, email.key)
    ))
    found = find_code(identity, VERIFY_CODE, email.key, body.code)
    if user_id is None:  # the account has ended since, or has another address
        raise invalid_code()
    try:
        carry_out(identity.writer.submit, [
            found.use, *_stamp(identity, user_id, email)
        ])
    except (RecordConflict, RecordExists):  # used by another request, or the address changed
        raise invalid_code() from None
    row = user_row(identity, user_id) or {}
    return json_answer({"verified": True, "emailVerified": row.get("emailVerified")})


def _whose(
    identity: Identity, call: Call, body: CodeBody
) -> tuple[str | None, EmailAddress]:
    """Return the user whose address is to be verified (None: nobody), and the address.

    Raises:
        AuthRequired: neither a session nor the address says who.
        InvalidEmail, UserNotFound, MissingEmail
    """
    if call.facts.session_id is not None:
        return address_of_caller(identity, call)
    if not body.email:
        raise AuthRequired("Login required", hint="Or send the address as `email` with its code")
    email = typed_address(identity, body.email)
    account = find_account(identity, email)
    return (account.user_id if account is not None and account.has_identity else None), email


def _stamp(identity: Identity, user_id: str, email: EmailAddress) -> list[Step]:
    """Return the steps that note the address of a user as verified.

    Raises:
        EmailTaken: it is the address of another account.
    """
    now_s = identity.now_s()
    of_address = [Condition("kind", "=", EMAIL), Condition("subject", "=", email.key)]
    known = identity.store.point(lambda reader: reader.records("identities", of_address))
    if known and known[0]["user_id"] != user_id:
        raise EmailTaken(f"Another account has the address {email.text}")
    steps: list[Step]
    if known:
        steps = [SetRecords(
            "identities", [*of_address, Condition("user_id", "=", user_id)],
            {"verified_at": now_s}, 1,
        )]
    else:
        steps = [*user_record(identity, user_id), PutRecord("identities", {
            "kind": EMAIL, "subject": email.key, "user_id": user_id, "verified_at": now_s,
            "created_at": now_s,
        })]
    stamp = verified_stamp(identity)
    if stamp:
        entity = identity.app.manifest.auth.user_entity
        steps.append(UpdateRow(entity, user_id, stamp, ADMIN))
    return steps
