"""Idempotency: executes an operation that has an op_id once, however often it is sent.

The journal notes the op_id of each executed operation with its seq and row id, in the same
transaction as the change. A repeated operation gets the same seq and row id, and changes nothing. A
failed operation leaves no note, so its op_id may be used again.

Invariant: two operations of one batch with the same op_id are one execution, too. Bound:
`limits.OP_IDS_KEPT`; `retention` drops the oldest op_ids. Called by `engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pylon.errors import IdempotencyKeyReused
from pylon.storage.core.journal import Journal
from pylon.storage.core.transaction import RowTransaction
from pylon.storage.ops import DeleteRow, InsertRow, OpKey, UpdateRow, WriteReply

Op = TypeVar("Op", InsertRow, UpdateRow, DeleteRow)


def execute_once(
    transaction: RowTransaction, execute: Callable[[int, Op, Journal], WriteReply]
) -> Callable[[int, Op, Journal], WriteReply]:
    """Return a handler that replays an operation with a known op_id, and calls `execute` otherwise.

    The handler raises what `execute` raises, and IdempotencyKeyReused (`find_replay`).
    """

    def handle(request_id: int, op: Op, journal: Journal) -> WriteReply:
        key = op.op
        if key is None:
            return execute(request_id, op, journal)
        replay = find_replay(transaction, request_id, key, journal)
        if replay is not None:
            return replay
        reply = execute(request_id, op, journal)
        journal.note_op(key, reply.seq, reply.row_id)
        return reply

    return handle


def find_replay(
    transaction: RowTransaction, request_id: int, key: OpKey, journal: Journal
) -> WriteReply | None:
    """Return the reply of an operation that was executed before, or None.

    Raises:
        IdempotencyKeyReused: another request used the key.
    """
    done = journal.find_op(transaction.log, key)
    if done is None:
        return None
    seq, row_id, digest = done
    if key.digest is not None and key.digest != digest:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used for another request",
            hint="Use a new key for each request; the same one only to repeat it unchanged",
        )
    return WriteReply(request_id, seq, row_id, True)
