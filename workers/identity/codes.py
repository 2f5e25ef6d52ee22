"""Codes and links: records of what a mail proves, made and used up.

A code has six digits, so the table holds its MAC, and each code bears `CODE_ATTEMPTS` attempts. An
attempt is counted on all living codes of its address, in a write of its own and before anything is
compared, so attempts that run at once are all counted. A link has a token of 256 random bits: the
table holds its hash, and it needs no count.

The newest two of one purpose and address are valid, since mails arrive late and out of order. A
code of one purpose or address is none of another.

Invariants: `use` is a conditional step, which belongs into the transaction that has the effect, so
of many uses at once one wins. Codes and tokens reach no log, error or repr. Called by the flows of
mail; `purpose` is one of the constants here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from pylon.auth.keys import hash_token
from pylon.auth.transactions import Step
from pylon.errors import InvalidCode, InvalidToken, RateLimited
from pylon.limits import CODE_ATTEMPTS
from pylon.storage.auth_ops import Condition, DropRecords, PutRecord, SetRecords
from pylon.storage.auth_tables import Value
from workers.identity.identity import Identity

SIGN_IN_CODE: Final = "magic_code"
VERIFY_CODE: Final = "verify_email"
SIGN_IN_LINK: Final = "magic_link"
CHANGE_LINK: Final = "email_change"
REVERT_LINK: Final = "email_revert"
CARRY_JOB: Final = "carry_over"  # `workers.identity.carry_over`

TABLE: Final = "tokens"
_DIGITS: Final = 6
_TOKEN_BYTES: Final = 32
_VALID: Final = 2  # of one purpose and address


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A new code or token for the mail, and the steps that store it."""

    secret: str = field(repr=False)
    steps: list[Step]


@dataclass(frozen=True, slots=True)
class Found:
    """A valid record, and the step that uses it up."""

    record: dict[str, Value] = field(repr=False)
    use: Step

    @property
    def data(self) -> dict[str, str]:
        """Return what the maker of a link has stored with it."""
        return msgspec.json.decode(str(self.record.get("data") or "{}"), type=dict[str, str])


def make_code(
    identity: Identity, purpose: str, email_key: str, life_s: int, *, user_id: str | None = None
) -> NewSecret:
    """Return a new code for an address."""
    code = f"{identity.app.random.below(10 ** _DIGITS):0{_DIGITS}d}"
    record = _record(
        identity, identity.keys.mac("code", purpose, email_key, code), purpose, life_s,
        user_id=user_id, email_key=email_key,
    )
    # The same digits may have been used already: then the new record replaces the old one.
    return NewSecret(code, [
        *_drop_older(identity, purpose, email_key), PutRecord(TABLE, record, replace=True)
    ])


def make_link(
    identity: Identity, purpose: str, life_s: int, *, email_key: str | None = None,
    user_id: str | None = None, data: dict[str, str] | None = None,
) -> NewSecret:
    """Return a new token for a link."""
    token = identity.app.random.token_hex(_TOKEN_BYTES)
    record = _record(
        identity, hash_token(token), purpose, life_s, user_id=user_id, email_key=email_key,
        data=data,
    )
    older = [] if email_key is None else _drop_older(identity, purpose, email_key)
    return NewSecret(token, [*older, PutRecord(TABLE, record)])


def find_code(identity: Identity, purpose: str, email_key: str, code: str) -> Found:
    """Count an attempt, and return the record of a code.

    Raises:
        InvalidCode: it is not a valid code of this purpose and address.
        RateLimited: the codes of the address have had all their attempts.
    """
    now_s = identity.now_s()
    of_address = [
        Condition("purpose", "=", purpose), Condition("email_key", "=", email_key),
        Condition("used_at", "null"), Condition("expires_at", ">", now_s),
    ]
    alive = [*of_address, Condition("attempts", "<", CODE_ATTEMPTS)]
    macs = identity.keys.macs("code", purpose, email_key, code.replace(" ", ""))
    others = [*alive, *(Condition("hash", "!=", mac) for mac in macs)]
    replies = identity.writer.submit_all([
        SetRecords(TABLE, where, {}, add={"attempts": 1})
        for where in (*([Condition("hash", "=", mac), *alive] for mac in macs), others)
    ])
    for reply in replies:
        if reply.error is not None:
            raise reply.error.to_exception()
    for mac, reply in zip(macs, replies, strict=False):
        if reply.count:
            of_code = [Condition("hash", "=", mac), *of_address]
            return Found({}, SetRecords(TABLE, of_code, {"used_at": now_s}, 1))
    if not any(reply.count for reply in replies) and identity.store.point(
        lambda reader: reader.count_records(TABLE, of_address)
    ):
        raise RateLimited("Too many wrong codes", hint="Ask for a new code", retry_after_secs=60)
    raise invalid_code()


def find_link(identity: Identity, purpose: str, token: str) -> Found:
    """Return the record of a link's token.

    Raises:
        InvalidToken: it is unknown, used, expired, or of another purpose.
    """
    now_s = identity.now_s()
    where = [
        Condition("hash", "=", hash_token(token)), Condition("purpose", "=", purpose),
        Condition("used_at", "null"), Condition("expires_at", ">", now_s),
    ]
    records = identity.store.point(lambda reader: reader.records(TABLE, where))
    if not records:
        raise invalid_token()
    return Found(records[0], SetRecords(TABLE, where, {"used_at": now_s}, 1))


def drop_tokens(user_id: str) -> Step:
    """Return the step that ends the codes, links and challenges of an account.

    Two kinds of records stay: the link by which the owner takes a change of the address back, since
    a thief could end it otherwise, and the rest of a guest's rows that is still to be moved.
    """
    return DropRecords(TABLE, [
        Condition("user_id", "=", user_id),
        *(Condition("purpose", "!=", purpose) for purpose in (REVERT_LINK, CARRY_JOB)),
    ])


def invalid_token() -> InvalidToken:
    """Return the error of every link that does not work, whatever the reason."""
    return InvalidToken("The link is not valid any more", hint="Ask for a new one")


def invalid_code() -> InvalidCode:
    """Return the error of every code that does not work, whatever the reason."""
    return InvalidCode("The code is wrong or has expired", hint="Check it, or ask for a new one")


def _record(
    identity: Identity, hashed: str, purpose: str, life_s: int, *, user_id: str | None,
    email_key: str | None, data: dict[str, str] | None = None,
) -> dict[str, Value]:
    now_s = identity.now_s()
    record: dict[str, Value] = {
        "hash": hashed, "purpose": purpose, "attempts": 0, "created_at": now_s,
        "expires_at": now_s + life_s,
    }
    if user_id is not None:
        record["user_id"] = user_id
    if email_key is not None:
        record["email_key"] = email_key
    if data:
        record["data"] = msgspec.json.encode(data).decode()
    return record


def _drop_older(identity: Identity, purpose: str, email_key: str) -> list[Step]:
    """Return the steps that leave one living record of the purpose and address."""
    where = [Condition("purpose", "=", purpose), Condition("email_key", "=", email_key)]
    records = identity.store.point(
        lambda reader: reader.records(TABLE, where, order=("-created_at",))
    )
    return [
        DropRecords(TABLE, [Condition("hash", "=", record["hash"])])
        for record in records[_VALID - 1:]
    ]
