"""Record rules: carries out the operations on the auth tables (`pylon.storage.auth_ops`).

A primitive of a backend changes all that its conditions select, or nothing, and returns how many
records that were. From this the rules tell a refusal. The buckets of rates are read and written by
their own arithmetic: no other writer runs meanwhile.

Rates are GCRA: a bucket has the time at which it will be full again (`tat`). A take moves it on by
one interval, and is allowed while it stays within the burst from now. A `tat` that lies further
ahead than the burst, because the clock was set back or the rate was changed, counts as an empty
bucket.

Invariant: a refused operation has changed nothing. Called by `engine`, within its transaction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import orjson

from pylon.clock import NS_PER_S
from pylon.errors import RateLimited, RecordConflict, RecordExists
from pylon.storage.auth_ops import (
    CheckRecords,
    DropRecords,
    EndSessions,
    LimitRecords,
    PutRecord,
    RateTake,
    SetRecords,
    TakeRates,
)
from pylon.storage.core.journal import Journal
from pylon.storage.core.transaction import RowTransaction
from pylon.storage.ops import WriteReply


class RecordWrites:
    """Executes the operations on records."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: RowTransaction) -> None:
        self._transaction = transaction

    def put(self, request_id: int, op: PutRecord, _: Journal) -> WriteReply:
        """
        Raises:
            RecordExists
        """
        if not self._transaction.records.put_record(op.table, op.values, replaces=op.replace):
            raise RecordExists(
                f'the auth table "{op.table}" has such a record already', table=op.table
            )
        return WriteReply(request_id, count=1)

    def set(self, request_id: int, op: SetRecords, _: Journal) -> WriteReply:
        """
        Raises:
            RecordConflict
        """
        count = self._transaction.records.set_records(
            op.table, op.where, op.values, op.add, op.expected
        )
        return _reply(request_id, op.table, count, op.expected)

    def drop(self, request_id: int, op: DropRecords, _: Journal) -> WriteReply:
        """
        Raises:
            RecordConflict
        """
        count = self._transaction.records.drop_records(op.table, op.where, op.expected)
        return _reply(request_id, op.table, count, op.expected)

    def check(self, request_id: int, op: CheckRecords, _: Journal) -> WriteReply:
        """
        Raises:
            RecordConflict
        """
        count = self._transaction.records.count_records(op.table, op.where)
        return _reply(request_id, op.table, count, op.expected)

    def limit(self, request_id: int, op: LimitRecords, _: Journal) -> WriteReply:
        """
        Raises:
            RecordConflict: the sum is too large.
        """
        total = self._transaction.records.add_up_records(op.table, op.column, op.where)
        if total > op.at_most:
            raise RecordConflict(
                f"{op.table}.{op.column} adds up to {total}, and at most {op.at_most} is allowed",
                table=op.table,
            )
        return WriteReply(request_id)

    def end_sessions(self, request_id: int, op: EndSessions, _: Journal) -> WriteReply:
        """Return the reply with the families of the sessions."""
        ended = self._transaction.sessions.end_sessions(op.where, op.keep, op.limit)
        families = orjson.dumps(list(dict.fromkeys(ended))).decode()
        return WriteReply(request_id, row_id=families, count=len(ended))

    def take_rates(self, request_id: int, op: TakeRates, _: Journal) -> WriteReply:
        """
        Raises:
            RateLimited: nothing was taken.
        """
        records = self._transaction.records
        tats = records.find_tats(list(dict.fromkeys(take.key for take in op.takes)))
        empty: list[tuple[int, RateTake]] = []
        for take in op.takes:
            ahead_ns = min(max(tats.get(take.key, 0), op.now_ns), op.now_ns + take.burst_ns)
            tat = ahead_ns + take.interval_ns
            wait_ns = tat - op.now_ns - take.burst_ns
            if wait_ns > 0:
                empty.append((wait_ns, take))
            else:
                tats[take.key] = tat
        if empty:
            raise _rate_limited(empty)
        records.put_tats({take.key: tats[take.key] for take in op.takes})
        return WriteReply(request_id, count=len(op.takes))


def _reply(request_id: int, table: str, count: int, expected: int | None) -> WriteReply:
    if expected is not None and count != expected:
        raise RecordConflict(
            f'the records of the auth table "{table}" have changed meanwhile', table=table
        )
    return WriteReply(request_id, count=count)


def _rate_limited(empty: Sequence[tuple[int, RateTake]]) -> RateLimited:
    wait_ns, take = max(empty, key=lambda found: found[0])
    seconds = max(1, math.ceil(wait_ns / NS_PER_S))
    return RateLimited(
        f"Too many attempts ({take.name})", hint=f"Try again in {seconds}s",
        retry_after_secs=seconds, rate=take.name,
    )
