"""API keys: their form, and the caller of one (spec/identity.md §1.8).

A key is ``pk.<id>.<secret>``; the id is `key_` and 32 characters, the secret 43 characters with 256
random bits. The store has the SHA-256 of the secret, which needs no salt. After a rotation it may
also have that of the secret before, for as long as the owner wished.

The sockets of a secret belong together, as those of a family of sessions do: `family_of_key` names
them, by the id of the key and a part of the hash.

Invariants: a key counts in the Authorization header only. It never makes an administrator, and
gives no right that its owner lacks. It is dead once it has expired or was revoked, and once its
owner is locked or has no row in the user entity; its sockets too (`workers.hub.sessions`). No error
has a part of a secret.

Called by `pylon.auth.session_cache`, `workers.hub.sessions`, and the flows that make keys.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, cast

from pylon.auth_context import AuthContext, Caller
from pylon.clock import RandomSource
from pylon.errors import InvalidApiKey
from pylon.manifest.model import Manifest
from pylon.storage.auth_ops import Condition
from pylon.storage.auth_tables import Value
from pylon.storage.interface import Reader

KEY_ID: Final = "key_"
SHA256: Final = "sha256"  # the only `alg` of keys that this server makes
PREFIX_CHARS: Final = 16  # of a key, which lists of keys show

_START: Final = "pk."
_FORM: Final = re.compile(r"pk\.(key_[A-Za-z0-9_\-]{32})\.([A-Za-z0-9_\-]{43})", re.ASCII)
_ID_BYTES: Final = 24
_SECRET_BYTES: Final = 32
_FAMILY_CHARS: Final = 16  # of a hash


@dataclass(frozen=True, slots=True, repr=False)
class NewApiKey:
    """A key to store, and its text, which only its owner receives."""

    text: str
    key_id: str
    prefix: str
    secret_hash: str


@dataclass(frozen=True, slots=True)
class StoredApiKey:
    """A key that lives, as the store has it.

    `ends_at_s`: its expiry in Unix seconds; 0: never.
    """

    key_id: str
    user_id: str
    scopes: str | None
    ends_at_s: int
    last_used_at_s: int  # 0: never
    secret_hash: str
    previous_hash: str | None
    previous_until_s: int


def is_api_key(token: str) -> bool:
    """Whether a token begins as API keys do."""
    return token.startswith(_START)


def is_of_key(family: str) -> bool:
    """Whether a family, or an id whose use is to be noted, is of an API key and not of a session.
    """
    return family.startswith(KEY_ID)


def family_of_key(key_id: str, secret_hash: str) -> str:
    """Return the family of the sockets of a secret."""
    return f"{key_id}.{secret_hash[:_FAMILY_CHARS]}"


def new_api_key(random: RandomSource, key_id: str | None = None) -> NewApiKey:
    """Return a new key.

    Args:
        key_id: of a key that gets another secret; None: a new id.
    """
    if key_id is None:
        key_id = KEY_ID + _base64(random.token_hex(_ID_BYTES))
    secret = _base64(random.token_hex(_SECRET_BYTES))
    text = f"{_START}{key_id}.{secret}"
    return NewApiKey(text, key_id, text[:PREFIX_CHARS], _hash(secret))


def find_api_key(
    reader: Reader, manifest: Manifest, key_id: str, now_s: float
) -> StoredApiKey | None:
    """Return a key that lives; None if it is unknown or dead.

    Args:
        now_s: Unix time.
    """
    records = reader.records("api_keys", [Condition("id", "=", key_id)])
    if not records or records[0]["alg"] != SHA256:
        return None
    record = records[0]
    key = StoredApiKey(
        key_id, _text(record["user_id"]), cast("str | None", record["scopes"]),
        _seconds(record["expires_at"]), _seconds(record["last_used_at"]), _text(record["hash"]),
        cast("str | None", record["previous_hash"]), _seconds(record["previous_until"]),
    )
    if key.ends_at_s and key.ends_at_s <= now_s:
        return None
    return key if may_own_keys(reader, manifest, key.user_id) else None


def may_own_keys(reader: Reader, manifest: Manifest, user_id: str) -> bool:
    """Whether a user is not locked, and has a row, if the app has a user entity."""
    users = reader.records("users", [Condition("user_id", "=", user_id)])
    if users and users[0]["locked_at"] is not None:
        return False
    entity = manifest.by_name.get(manifest.auth.user_entity)
    return entity is None or reader.get(entity.name, user_id) is not None


def id_of(token: str) -> str:
    """Return the id that a key names.

    Raises:
        InvalidApiKey: it does not have the form of a key.
    """
    match = _FORM.fullmatch(token)
    if match is None:
        raise _invalid()
    return match[1]


def caller_of_key(token: str, key: StoredApiKey | None, now_s: float) -> tuple[Caller, float]:
    """Return the caller of a key, and until when its secret is good in Unix seconds (0: no end).

    Args:
        key: what `find_api_key` has found for its id.

    Raises:
        InvalidApiKey: the key is dead, or its secret is wrong.
    """
    match = _FORM.fullmatch(token)
    if match is None or key is None:
        raise _invalid()
    given = _hash(match[2])
    ends_at_s = float(key.ends_at_s)
    if not hmac.compare_digest(given, key.secret_hash):
        is_previous = (
            key.previous_hash is not None and key.previous_until_s > now_s
            and hmac.compare_digest(given, key.previous_hash)
        )
        if not is_previous:
            raise _invalid()
        ends_at_s = min(ends_at_s or key.previous_until_s, float(key.previous_until_s))
    auth = AuthContext(
        user_id=key.user_id, api_key_id=key.key_id, api_key_scopes=key.scopes
    )
    return Caller(auth, family=family_of_key(key.key_id, given)), ends_at_s


def family_ends(
    reader: Reader, manifest: Manifest, families: Iterable[str], now_s: float
) -> dict[str, int]:
    """Return when the secrets of families end in Unix seconds (0: never), without the dead ones."""
    ends: dict[str, int] = {}
    for family in families:
        key_id, _, part = family.partition(".")
        key = find_api_key(reader, manifest, key_id, now_s)
        if key is None:
            continue
        if key.secret_hash.startswith(part):
            ends[family] = key.ends_at_s
        elif (
            key.previous_hash is not None and key.previous_hash.startswith(part)
            and key.previous_until_s > now_s
        ):
            ends[family] = min(key.ends_at_s or key.previous_until_s, key.previous_until_s)
    return ends


def _invalid() -> InvalidApiKey:
    return InvalidApiKey("Bearer token is malformed, expired, or revoked")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _base64(digits: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(digits)).decode().rstrip("=")


def _text(value: Value) -> str:
    return str(value)


def _seconds(value: Value) -> int:
    return value if isinstance(value, int) else 0
