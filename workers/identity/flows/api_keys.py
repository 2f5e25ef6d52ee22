"""Flows of API keys: make, list, revoke, and give one another secret (spec/identity.md §1.8).

Only the owner's sessions reach them; administrators make, list and revoke keys of all users
(`pylonctl key`). A key for everything (without a list of scopes, or with `*`)
needs a fresh sign-in, as does its rotation.

Invariants: the text of a key is in the answer that makes it, and nowhere else. A user has at most
`limits.KEYS_OF_USER` keys, also if requests race. A secret that has ended closes its sockets.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.api.identity.api_key_bodies import (
    AdminApiKeyBody,
    ApiKeyAnswer,
    CreateApiKeyBody,
    NewApiKeyAnswer,
    RevokedAnswer,
    RotateApiKeyBody,
)
from pylon.auth.api_keys import SHA256, family_of_key, may_own_keys, new_api_key
from pylon.auth.audit import audit_step
from pylon.auth.display_names import clean_name
from pylon.auth.freshness import require_fresh
from pylon.auth.transactions import Step, carry_out
from pylon.auth_context import Caller
from pylon.bus.identity import IdentityAnswer, json_answer
from pylon.bus.messages import SessionRevoked
from pylon.errors import (
    AuthRequired,
    InvalidData,
    LimitExceeded,
    NotFound,
    RecordConflict,
    Unavailable,
    UserNotFound,
)
from pylon.key_scopes import EVERYTHING, parse_scopes
from pylon.storage.auth_ops import CheckRecords, Condition, DropRecords, PutRecord, SetRecords
from pylon.storage.auth_tables import Value
from workers.identity.identity import Call, Identity

_ATTEMPTS: Final = 3
_TABLE: Final = "api_keys"
_LISTED: Final = 1_000
_Record = dict[str, Value]


def create(identity: Identity, call: Call) -> IdentityAnswer:
    """Make a key for the caller."""
    body = call.decode(CreateApiKeyBody)
    user_id = _owner_of(identity, call)
    scopes = parse_scopes(body.scopes, identity.app.manifest.by_name)
    _require_fresh_for(identity, call, scopes)
    return _make(identity, call, user_id, body, scopes)


def admin_create(identity: Identity, call: Call) -> IdentityAnswer:
    """Make a key for a user."""
    body = call.decode(AdminApiKeyBody)
    manifest, user_id = identity.app.manifest, body.user_id
    if not identity.store.point(lambda reader: may_own_keys(reader, manifest, user_id)):
        raise UserNotFound("There is no such user, or the user is locked")
    scopes = parse_scopes(body.scopes, manifest.by_name)
    return _make(identity, call, user_id, body, scopes)


def _make(
    identity: Identity, call: Call, user_id: str, body: CreateApiKeyBody, scopes: str | None
) -> IdentityAnswer:
    """Store a key of a user, and return it.

    Raises:
        InvalidName, InvalidData: of the body.
        LimitExceeded: the user has enough keys.
    """
    name = clean_name(body.name)
    now_s = identity.now_s()
    if body.expires_at is not None and body.expires_at <= now_s:
        raise InvalidData(
            f"expires_at is {body.expires_at}, which has passed", hint=f"It is {now_s} now",
            field="expires_at",
        )
    key = new_api_key(identity.app.random)
    values = {
        "id": key.key_id, "user_id": user_id, "name": name, "prefix": key.prefix,
        "hash": key.secret_hash, "alg": SHA256, "scopes": scopes, "expires_at": body.expires_at,
        "created_at": now_s,
    }
    own = [Condition("user_id", "=", user_id)]
    audit = _audit(identity, call, "api_key_create", key.key_id, user_id)
    for _ in range(_ATTEMPTS):
        count = identity.store.point(lambda reader: reader.count_records(_TABLE, own))
        if count >= limits.KEYS_OF_USER:
            raise LimitExceeded(
                f"A user may have {limits.KEYS_OF_USER} API keys", hint="Revoke one of yours"
            )
        steps: list[Step] = [CheckRecords(_TABLE, own, count), PutRecord(_TABLE, values), audit]
        try:
            carry_out(identity.writer.submit, steps)
        except RecordConflict:
            continue  # another request has made or dropped a key meanwhile
        return json_answer(NewApiKeyAnswer(
            key=key.text, id=key.key_id, prefix=key.prefix, name=name, scopes=scopes,
            expires_at=body.expires_at, created_at=now_s,
        ))
    raise Unavailable("Other requests change your API keys", hint="Try again in a moment")


def list_keys(identity: Identity, call: Call) -> IdentityAnswer:
    """List the caller's keys, without any part of a secret but the prefix."""
    own = [Condition("user_id", "=", str(call.facts.auth.user_id))]
    found = identity.store.point(
        lambda reader: reader.records(_TABLE, own, ["created_at", "id"], limits.KEYS_OF_USER)
    )
    return json_answer([_answer_of(record) for record in found])


def admin_list(identity: Identity, call: Call) -> IdentityAnswer:
    """List the keys of a user, or of all: the newest 1,000."""
    user_id = call.params.get("user_id")
    where = [] if user_id is None else [Condition("user_id", "=", user_id)]
    found = identity.store.point(
        lambda reader: reader.records(_TABLE, where, ["-created_at", "id"], _LISTED)
    )
    return json_answer([_answer_of(record) for record in found])


