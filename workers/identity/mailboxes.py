"""Mailboxes: addresses of requests and accounts, and the sign-in of who reads the mail of one.

Called by the flows of codes, links and e-mail changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from pylon.auth.email_address import EmailAddress, parse_email
from pylon.auth.transactions import Step
from pylon.bus.identity import IdentityAnswer
from pylon.errors import MissingEmail, PylonError, RecordConflict, RecordExists, UserNotFound
from pylon.storage.auth_ops import Condition, PutRecord
from workers.identity.accounts import find_account, has_credentials, new_user, prove_mailbox
from workers.identity.identity import Call, Identity
from workers.identity.sign_in import finish_sign_in

TRIES: Final = 3  # of a transaction that another request got ahead of


def typed_address(identity: Identity, raw: str) -> EmailAddress:
    """Return the address that somebody typed.

    Raises:
        MissingEmail, InvalidEmail
    """
    if not raw.strip():
        raise MissingEmail("email is required")
    return parse_email(raw, is_dev=identity.app.config.dev_mode)


def address_of_caller(identity: Identity, call: Call) -> tuple[str, EmailAddress]:
    """Return the user who calls, and the stored address of their account.

    Raises:
        UserNotFound: there is no row of the user.
        MissingEmail: the row has no address.
        InvalidEmail: the row has a text that is no address.
    """
    user_id = call.facts.auth.user_id or ""
    row = user_row(identity, user_id)
    if row is None:
        raise UserNotFound("The user of this session does not exist")
    if not isinstance(row.get("email"), str) or not row["email"]:
        raise MissingEmail("Your account has no e-mail address")
    return user_id, parse_email(row["email"], is_dev=identity.app.config.dev_mode)


def user_row(identity: Identity, user_id: str) -> dict[str, Any] | None:
    """Return the row of a user, or None."""
    entity = identity.app.manifest.auth.user_entity
    if entity not in identity.app.manifest.by_name:
        return None
    text = identity.store.point(lambda reader: reader.get(entity, user_id))
    return None if text is None else msgspec.json.decode(text, type=dict[str, Any])


def user_record(identity: Identity, user_id: str) -> list[Step]:
    """Return the step that makes the record of a user, if the row has none: the app inserted it."""
    where = [Condition("user_id", "=", user_id)]
    if identity.store.point(lambda reader: reader.count_records("users", where)):
        return []
    return [PutRecord("users", {"user_id": user_id, "created_at": identity.now_s()})]


def sign_in_by_mailbox(
    identity: Identity, call: Call, email: EmailAddress, method: str, use: Step,
    invalid: Callable[[], PylonError],
) -> IdentityAnswer:
    """Sign in who reads the mail of an address; make the account if there is none.

    Args:
        use: the step that uses up what was in the mail.
        invalid: the error if another request was faster to use it.

    Raises:
        TotpRequired: see `workers.identity.sign_in`.
        DisposableEmail: there is no account, and none is made for this address.
    """
    for _ in range(TRIES):
        try:
            return _sign_in_once(identity, call, email, method, use)
        except (RecordConflict, RecordExists):
            continue  # the code was used, or the account made or verified meanwhile
    raise invalid()


def _sign_in_once(
    identity: Identity, call: Call, email: EmailAddress, method: str, use: Step
) -> IdentityAnswer:
    steps: list[Step] = [use]
    extra: dict[str, Any] = {}
    proof: list[Step] = []
    account = find_account(identity, email)
    if account is None:
        identity.disposable.refuse(email)
        user_id, made = new_user(identity, email, is_verified=True)
        steps += made
    else:
        user_id = account.user_id
        proof = prove_mailbox(identity, account, email)
        if proof and has_credentials(identity, user_id):
            extra["credentials_dropped"] = True
            steps += identity.mails.notices("CREDENTIALS_DROPPED", email.text)
        steps += proof
    # A second factor that the proof drops is asked for no more.
    return finish_sign_in(
        identity, call, user_id, method, steps, extra=extra, is_two_factor=bool(proof)
    )
