"""Flows of forgotten passwords: the mail with a link, and the new password (spec/identity.md §1.3).

Whoever opens the link reads the mail of the address. So `complete` is a proof of the mailbox: on an
account whose address was never verified it drops what somebody else may have added before.

Invariants: `request` answers the same for every text, and does the same work; for an address
without an account it stores records that nobody can use. A link is used up by the transaction that
sets the password; a weak password leaves it valid. The mail goes to the stored address. Called by
`workers.identity.actions`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pylon.api.identity.password_bodies import ResetBody, ResetRequestBody
from pylon.auth.email_address import parse_email
from pylon.auth.transactions import carry_out
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import InvalidEmail, RecordConflict, RecordExists
from workers.identity import codes, rates
from workers.identity.accounts import find_account, has_credentials, prove_mailbox
from workers.identity.captcha import require_captcha
from workers.identity.commit import commit
from workers.identity.decoys import PURPOSE as DECOY
from workers.identity.decoys import complete_reads, decoy_steps
from workers.identity.identity import Call, Identity
from workers.identity.link_urls import link_url
from workers.identity.sign_in import finish_sign_in
from workers.identity.stored_addresses import stored_address
from workers.identity.stored_passwords import (
    audit,
    checked_password,
    drop_after_change,
    put_password,
    spend,
    typed_key,
)

PURPOSE: Final = "password_reset"  # of `tokens`
METHOD: Final = "password_reset"  # of a session
_LIFE_S: Final = 30 * 60


def request(identity: Identity, call: Call) -> IdentityAnswer:
    """Send a link for a new password, if the address has an account.

    Raises:
        CaptchaRequired, CaptchaFailed
        EmailNotConfigured: the server sends no mail.
        RateLimited, Unavailable
    """
    body = call.decode(ResetRequestBody)
    typed = body.email
    require_captcha(identity, call, body.captcha)
    key = typed_key(identity, typed)
    spend(
        identity, (rates.SEND_IP, call.facts.address), (rates.SEND_ADDRESS, key),
        (rates.SEND_PAUSE, f"{PURPOSE} {key}"),
    )
    try:
        email = parse_email(typed, is_dev=identity.app.config.dev_mode)
    except InvalidEmail:
        return json_answer({"sent": True})
    account = find_account(identity, email)
    complete_reads(identity, email, account)
    user_id = None if account is None else account.user_id
    to = stored_address(identity, user_id)
    link = codes.make_link(
        identity, PURPOSE if to is not None else DECOY, _LIFE_S,  # both find older ones to drop
        email_key=email.key, user_id=user_id, data={"email": email.text},
    )
    mail = identity.mails.put(
        "PASSWORD_RESET", to or email.text, _LIFE_S, url=link_url(identity, "reset", link.secret)
    )
    carry_out(identity.writer.submit, [
        *link.steps,
        *([mail] if to is not None else decoy_steps(identity, 1, str(mail.values["sealed"]))),
        audit(identity, call, "password_reset_request", user_id),
    ])
    if to is not None:
        identity.wake_mail()
    return json_answer({"sent": True})


def complete(identity: Identity, call: Call) -> IdentityAnswer:
    """Set a new password by the token of a link, and sign in.

    Raises:
        InvalidToken: the link is unknown, used or expired.
        WeakPassword, PasswordTooLong, PwnedPassword: the link stays valid.
        TotpRequired, AccountLocked: the password was set.
        RateLimited, Unavailable
    """
    body = call.decode(ResetBody)
    spend(identity, (rates.VERIFY_IP, call.facts.address))
    found = codes.find_link(identity, PURPOSE, body.token)
    email = parse_email(found.data["email"], is_dev=identity.app.config.dev_mode)
    account = find_account(identity, email)
    if account is None or account.user_id != found.record["user_id"]:
        raise codes.invalid_token()  # the account has another address by now, or is gone
    normal = checked_password(identity, body.new_password, "newPassword", email.text)
    phc = identity.hashes.make(normal.encode())
    drops = not account.is_verified and has_credentials(identity, account.user_id)
    address = stored_address(identity, account.user_id)
    notices = [] if address is None else identity.mails.notices(
        "CREDENTIALS_DROPPED" if drops else "PASSWORD_CHANGED", address
    )
    try:
        families = commit(identity, [
            found.use, *prove_mailbox(identity, account, email),
            *drop_after_change(identity, account.user_id),
            put_password(identity, account.user_id, phc), *notices,
            audit(identity, call, "password_reset", account.user_id),
        ])
    except (RecordConflict, RecordExists):  # used meanwhile, or the account has changed
        raise codes.invalid_token() from None
    identity.wake_mail()
    extra: dict[str, object] = {"reset": True, "revoked_sessions": len(families)}
    if drops:
        extra["credentials_dropped"] = True
    answer = finish_sign_in(identity, call, account.user_id, METHOD, extra=extra)
    return msgspec.structs.replace(answer, ends_sessions=True)
