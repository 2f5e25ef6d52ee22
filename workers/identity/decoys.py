"""Decoys: reads and records that a flow makes so that an address without an account costs the same.

A decoy is a record that no flow asks for, and that the upkeep drops at once. Called by the flows
that must not tell who has an account (spec/identity.md §2.2).
"""

from __future__ import annotations

from typing import Final

from pylon.auth.email_address import EmailAddress
from pylon.auth.transactions import Step
from pylon.storage.auth_ops import Condition, PutRecord
from workers.identity.accounts import EMAIL, Account
from workers.identity.identity import Identity

PURPOSE: Final = "decoy"  # of `tokens`
_HASH_BYTES: Final = 32
_NOBODY: Final = "nobody"  # no user has this id


def decoy_steps(identity: Identity, number: int, data: str | None = None) -> list[Step]:
    """Return the steps that put so many decoys, with `data` in each."""
    now_s = identity.now_s()
    return [
        PutRecord("tokens", {
            "hash": identity.app.random.token_hex(_HASH_BYTES), "purpose": PURPOSE, "data": data,
            "attempts": 0, "created_at": now_s, "expires_at": now_s,
        })
        for _ in range(number)
    ]


def complete_reads(identity: Identity, email: EmailAddress, account: Account | None) -> None:
    """Read what `find_account` would have read, had it not found what it looked for earlier: the
    identity, then the row of the app with the address, then the identity of that row."""
    manifest = identity.app.manifest
    entity = manifest.by_name.get(manifest.auth.user_entity)
    if account is not None and account.has_identity and entity is not None:
        identity.store.point(lambda reader: reader.lookup(entity.name, EMAIL, email.text))
    if account is None or account.has_identity:
        of_nobody = [Condition("user_id", "=", _NOBODY), Condition("kind", "=", EMAIL)]
        identity.store.point(lambda reader: reader.count_records("identities", of_nobody))
