"""Operations on the auth tables (`pylon.storage.auth_tables`): what a writer does with records.

Each may be submitted alone, or as a step of a `Transact` (`pylon.storage.ops`), which carries out
all of its steps in one commit, or none. So a condition that must hold at the commit is a step of
the same `Transact`:

    Transact([
        SetRecords("tokens", [Condition("hash", "=", h), Condition("used_at", "null")],
                   {"used_at": now_s}, expected=1),
        PutRecord("identities", {...}),
        PutRecord("audit", {...}),
    ])

A refused step says why: `RecordExists`, `RecordConflict`, `RateLimited`. The reply's `count` is the
number of records that the operation has changed, or found.

Conditions of a `where` hold together; an empty one selects every record. As in SQL a comparison
with a null holds for no record, not even `!=`.

Invariant: the values are of the kinds that the table declares (see `Value`); no text has a NUL.
Made by the identity workers and `pylonctl`; carried out by `pylon.storage.core.records`.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

Relation: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">=", "null", "not null"]


class Condition(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A condition on a column. `value`: unused with `null` and `not null`."""

    column: str
    relation: Relation
    value: Any = None  # str | int | bytes


class PutRecord(msgspec.Struct, frozen=True, array_like=True, tag="put_record", gc=False):
    """Insert a record. Optional columns that `values` lacks are null.

    Refused with `RecordExists` if the key is taken, or a value that must be unique. With `replace`
    it replaces the record that has the key.
    """

    table: str
    values: dict[str, Any]
    replace: bool = False


class SetRecords(msgspec.Struct, frozen=True, array_like=True, tag="set_records", gc=False):
    """Set columns of the selected records. `add`: numbers to add to int columns (a null counts as
    0). Refused with `RecordConflict` if it selects another number of records than `expected`, which
    is 1 or more. It sets no column of a key; drop such a record and put another one."""

    table: str
    where: list[Condition]
    values: dict[str, Any]
    expected: int | None = None
    add: dict[str, int] = {}


class DropRecords(msgspec.Struct, frozen=True, array_like=True, tag="drop_records", gc=False):
    """Delete the selected records. `expected`: see `SetRecords`."""

    table: str
    where: list[Condition]
    expected: int | None = None


class CheckRecords(msgspec.Struct, frozen=True, array_like=True, tag="check_records", gc=False):
    """Refuse with `RecordConflict` unless the condition selects `expected` records."""

    table: str
    where: list[Condition]
    expected: int


class LimitRecords(msgspec.Struct, frozen=True, array_like=True, tag="limit_records", gc=False):
    """Refuse with `RecordConflict` if the sum of an int column over the selected records is more
    than `at_most`."""

    table: str
    column: str
    where: list[Condition]
    at_most: int


class EndSessions(msgspec.Struct, frozen=True, array_like=True, tag="end_sessions", gc=False):
    """Delete the selected sessions except those of `keep` (session ids).

    The reply has their number as `count`, and their families as a JSON array in `row_id`. Every
    worker of every node learns of it as of a `DropSession`.
    """

    where: list[Condition]  # on the columns of "sessions"
    keep: list[str] = []
    limit: int | None = None  # end so many of them, the oldest first


class RateTake(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One unit of a bucket: `window / limit` is the interval, `interval * burst` the burst.

    `name` is the name of the rate, for the error; the key may have an address of somebody.
    """

    key: str
    interval_ns: int
    burst_ns: int
    name: str


class TakeRates(msgspec.Struct, frozen=True, array_like=True, tag="take_rates", gc=False):
    """Take a unit of each bucket of the table "limits", or of none (GCRA).

    Refused with `RateLimited` if a bucket is empty. The details have `retry_after_secs`, the
    longest wait of all empty buckets, and as `rate` the name of that one.
    """

    takes: list[RateTake]
    now_ns: int  # Unix time


RecordOp = (
    PutRecord | SetRecords | DropRecords | CheckRecords | LimitRecords | EndSessions | TakeRates
)
