"""E-mail changes: another address for an account, and the way back (spec/identity.md §1.4).

A request sends a link to the new address and a notice to the old one. The link changes the address,
ends all other sessions, and sends a link to the old address by which its owner takes the change
back for 72 hours. Taking it back also drops what came to the account since the change, because a
thief may have added it, and the password.

Invariants: the answer to a request does not tell whether the address is taken; who owns it gets a
mail that says so. A link of a reset or of a sign-in that the account had before does not work
after a change; the link back does, whatever happens meanwhile.
"""

from __future__ import annotations

from typing import Any, Final

from pylon.api.identity.mail_bodies import ChangeEmailBody, LinkBody
from pylon.auth.email_address import EmailAddress, parse_email
from pylon.auth.revocation import end_credentials_of
from pylon.auth.transactions import Step, carry_out
from pylon.auth_context import ADMIN
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.errors import (
    EmailTaken,
    InvalidToken,
    MissingToken,
    PylonError,
    RecordConflict,
    RecordExists,
    TotpRequired,
    UniqueViolation,
)
from pylon.storage.auth_ops import Condition, DropRecords, PutRecord
from pylon.storage.ops import UpdateRow
from workers.identity import rates
from workers.identity.accounts import EMAIL, find_account, verified_stamp
from workers.identity.codes import (
    CHANGE_LINK,
    REVERT_LINK,
    TABLE,
    Found,
    drop_tokens,
    find_link,
    invalid_token,
    make_link,
)
from workers.identity.identity import Call, Identity
from workers.identity.link_forms import link_page, public_url, require_own_form
from workers.identity.link_urls import link_url
from workers.identity.mailboxes import (
    TRIES,
    address_of_caller,
    typed_address,
    user_record,
    user_row,
)
from workers.identity.pages import message_page
from workers.identity.rates import take_rates
from workers.identity.sign_in import audit_of, finish_sign_in

CHANGE_S: Final = 86_400
REVERT_S: Final = 259_200
_TITLE: Final = "Your e-mail address"
_ADDED_SINCE: Final = ("passkeys", "api_keys", "trusted_devices", "totp", "backup_codes")


