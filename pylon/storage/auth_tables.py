"""Auth tables: the columns, keys and indexes of the tables that sign-in keeps its records in.

A table is declared once, here. From the declaration both backends make its DDL, the SQL of its
operations (`pylon.storage.auth_ops`, `pylon.storage.sql.record_sql`), and its part of a move to
another store (`pylon.storage.transfer`). A start adds missing tables and columns, so a new column
of a present table must be optional.

The code names a table without a prefix ("tokens"); the database has it as `_pylon_auth_tokens`, and
that of files as `_pylon_files`.
Times are Unix seconds, except in columns that say otherwise. Secrets are hashed or sealed before
they come here.

Invariants: every column of a key is required. Names are identifiers of SQL that need no quotes.
Called by the store, and by all who read or write records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

Kind: TypeAlias = Literal["text", "int", "bytes", "bool"]
Value: TypeAlias = str | int | bytes | None  # of a record; a "bool" is 0 or 1


class Column(msgspec.Struct, frozen=True):
    """A column of a table. `optional`: it may be null."""

    name: str
    kind: Kind = "text"
    optional: bool = False


class AuthTable(msgspec.Struct, frozen=True):
    """A table of records.

    Attributes:
        key: the columns of its primary key.
        indexes: the columns of each further index.
        unique: the columns of each further index that is unique.
        expires: the column with the time after which the upkeep drops a record; null or 0 in it
            means never. None: the upkeep drops none.
        expires_per_s: the units of `expires` in a second.
        is_volatile: a crash of PostgreSQL may empty it.
        has_own_writes: records come and go with operations of their own, not with `PutRecord` and
            `DropRecords`.
        prefix: of its name in the database.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    expires: str | None = None
    expires_per_s: int = 1
    is_volatile: bool = False
    has_own_writes: bool = False
    prefix: str = "_pylon_auth_"

    @property
    def sql_name(self) -> str:
        """Return the name of the table in the database."""
        return f"{self.prefix}{self.name}"

    @property
    def by_column(self) -> Mapping[str, Column]:
        """Return the columns by their names."""
        return {column.name: column for column in self.columns}


def _columns(text: str) -> tuple[Column, ...]:
    """Return columns from words ``name:kind``, with ``?`` behind the kind of an optional one. A
    word without a kind is a text."""
    found = []
    for word in text.split():
        name, _, kind = word.partition(":")
        found.append(Column(name, _KINDS[kind.rstrip("?")], word.endswith("?")))
    return tuple(found)


_KINDS: Final[dict[str, Kind]] = {
    "": "text", "text": "text", "int": "int", "bytes": "bytes", "bool": "bool",
}

TABLES: Final[tuple[AuthTable, ...]] = (
    # session_id: the SHA-256 of the token. family: of the tokens that one sign-in led to.
    AuthTable(
        "sessions",
        _columns(
            "session_id user_id is_guest:bool created_at:int expires_at:int device tenant_id:? "
            "family:? rotated_at:int? auth_time:int? methods:? last_seen_at:int? token_hint:?"
        ),
        key=("session_id",), indexes=(("user_id",), ("family",)), has_own_writes=True,
    ),
    AuthTable(
        "users",
        _columns(
            "user_id created_at:int tokens_valid_from:int? locked_at:int? lock_reason:? "
            "last_sign_in_at:int?"
        ),
        key=("user_id",),
    ),
    # kind "email": subject is the email key; "oauth:<provider>": the provider's id of the user.
    AuthTable(
        "identities",
        _columns("kind subject user_id verified_at:int? data:? created_at:int"),
        key=("kind", "subject"), indexes=(("user_id",),),
    ),
    AuthTable("passwords", _columns("user_id phc changed_at:int"), key=("user_id",)),
    AuthTable(
        "totp",
        _columns("user_id sealed created_at:int confirmed_at:int? last_step:int?"),
        key=("user_id",),
    ),
    AuthTable(
        "backup_codes", _columns("user_id hash created_at:int used_at:int?"),
        key=("user_id", "hash"),
    ),
    AuthTable(
        "passkeys",
        _columns(
            "credential_id user_id public_key:bytes sign_count:int transports:? aaguid:? "
            "backed_up:bool name created_at:int last_used_at:int?"
        ),
        key=("credential_id",), indexes=(("user_id",),),
    ),
    # Codes, links, resets, changes, states, challenges, nonces, known devices: see `purpose`.
    AuthTable(
        "tokens",
        _columns(
            "hash purpose user_id:? email_key:? data:? attempts:int created_at:int expires_at:int "
            "used_at:int?"
        ),
        key=("hash",),
        indexes=(("purpose", "email_key"), ("user_id", "purpose"), ("expires_at",)),
        expires="expires_at",
    ),
    # previous_hash: of the secret before a rotation, valid until previous_until.
    AuthTable(
        "api_keys",
        _columns(
            "id user_id name prefix hash alg scopes:? expires_at:int? last_used_at:int? "
            "created_at:int previous_hash:? previous_until:int?"
        ),
        key=("id",), indexes=(("user_id",),),
    ),
    AuthTable(
        "trusted_devices",
        _columns("hash id user_id label created_at:int expires_at:int"),
        key=("hash",), indexes=(("user_id",), ("expires_at",)), unique=(("id",),),
        expires="expires_at",
    ),
    AuthTable(
        "oauth_tokens",
        _columns("provider user_id sealed scope:? expires_at:int?"),
        key=("provider", "user_id"), indexes=(("user_id",),),
    ),
    AuthTable(
        "audit",
        _columns(
            "id created_at:int action user_id:? actor_id:? tenant_id:? ip:? user_agent:? "
            "success:bool reason:? metadata:?"
        ),
        key=("id",),
        indexes=(("user_id", "created_at"), ("tenant_id", "created_at"), ("created_at",)),
        expires="created_at",
    ),
    # No `expires`: the identity process drops expired mails, and counts them.
    AuthTable(
        "outbox",
        _columns("id sealed created_at:int next_at:int attempts:int expires_at:int"),
        key=("id",), indexes=(("next_at",), ("expires_at",)),
    ),
    # tat: when the bucket is full again, in Unix nanoseconds.
    AuthTable(
        "limits", _columns("key tat:int"), key=("key",), indexes=(("tat",),),
        expires="tat", expires_per_s=1_000_000_000, is_volatile=True,
    ),
    # Of an upload that is not complete: state "pending", the size that its client has declared.
    # entity, row_id, field: the row that a file is attached to. See `pylon.files.records`.
    AuthTable(
        "files",
        _columns(
            "id owner:? tenant_id:? name type size:int sha256:? state public:bool entity:? "
            "row_id:? field:? created_at:int attached_at:int? expires_at:int? meta:?"
        ),
        key=("id",),
        indexes=(("owner", "id"), ("entity", "row_id"), ("expires_at",)),
        expires="expires_at", prefix="_pylon_",
    ),
)

TABLE_BY_NAME: Final[Mapping[str, AuthTable]] = {table.name: table for table in TABLES}
