"""Accounts: which user an e-mail address or a provider's user belongs to, and how one is made.

An account is a row of the user entity with its records in the auth tables. The identity of kind
`email` has the e-mail key of the account (`pylon.auth.email_address`); `verified_at` says when its
owner proved that they read its mail. A row that the app inserted has no identity: its address is
nobody's until somebody proves it, and then that person adopts the row.

*Proof of a mailbox* (spec/identity.md §1.3): whoever reads the mail of an address owns the account.
If the address was never verified, somebody else may have registered it in advance. So their
password, second factor, keys, linked providers and sessions are dropped in the same transaction.

Invariants: this module reads and returns steps; it writes nothing. Each step that another request
may get ahead of is conditional, so the transaction is refused with `RecordExists` or
`RecordConflict`, and the flow reads again. Called by the flows of sign-in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from pylon.auth.display_names import clean_name
from pylon.auth.email_address import EmailAddress
from pylon.auth.revocation import end_credentials_of
from pylon.auth.transactions import Step
from pylon.auth_context import ADMIN, AuthContext
from pylon.clock import NS_PER_S
from pylon.errors import InvalidName, PylonError, UserCreateFailed
from pylon.manifest.model import Entity, FieldType
from pylon.storage.auth_ops import Condition, DropRecords, PutRecord, SetRecords
from pylon.storage.ops import InsertRow, UpdateRow
from pylon.values.defaults import instant_text
from workers.identity.codes import drop_tokens
from workers.identity.identity import Identity

EMAIL: Final = "email"  # the kind of the identity
# Tables with credentials that a stranger may have added before the mailbox was proved.
_CREDENTIALS: Final = (
    "passwords", "totp", "backup_codes", "passkeys", "api_keys", "trusted_devices", "oauth_tokens",
)


@dataclass(frozen=True, slots=True)
class Account:
    """The account that an address belongs to.

    Attributes:
        is_verified: its owner has proved that they read the mail of the address.
        has_identity: False: a row of the app with the address, which nobody has signed in to yet.
    """

    user_id: str
    is_verified: bool
    has_identity: bool = True


def find_account(identity: Identity, email: EmailAddress) -> Account | None:
    """Return the account of an address, or None if the address is free."""
    found = identity.store.point(lambda reader: reader.records(
        "identities", [Condition("kind", "=", EMAIL), Condition("subject", "=", email.key)]
    ))
    if found:
        return Account(str(found[0]["user_id"]), found[0]["verified_at"] is not None)
    entity = _user_entity(identity)
    if entity is None or EMAIL not in entity.by_name:
        return None
    for text in dict.fromkeys((email.text, email.key)):
        user_id = _row_with(identity, entity, text)
        if user_id is not None and not _has_email(identity, user_id):
            return Account(user_id, is_verified=False, has_identity=False)
    return None


def find_by_identity(identity: Identity, kind: str, subject: str) -> str | None:
    """Return the id of the user of an identity of another kind than `email`."""
    found = identity.store.point(lambda reader: reader.records(
        "identities", [Condition("kind", "=", kind), Condition("subject", "=", subject)]
    ))
    return str(found[0]["user_id"]) if found else None


def new_user(
    identity: Identity, email: EmailAddress | None, *, is_verified: bool, name: str | None = None,
    fields: Mapping[str, Any] | None = None,
) -> tuple[str, list[Step]]:
    """Return the id of a new user, and the steps that make it.

    Args:
        is_verified: the address was proved just now.
        name: what people see; by default the address.
        fields: further fields of the row; those that the entity lacks are left out.

    Raises:
        UserCreateFailed: the manifest has no user entity, or its fields do not fit.
    """
    app, now_s = identity.app, identity.now_s()
    entity = _user_entity(identity)
    if entity is None:
        raise UserCreateFailed(
            f'The manifest has no entity "{app.manifest.auth.user_entity}" for users',
            hint="Declare it, or name another one in auth.user.entity",
        )
    user_id = app.ids.new()
    given = {
        "email": None if email is None else email.text,
        "displayName": _shown_name(name) or (None if email is None else email.text),
        "emailVerified": _time_of(entity, "emailVerified", now_s) if is_verified else None,
        "createdAt": _time_of(entity, "createdAt", now_s),
        **(fields or {}),
    }
    body = {
        key: value for key, value in given.items()
        if value is not None and key in entity.by_name and not entity.by_name[key].is_set_by_server
    }
    auth = AuthContext(user_id=user_id, is_admin=True)  # it writes managed fields
    try:
        filled = app.defaults[entity.name].fill(body, user_id, auth)
        encoded = app.codecs[entity.name].insert(filled, user_id)
    except PylonError as ex:
        raise UserCreateFailed(
            f"A new user does not fit the entity {entity.name}: {ex.message}",
            hint="Make the field optional, or give it a default",
        ) from ex
    steps: list[Step] = [
        InsertRow(entity.name, user_id, encoded.values, encoded.row_json),
        PutRecord("users", {"user_id": user_id, "created_at": now_s}),
    ]
    if email is not None:
        steps.append(_email_identity(email, user_id, now_s, is_verified=is_verified))
    return user_id, steps


def prove_mailbox(identity: Identity, account: Account, email: EmailAddress) -> list[Step]:
    """Return the steps by which whoever reads the mail of an address takes over its account.

    An account whose address was verified before needs none.
    """
    if account.is_verified:
        return []
    user_id, now_s = account.user_id, identity.now_s()
    of_user = Condition("user_id", "=", user_id)
    steps: list[Step]
    if account.has_identity:
        steps = [SetRecords(
            "identities",
            [Condition("kind", "=", EMAIL), Condition("subject", "=", email.key), of_user,
             Condition("verified_at", "null")],
            {"verified_at": now_s}, 1,
        )]
    else:
        steps = [
            _email_identity(email, user_id, now_s, is_verified=True),
            PutRecord("users", {"user_id": user_id, "created_at": now_s}, replace=True),
        ]
    steps += [DropRecords(table, [of_user]) for table in _CREDENTIALS]
    steps.append(drop_tokens(user_id))
    steps.append(DropRecords("identities", [of_user, Condition("kind", "!=", EMAIL)]))
    steps += end_credentials_of(user_id, now_s)
    stamp = verified_stamp(identity)
    if stamp:
        steps.append(UpdateRow(identity.app.manifest.auth.user_entity, user_id, stamp, ADMIN))
    return steps


def verified_stamp(identity: Identity) -> dict[str, Any]:
    """Return the fields of a user's row that say that the address is verified now."""
    entity = _user_entity(identity)
    if entity is None or "emailVerified" not in entity.by_name:
        return {}
    return {"emailVerified": _time_of(entity, "emailVerified", identity.now_s())}