def request(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/email/change/request"""
    new = typed_address(identity, call.decode(ChangeEmailBody).new_email)
    identity.disposable.refuse(new)
    user_id, old = address_of_caller(identity, call)
    made = make_link(
        identity, CHANGE_LINK, CHANGE_S, user_id=user_id,
        data={"email": new.text, "old": old.text},
    )
    owner = find_account(identity, new)
    if owner is None or owner.user_id == user_id:
        url = link_url(identity, "email_change", made.secret)
        mail = identity.mails.put("EMAIL_CHANGE", new.text, CHANGE_S, url=url)
    else:  # the same writes, so that the time tells nothing either
        url = public_url(identity, "/")
        mail = identity.mails.put("ACCOUNT_EXISTS", new.text, CHANGE_S, url=url)
    carry_out(identity.writer.submit, [
        *take_rates(
            identity, (rates.EMAIL_CHANGE_USER, user_id), (rates.SEND_ADDRESS, new.key)
        ),
        DropRecords(TABLE, [
            Condition("purpose", "=", CHANGE_LINK), Condition("user_id", "=", user_id)
        ]),
        *made.steps, mail,
        *identity.mails.notices("EMAIL_CHANGE_REQUESTED", old.text, new_email=new.text),
    ])
    identity.wake_mail()
    return json_answer({"sent": True})


def open_change(identity: Identity, call: Call) -> IdentityAnswer:
    """GET /email-change/confirm"""
    return _open(
        identity, call, CHANGE_LINK, "The new address of your account will be {email}.",
        "Change the address", "/api/auth/email/change/confirm",
    )


def open_revert(identity: Identity, call: Call) -> IdentityAnswer:
    """GET /email-change/revert"""
    return _open(
        identity, call, REVERT_LINK,
        "The address of your account will be {email} again. Its password and sessions end.",
        "Take the change back", "/api/auth/email/change/revert",
    )


def confirm(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/email/change/confirm"""
    return _answer(identity, call, CHANGE_LINK, _change)


def revert(identity: Identity, call: Call) -> IdentityAnswer:
    """POST /api/auth/email/change/revert"""
    return _answer(identity, call, REVERT_LINK, _take_back)


def _open(
    identity: Identity, call: Call, purpose: str, text: str, button: str, action: str
) -> IdentityAnswer:
    token = call.params.get("token", "")
    if not token:
        return message_page(_TITLE, "The link is not complete.", MissingToken.status)
    try:
        found = find_link(identity, purpose, token)
    except InvalidToken as ex:
        return message_page(_TITLE, f"{ex.message}.", ex.status)
    shown = text.format(email=found.data["email"])
    return link_page(identity, call, _TITLE, shown, button, action, token)


def _answer(identity: Identity, call: Call, purpose: str, act: Any) -> IdentityAnswer:
    """Carry out what a link stands for, for a client (JSON) or a form of its page."""
    body = call.decode(LinkBody)
    if not call.facts.is_form:
        answer: IdentityAnswer = act(identity, call, body.token)
        return answer
    try:
        require_own_form(call, body.nonce)
        done = act(identity, call, body.token)
    except TotpRequired:
        return message_page(_TITLE, "The address has changed. Sign in again.")
    except PylonError as ex:
        return message_page(_TITLE, f"{ex.message}.", ex.status)
    return IdentityAnswer(
        status=302, location=identity.app.config.dashboard_url, session_token=done.session_token,
        cookies=done.cookies,
    )


def _change(identity: Identity, call: Call, token: str) -> IdentityAnswer:
    for _ in range(TRIES):
        found = find_link(identity, CHANGE_LINK, token)
        user_id, new, old = _parties(identity, found)
        owner = find_account(identity, new)
        if owner is not None and owner.user_id != user_id:
            raise _taken(new)
        back = make_link(
            identity, REVERT_LINK, REVERT_S, user_id=user_id,
            data={"email": old.text, "old": new.text, "at": str(identity.now_s())},
        )
        url = public_url(identity, "/email-change/revert", token=back.secret)
        try:
            answer = finish_sign_in(identity, call, user_id, "email_change", [
                found.use, *_swap(identity, user_id, old, new), *back.steps,
                *identity.mails.notices("EMAIL_CHANGED", old.text, url=url),
                audit_of(identity, call, "email_change", user_id),
            ], extra={"changed": True, "email": new.text})
        except (RecordConflict, RecordExists):
            continue  # the link was used, or the address taken meanwhile
        except UniqueViolation:  # by a row of the app
            raise _taken(new) from None
        identity.wake_mail()
        return answer
    raise invalid_token()


def _take_back(identity: Identity, call: Call, token: str) -> IdentityAnswer:
    for _ in range(TRIES):
        found = find_link(identity, REVERT_LINK, token)
        user_id, old, now = _parties(identity, found)
        owner = find_account(identity, old)
        if owner is not None and owner.user_id != user_id:
            raise _taken(old)
        row = user_row(identity, user_id) or {}
        if isinstance(row.get("email"), str):  # it may have changed once more
            now = parse_email(row["email"], is_dev=identity.app.config.dev_mode)
        since = Condition("created_at", ">=", int(found.data["at"]))
        of_user = Condition("user_id", "=", user_id)
        drops_totp = _has_totp(identity, [of_user, since])
        try:
            return finish_sign_in(identity, call, user_id, "email_revert", [
                found.use, *_swap(identity, user_id, now, old),
                DropRecords(TABLE, [of_user, since, Condition("purpose", "=", REVERT_LINK)]),
                DropRecords("passwords", [of_user]),
                *(DropRecords(table, [of_user, since]) for table in _ADDED_SINCE),
                DropRecords("identities", [of_user, since, Condition("kind", "!=", EMAIL)]),
                audit_of(identity, call, "email_change_revert", user_id),
            ], extra={"reverted": True, "email": old.text}, is_two_factor=drops_totp)
        except (RecordConflict, RecordExists):
            continue
        except UniqueViolation:
            raise _taken(old) from None
    raise invalid_token()


def _taken(email: EmailAddress) -> EmailTaken:
    return EmailTaken(f"Another account has the address {email.text}")


def _has_totp(identity: Identity, where: list[Condition]) -> bool:
    return identity.store.point(lambda reader: reader.count_records("totp", where)) > 0


def _parties(identity: Identity, found: Found) -> tuple[str, EmailAddress, EmailAddress]:
    """Return the user of a link, the address that it leads to, and the address before."""
    is_dev = identity.app.config.dev_mode
    data = found.data
    return (
        str(found.record["user_id"]), parse_email(data["email"], is_dev=is_dev),
        parse_email(data["old"], is_dev=is_dev),
    )


def _swap(identity: Identity, user_id: str, old: EmailAddress, new: EmailAddress) -> list[Step]:
    """Return the steps that give an account another address, and end what belonged to the old."""
    now_s, of_user = identity.now_s(), Condition("user_id", "=", user_id)
    steps: list[Step] = [
        DropRecords("identities", [
            Condition("kind", "=", EMAIL), Condition("subject", "=", old.key), of_user
        ]),
        PutRecord("identities", {
            "kind": EMAIL, "subject": new.key, "user_id": user_id, "verified_at": now_s,
            "created_at": now_s,
        }),
        UpdateRow(
            identity.app.manifest.auth.user_entity, user_id,
            {"email": new.text, **verified_stamp(identity)}, ADMIN,
        ),
        drop_tokens(user_id),
    ]
    for address in (old, new):
        steps.append(DropRecords(TABLE, [
            Condition("email_key", "=", address.key), Condition("purpose", "!=", REVERT_LINK)
        ]))
    return [*steps, *user_record(identity, user_id), *end_credentials_of(user_id, now_s)]