def admin_revoke(identity: Identity, call: Call) -> IdentityAnswer:
    """End a key of any user."""
    where = [Condition("id", "=", call.params["key_id"])]
    found = identity.store.point(lambda reader: reader.records(_TABLE, where))
    if not found:
        raise NotFound("There is no such API key")
    return _drop(identity, call, found[0], where)


def revoke(identity: Identity, call: Call) -> IdentityAnswer:
    """End a key of the caller."""
    record = _own_key(identity, call)
    return _drop(identity, call, record, _is_key(call, str(record["id"])))


def _drop(
    identity: Identity, call: Call, record: _Record, where: list[Condition]
) -> IdentityAnswer:
    try:
        carry_out(identity.writer.submit, [
            DropRecords(_TABLE, where, expected=1),
            _audit(identity, call, "api_key_revoke", str(record["id"]), str(record["user_id"])),
        ])
    except RecordConflict:
        raise _not_found() from None
    _close_sockets(identity, record)
    return json_answer(RevokedAnswer())


def rotate(identity: Identity, call: Call) -> IdentityAnswer:
    """Give a key of the caller another secret."""
    body = call.decode(RotateApiKeyBody)
    _owner_of(identity, call)
    record = _own_key(identity, call)
    key_id, scopes = str(record["id"]), _text_or_null(record["scopes"])
    _require_fresh_for(identity, call, scopes)
    key = new_api_key(identity.app.random, key_id)
    now_s = identity.now_s()
    values: _Record = {"hash": key.secret_hash, "previous_hash": None, "previous_until": None}
    if body.overlap_s:
        values |= {"previous_hash": record["hash"], "previous_until": now_s + body.overlap_s}
    where = [*_is_key(call, key_id), Condition("hash", "=", record["hash"])]
    try:
        carry_out(identity.writer.submit, [
            SetRecords(_TABLE, where, values, expected=1),
            _audit(identity, call, "api_key_rotate", key_id, str(record["user_id"])),
        ])
    except RecordConflict:
        raise _not_found() from None
    _close_sockets(identity, {**record, "hash": None} if body.overlap_s else record)
    return json_answer(NewApiKeyAnswer(
        key=key.text, id=key_id, prefix=key.prefix, name=str(record["name"]), scopes=scopes,
        expires_at=_int_or_null(record["expires_at"]), created_at=_int(record["created_at"]),
    ))


def _owner_of(identity: Identity, call: Call) -> str:
    """Return the caller's user id, if the user may have keys.

    Raises:
        AuthRequired: the caller is a guest, or has no row.
    """
    auth = call.facts.auth
    user_id = str(auth.user_id)
    if auth.is_guest or not identity.store.point(
        lambda reader: may_own_keys(reader, identity.app.manifest, user_id)
    ):
        raise AuthRequired(
            "API keys belong to accounts, and this session is of none",
            hint=f"Sign in as a user with a row in {identity.app.manifest.auth.user_entity}",
        )
    return user_id


def _require_fresh_for(identity: Identity, call: Call, scopes: str | None) -> None:
    """Check the freshness of the sign-in, for a key that may do everything.

    Raises:
        ReauthRequired
    """
    if scopes is None or EVERYTHING in scopes.split():
        require_fresh(
            Caller(call.facts.auth, call.facts.session_id),
            identity.app.manifest.auth.reauth_s, identity.app.clock, identity.store.point,
        )


def _own_key(identity: Identity, call: Call) -> _Record:
    where = _is_key(call, call.params["key_id"])
    found = identity.store.point(lambda reader: reader.records(_TABLE, where))
    if not found:
        raise _not_found()
    return found[0]


def _is_key(call: Call, key_id: str) -> list[Condition]:
    return [
        Condition("id", "=", key_id), Condition("user_id", "=", str(call.facts.auth.user_id)),
    ]


def _close_sockets(identity: Identity, record: _Record) -> None:
    """Have the sockets of the secrets closed at once; the sweep of each worker closes the rest."""
    for name in ("hash", "previous_hash"):
        secret_hash = record[name]
        if isinstance(secret_hash, str):
            family = family_of_key(str(record["id"]), secret_hash)
            identity.send_signal(SessionRevoked(family))


def _audit(
    identity: Identity, call: Call, action: str, key_id: str, user_id: str
) -> PutRecord:
    facts = call.facts
    return audit_step(
        action, identity.app.clock, identity.app.random, user_id=user_id,
        actor_id=facts.auth.user_id, tenant_id=facts.auth.tenant_id, ip=facts.address,
        user_agent=facts.device,
        metadata={"key_id": key_id},
    )


def _not_found() -> NotFound:
    return NotFound("There is no such API key of yours", hint="GET /api/auth/api-keys lists them")


def _answer_of(record: _Record) -> ApiKeyAnswer:
    return ApiKeyAnswer(
        id=str(record["id"]), user_id=str(record["user_id"]), prefix=str(record["prefix"]),
        name=str(record["name"]),
        scopes=_text_or_null(record["scopes"]), expires_at=_int_or_null(record["expires_at"]),
        last_used_at=_int_or_null(record["last_used_at"]), created_at=_int(record["created_at"]),
    )


def _text_or_null(value: Value) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: Value) -> int:
    return value if isinstance(value, int) else 0


def _int_or_null(value: Value) -> int | None:
    return value if isinstance(value, int) else None
