"""Transactions of clients: executes a `Transact`, all of whose operations succeed or none.

Its changes are made inside a savepoint of the batch. If one operation fails, a reference is broken
at the end, or a large row has to wait for a later batch, the savepoint is undone, and with it what
the journal, the documents and the references have noted since.

Invariant: an undone transaction leaves no trace in the batch. Bound: `limits.TRANSACT_BYTES`.
Called by `engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from pylon import limits
from pylon.errors import LimitExceeded, PylonError
from pylon.errors.wire import WireError
from pylon.storage.core.idempotency import find_replay
from pylon.storage.core.journal import Journal
from pylon.storage.core.large_rows import DeferredError
from pylon.storage.core.rows import RowWrites
from pylon.storage.core.transaction import RowTransaction
from pylon.storage.ops import Transact, WriteReply

Handler = Callable[[int, Any, Journal], WriteReply]


class TransactWrites:
    """Executes requests of many operations."""

    __slots__ = ("_documents", "_handlers", "_large", "_references", "_transaction")

    def __init__(
        self, transaction: RowTransaction, rows: RowWrites, handlers: Mapping[type, Handler]
    ) -> None:
        """
        Args:
            handlers: of the single operations, by their types.
        """
        self._transaction = transaction
        self._handlers = handlers
        self._documents = rows.documents
        self._large = rows.large
        self._references = rows.references

    def execute(self, request_id: int, op: Transact, journal: Journal) -> WriteReply:
        """Return the reply, which has one result for each operation up to the first that failed."""
        transaction, key = self._transaction, op.key
        if key is not None:
            replay = find_replay(transaction, request_id, key, journal)
            if replay is not None:
                ids = orjson.loads(replay.row_id)
                results = [WriteReply(n, 0, row_id, True) for n, row_id in enumerate(ids)]
                return WriteReply(request_id, replay.seq, "", True, 0, None, results)
        done: list[WriteReply] = []
        transaction.open_savepoint()
        journal.open_step()
        self._large.hold()
        self._references.open_step()
        try:
            for position, step in enumerate(op.ops):
                self._references.note_step(position)
                try:
                    done.append(self._handlers[type(step)](position, step, journal))
                    _check_size(journal.step_bytes)
                except PylonError as error:
                    del done[position:]
                    done.append(WriteReply(position, error=WireError.from_error(error)))
                    self._undo(journal)
                    return WriteReply(request_id, results=done)
                except DeferredError:
                    self._undo(journal)
                    raise
            broken = self._references.find_violation()
            if broken is not None:
                position, violation = broken
                del done[position:]
                done.append(WriteReply(position, error=WireError.from_error(violation)))
                self._undo(journal)
                return WriteReply(request_id, results=done)
        finally:
            self._references.close_step()
            self._large.release()
        transaction.keep_savepoint()
        journal.keep_step()
        # A row that the same commit changed before keeps its seq, so seqs need not ascend here.
        seq = max((reply.seq for reply in done), default=0)
        if key is not None:
            ids = orjson.dumps([reply.row_id for reply in done]).decode()
            journal.note_op(key, seq or journal.seq, ids)
        return WriteReply(request_id, seq, "", False, len(done), None, done)

    def _undo(self, journal: Journal) -> None:
        self._transaction.undo_savepoint()
        self._documents.undo()
        journal.undo_step()


def _check_size(size_bytes: int) -> None:
    """Refuse a `Transact` that changes too many bytes.

    Raises:
        LimitExceeded
    """
    if size_bytes > limits.TRANSACT_BYTES:
        raise LimitExceeded(
            f"A transaction may change {limits.TRANSACT_BYTES} bytes of rows, as they were and as "
            f"they become, and with this operation it is {size_bytes} (TRANSACT_BYTES)",
            hint="Change fewer or smaller rows at once, in several transactions",
        )