def has_credentials(identity: Identity, user_id: str) -> bool:
    """Whether the proof of a mailbox would drop something that somebody had signed in with."""
    of_user = [Condition("user_id", "=", user_id)]
    others = [*of_user, Condition("kind", "!=", EMAIL)]
    return identity.store.point(lambda reader: bool(
        any(reader.count_records(table, of_user) for table in ("passwords", "api_keys", "passkeys"))
        or reader.count_records("identities", others)
    ))


def _email_identity(
    email: EmailAddress, user_id: str, now_s: int, *, is_verified: bool
) -> PutRecord:
    return PutRecord("identities", {
        "kind": EMAIL, "subject": email.key, "user_id": user_id,
        "verified_at": now_s if is_verified else None, "created_at": now_s,
    })


def _row_with(identity: Identity, entity: Entity, address: str) -> str | None:
    row = identity.store.point(lambda reader: reader.lookup(entity.name, EMAIL, address))
    return None if row is None else str(msgspec.json.decode(row)["id"])


def _has_email(identity: Identity, user_id: str) -> bool:
    where: Sequence[Condition] = [
        Condition("user_id", "=", user_id), Condition("kind", "=", EMAIL)
    ]
    return identity.store.point(lambda reader: reader.count_records("identities", where)) > 0


def _user_entity(identity: Identity) -> Entity | None:
    manifest = identity.app.manifest
    return manifest.by_name.get(manifest.auth.user_entity)


def _shown_name(name: str | None) -> str | None:
    try:
        return None if name is None else clean_name(name)
    except InvalidName:
        return None


def _time_of(entity: Entity, field: str, now_s: int) -> Any:
    """Return now as a value of a field: a text of ISO 8601, a number of seconds, or true."""
    found = entity.by_name.get(field)
    if found is None:
        return None
    if found.type is FieldType.BOOL:
        return True
    if found.type in (FieldType.INT, FieldType.FLOAT):
        return now_s
    return instant_text(now_s * NS_PER_S)
