"""Batch engine: executes many requests in one transaction (design.md §3, "Writer").

Each request changes at most one row with one primitive (`rows`), which has no effect if it fails.
The journal collects the events and op_ids of the batch, and writes them just before the commit. So
no request needs a savepoint, except a `Transact` (`transact`). `run_step` executes a step of
maintenance in a transaction of its own.

Where several writers share a database, the seqs of a batch are provisional until its commit; the
replies and events get the final ones after it. A batch that another writer has overtaken is
executed again, with the others locked out.

Invariants: `head` moves only after a commit. At most one committed event has a given seq. After an
unexpected exception the engine undoes the batch and executes it again without the request that
failed. If the store fails, nothing is written. The engine acknowledges nothing while
`RowTransaction.find_problem` finds a problem. A backend's writer makes one engine; one thread at a
time calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from pylon import limits, metrics
from pylon.clock import NS_PER_S, Clock
from pylon.errors import (
    InternalError,
    OutcomeUnknown,
    PylonError,
    StoreUnavailable,
)
from pylon.errors.wire import WireError
from pylon.log import get_logger
from pylon.manifest import references
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.storage.auth_ops import (
    CheckRecords,
    DropRecords,
    EndSessions,
    LimitRecords,
    PutRecord,
    SetRecords,
    TakeRates,
)
from pylon.storage.core.entity import EntityWrites
from pylon.storage.core.idempotency import execute_once
from pylon.storage.core.journal import Journal
from pylon.storage.core.large_rows import DeferredError
from pylon.storage.core.records import RecordWrites
from pylon.storage.core.retention import Retention
from pylon.storage.core.rows import RowWrites
from pylon.storage.core.sessions import put_session
from pylon.storage.core.transact import Handler, TransactWrites
from pylon.storage.core.transaction import (
    PROVISIONAL_SEQ,
    ForeignWriterError,
    OutcomeUnknownError,
    OutdatedError,
    RequestsFailed,
    RowTransaction,
)
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.ops import (
    ClaimShard,
    DeleteRow,
    DropSession,
    DropShard,
    InsertRow,
    MoveShard,
    OpenDocument,
    PushDocument,
    PutSession,
    PutShard,
    ReleaseShard,
    ResetRows,
    Transact,
    UpdateRow,
    WriteReply,
    WriteRequest,
)
from pylon.storage.records import BatchRefusal, BatchResult

T = TypeVar("T")

_log: Final = get_logger("engine")


class BatchEngine:
    """See the module, and `pylon.storage.interface.WriteEngine`."""

    def __init__(
        self, transaction: RowTransaction, manifest: Manifest, rules: RuleSet, clock: Clock,
        row_max_bytes: int = limits.BODY_BYTES, retention: Retention | None = None,
    ) -> None:
        """
        Args:
            row_max_bytes: largest size of a row's JSON (PYLON_ROW_MAX_BYTES).
            retention: counts what this engine's transactions log.
        """
        self._transaction = transaction
        self._clock = clock
        entities = {
            e.name: EntityWrites(
                e, rules.for_entity(e.name),
                transaction.table(e, rules.for_entity(e.name)), row_max_bytes, clock=clock,
            )
            for e in manifest.entities
        }
        by_default = transaction.get_fact(references.FACT) == "check"
        rows = RowWrites(
            transaction, entities, clock,
            references.checked_references(manifest, by_default=by_default),
        )
        records = RecordWrites(transaction)
        self._documents = rows.documents
        self._large = rows.large
        self._retention = retention
        self._asked = rules.asked_by_readers
        self._is_run_ended = False
        self._problem: BatchRefusal | None = None
        self.head = transaction.log.head_seq()
        self._handlers: dict[type, Handler] = {
            InsertRow: execute_once(transaction, rows.insert),
            UpdateRow: execute_once(transaction, rows.update),
            DeleteRow: execute_once(transaction, rows.delete),
            ResetRows: rows.reset,
            OpenDocument: self._documents.open,
            PushDocument: self._documents.push,
            PutSession: self._put_session,
            DropSession: self._drop_session,
            ClaimShard: self._claim_shard,
            PutShard: self._put_shard,
            MoveShard: self._place_shard,
            DropShard: self._drop_shard,
            ReleaseShard: self._release_shard,
            PutRecord: records.put,
            SetRecords: records.set,
            DropRecords: records.drop,
            CheckRecords: records.check,
            LimitRecords: records.limit,
            EndSessions: records.end_sessions,
            TakeRates: records.take_rates,
        }
        transacts = TransactWrites(transaction, rows, self._handlers)
        self._handlers[Transact] = transacts.execute

    def apply(
        self, requests: Sequence[WriteRequest], *, large_bytes: int | None = None
    ) -> BatchResult:
        """See `pylon.storage.interface.WriteEngine`."""
        started_s = self._clock.monotonic_s()
        broken: dict[int, WriteReply] = {}
        overtaken = 0
        if self._problem is not None:
            self._problem = self._transaction.find_problem()
            if self._problem is not None:
                return self._refuse_batch(requests, self._problem, started_s)
        while True:
            try:
                result = self._apply_once(
                    requests, broken, started_s, large_bytes, locked=overtaken > 0
                )
            except OutdatedError as error:
                overtaken += 1
                metrics.BATCHES_OVERTAKEN.inc()
                if overtaken > limits.BATCH_TRIES:
                    return self._refuse(requests, error, started_s)
                continue
            except RequestsFailed as failed:
                for position, failure in failed.errors.items():
                    refusal = WireError.from_error(failure)
                    broken[position] = WriteReply(requests[position].id, error=refusal)
                continue
            except ForeignWriterError as error:
                # The log has events of another program. Continue above them.
                self.head = self._transaction.log.head_seq()
                cause = error.__cause__
                return self._refuse(
                    requests, cause if isinstance(cause, Exception) else error, started_s
                )
            except self._transaction.errors as error:
                return self._refuse(requests, error, started_s)
            if result is not None:
                # Check after the commit and before the replies: see `RowTransaction.find_problem`.
                self._problem = self._transaction.find_problem()
                if self._problem is not None:
                    return self._refuse_batch(requests, self._problem, started_s)
                return result

    def run_step(self, step: Callable[[], T]) -> T:
        """Run a step of maintenance in a transaction of its own. The step changes no row.

        Raises:
            StoreUnavailable: the store failed; nothing was changed.
            PylonError: the step raised it; nothing was changed.
        """
        transaction = self._transaction
        self._refuse_misplaced()
        try:
            transaction.begin_step()
            is_committed = False
            try:
                result = step()
                transaction.commit()
                is_committed = True
            finally:
                if not is_committed:
                    transaction.roll_back()
                    self._forget_counts()
        except transaction.errors as error:
            raise _unavailable(transaction.refusal_of(error)[1]) from error
        self._refuse_misplaced()
        return result

    def _refuse_misplaced(self) -> None:
        """
        Raises:
            StoreUnavailable: see `RowTransaction.find_problem`.
        """
        self._problem = self._transaction.find_problem()
        if self._problem is not None:
            raise _misplaced()

    def _forget_counts(self) -> None:
        if self._retention is not None:
            self._retention.undo()

    def end_run(self) -> None:
        """See `pylon.storage.interface.Maintenance`."""
        self.run_step(lambda: self._transaction.end_run(self.head))
        self._is_run_ended = True

    # --- The transaction -------------------------------------------------------------------

    def _apply_once(
        self, requests: Sequence[WriteRequest], broken: dict[int, WriteReply], started_s: float,
        large_bytes: int | None, locked: bool,
    ) -> BatchResult | None:
        """Execute all requests except the `broken` ones.

        Returns: the result, or None if one more request failed unexpectedly (see `broken`).

        Raises: every exception of the transaction's `errors`; the transaction was rolled back.
        """
        transaction = self._transaction
        replies: list[WriteReply] = []
        deferred: list[WriteRequest] = []
        is_deferring = False  # until the end of the call whose request was deferred
        handlers = self._handlers
        self._large.begin(large_bytes)
        head = transaction.begin(requests, self.head, locked)
        is_committed = False
        try:
            journal = Journal(head, self._clock.wall_ns() // NS_PER_S, self._asked)
            for position, request in enumerate(requests):
                if broken and position in broken:
                    replies.append(broken[position])
                    continue
                if is_deferring:
                    deferred.append(request)
                    is_deferring = request.has_more
                    continue
                op = request.op
                transaction.position = position
                try:
                    replies.append(handlers[type(op)](request.id, op, journal))
                except PylonError as error:
                    replies.append(WriteReply(request.id, error=WireError.from_error(error)))
                except DeferredError:
                    deferred.append(request)
                    is_deferring = request.has_more
                except transaction.store_failures:
                    raise
                except Exception as error:  # noqa: BLE001
                    # Unexpected: the request may have made some of its changes. Undo everything,
                    # and execute the batch again without it.
                    _log.exception("write.broken", error=error, op=type(op).__name__)
                    failure = WireError.from_error(InternalError("the write failed unexpectedly"))
                    broken[position] = WriteReply(request.id, error=failure)
                    return None
            if self._is_run_ended and journal.seq > self.head:
                transaction.resume_run()
            journal.write(transaction.log)
            shift = transaction.commit()
            is_committed = True
        finally:
            # SQLite itself ends a transaction whose COMMIT fails, so none may be open any more.
            if not is_committed:
                transaction.roll_back()
                self._forget_counts()
                self._documents.undo()
        events = journal.events
        if shift is None:
            previous, self.head = self.head, journal.seq
        else:
            previous, self.head = shift.head, journal.seq + shift.by
            if shift.by:
                replies = [_shift_reply(reply, shift.by) for reply in replies]
                events = [_shift_event(event, shift.by) for event in events]
        if events:
            self._is_run_ended = False
        if self._retention is not None:
            self._retention.commit(previous, events, len(journal.ops))
        self._documents.commit()
        published = ChangeBatch(previous, events) if events else None
        return BatchResult(
            replies, published, self._clock.monotonic_s() - started_s, journal.documents,
            deferred, self._large.rows, self._large.spent_bytes,
        )

    def _refuse(
        self, requests: Sequence[WriteRequest], cause: Exception, started_s: float
    ) -> BatchResult:
        refusal, text = self._transaction.refusal_of(cause)
        if isinstance(cause, OutcomeUnknownError):
            error = WireError.from_error(OutcomeUnknown(
                f"the database was lost during the commit: {text}",
                hint="repeat it with the same Idempotency-Key or op_id; without one, read first",
            ))
        else:
            error = WireError.from_error(_unavailable(text))
        replies = [WriteReply(r.id, error=error) for r in requests]
        return BatchResult(
            replies, None, self._clock.monotonic_s() - started_s, refusal=refusal
        )

    def _refuse_batch(
        self, requests: Sequence[WriteRequest], problem: BatchRefusal, started_s: float
    ) -> BatchResult:
        error = WireError.from_error(_misplaced())
        replies = [WriteReply(r.id, error=error) for r in requests]
        return BatchResult(
            replies, None, self._clock.monotonic_s() - started_s, refusal=problem
        )

    # --- Operations on no row ----------------------------------------------------------------

    def _put_session(self, request_id: int, op: PutSession, _: Journal) -> WriteReply:
        put_session(self._transaction.sessions, op)
        return WriteReply(request_id, count=1)

    def _drop_session(self, request_id: int, op: DropSession, _: Journal) -> WriteReply:
        return WriteReply(request_id, count=self._transaction.sessions.drop_session(op.session_id))

    def _claim_shard(self, request_id: int, op: ClaimShard, journal: Journal) -> WriteReply:
        generation = self._transaction.shards.claim_shard(
            op.shard_id, op.owner, op.lease, op.region, journal.now_s
        )
        return WriteReply(request_id, seq=generation, count=int(generation > 0))

    def _put_shard(self, request_id: int, op: PutShard, journal: Journal) -> WriteReply:
        self._transaction.shards.put_shard(
            op.shard_id, op.tick, op.data, journal.now_s, op.generation
        )
        return WriteReply(request_id, count=1)

    def _place_shard(self, request_id: int, op: MoveShard, journal: Journal) -> WriteReply:
        self._transaction.shards.place_shard(op.shard_id, op.home, journal.now_s, op.generation)
        return WriteReply(request_id, count=1)

    def _drop_shard(self, request_id: int, op: DropShard, _: Journal) -> WriteReply:
        count = self._transaction.shards.drop_shard(op.shard_id, op.generation)
        return WriteReply(request_id, count=count)

    def _release_shard(self, request_id: int, op: ReleaseShard, _: Journal) -> WriteReply:
        self._transaction.shards.release_shard(op.shard_id, op.generation)
        return WriteReply(request_id, count=1)


def _shift_reply(reply: WriteReply, by: int) -> WriteReply:
    """Return a reply with its final seq; one replayed from an earlier batch has it already."""
    seq, results = reply.seq, reply.results
    if results is not None:
        results = [_shift_reply(result, by) for result in results]
    elif seq < PROVISIONAL_SEQ:
        return reply
    if seq >= PROVISIONAL_SEQ:
        seq += by
    return WriteReply(
        reply.id, seq, reply.row_id, reply.replayed, reply.count, reply.error, results
    )


def _shift_event(event: ChangeEvent, by: int) -> ChangeEvent:
    return ChangeEvent(
        event.seq + by, event.entity, event.row_id, event.kind, event.data, event.prev_data,
        event.timestamp_s,
    )


def _unavailable(text: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"the database is not available, nothing was written: {text}",
        hint="see the server's log; free space on the disk if it is full",
    )


def _misplaced() -> StoreUnavailable:
    return StoreUnavailable(
        "the database file is no longer in its place, nothing was written",
        hint="see the server's log, which says what to do",
    )
