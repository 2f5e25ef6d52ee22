"""PostgreSQL transaction: implements `pylon.storage.core.transaction.RowTransaction`.

Writers of all nodes order their commits by one advisory lock of the transaction, and by nothing
else: no row locks, so no deadlocks among nodes. Usually a batch is *optimistic*. It reads ahead
without a transaction (`prefetch`), the core executes its requests on an `overlay`, and one `flush`
sends BEGIN, the lock, the seqs, *guards*, all statements, the notification and COMMIT. So no round
trip happens under the lock. A guard fails if a row that the batch relies on is no longer as it was
read.

A primitive whose answer the flush could not check takes the lock at once (`lock`): questions about
other rows, scans, documents. From then on the transaction is *locked*: it knows its seqs, reads the
database itself, and sends what it has gathered before each scan. A batch that was overtaken begins
locked.

Invariants: seqs, document numbers and mark numbers ascend in commit order, since all are taken
under the lock. What the database refuses is undone as a whole; the request at fault is found by
sending the statements again, one request at a time, behind savepoints (`_find_refused`). After a
lost connection during a COMMIT nothing is answered before the outcome is known (`_settle`).

Made by `engine`; one thread at a time uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg.pq.abc import PGresult

from pylon import limits, metrics
from pylon.clock import NS_PER_S, Clock
from pylon.errors import InternalError, InvalidValue, PylonError
from pylon.log import get_logger
from pylon.manifest import references
from pylon.manifest.model import Entity, Manifest
from pylon.policy.entity_rules import EntityRules
from pylon.query.predicate import Predicate
from pylon.storage.core.transaction import (
    PROVISIONAL_SEQ,
    DocumentKey,
    DoneOp,
    ForeignWriterError,
    OpName,
    OutcomeUnknownError,
    OutdatedError,
    RequestsFailed,
    Shift,
)
from pylon.storage.events import ChangeEvent
from pylon.storage.ops import DeleteRow, InsertRow, UpdateRow, WriteRequest
from pylon.storage.postgres import documents, log, meta, op_ids, sessions, shards
from pylon.storage.postgres.channels import payload
from pylon.storage.postgres.connect import STORE_FAILURES, error_text, is_lost, refusal_reason
from pylon.storage.postgres.flush import NO_REQUEST, Flush, Gathered, InsertShape, last_seq_of
from pylon.storage.postgres.names import quote
from pylon.storage.postgres.overlay import Check, KnownRow, Overlay, RowKey
from pylon.storage.postgres.parameters import EncodedParameters, Parameter, encode_parameters
from pylon.storage.postgres.prefetch import EntityReads, Prefetch, is_sendable
from pylon.storage.postgres.table import PostgresTable
from pylon.storage.postgres.wire import BlockingSession, PipelineOutcome, Statement
from pylon.storage.postgres.writer_session import LOCK_WAIT_S, WriterSession
from pylon.storage.records import BatchRefusal, DocumentView, SessionRow, StoredDocument

SETTLE_S: Final = limits.WRITE_TIMEOUT_S * 0.8  # how long the outcome of a commit is asked for
_SETTLE_PAUSE_S: Final = 0.2
_UNKNOWN: Final = object()
_KINDS: Final = {kind: kind.encode() for kind in ("insert", "update", "delete")}
_AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_BASE: Final = f"SELECT {log.LAST_OF}, {documents.NEWEST_NUMBER}"
# A guard fails with an invalid number, whose text an operator finds in the server's log.
_FAIL: Final = (
    "ELSE ('pylon: another node has changed what this batch relies on; it runs again ' "
    "|| count(*))::int END"
)
_GUARD_ROWS: Final = (
    f"SELECT CASE WHEN count(*) = $3 THEN 0 {_FAIL} FROM %s AS t "
    "JOIN unnest($1::text[], $2::bigint[]) AS read (id, seq) "
    "ON t.id = read.id AND t._seq IS NOT DISTINCT FROM read.seq"
)
_GUARD_PARENTS: Final = (
    f"SELECT CASE WHEN count(*) = $2 THEN 0 {_FAIL} FROM %s WHERE id = ANY($1::text[])"
)
_GUARD_DOCUMENTS: Final = (
    f"SELECT CASE WHEN count(*) = 0 THEN 0 {_FAIL} FROM _pylon_crdt_snapshots "
    "JOIN unnest($1::text[], $2::text[]) AS read (entity, row_id) USING (entity, row_id)"
)
_EVENTS: Final = InsertShape(
    log.INSERT, log.INSERT_MARKS, f"({log.SEQ}{{0}}, {{1}}, {{2}}, {{3}}, {{4}}, {{5}}, {{6}})"
)
_OPS: Final = InsertShape(
    op_ids.INSERT, op_ids.INSERT_MARKS, f"({log.SEQ}{{0}}, {{1}}, {{2}}, {{3}}, {{4}}, {{5}})"
)

_log: Final = get_logger("writer")


class PostgresTransaction:
    """See the module. `overlay`: what it knows of the database. `gathered`: the statements that
    wait for the flush."""

    def __init__(
        self, writer: WriterSession, manifest: Manifest, clock: Clock, writer_id: str,
        retained_columns: Mapping[str, Mapping[str, object]],
        compile_where: Callable[[str, Predicate], tuple[str, Sequence[Parameter]]],
        pause: Callable[[float], None] = time.sleep, waits: Clock | None = None,
    ) -> None:
        """
        Args:
            writer_id: of the notifications.
            retained_columns: see `schema.apply.Prepared`.
            compile_where: makes the text and the parameters of a condition of an entity.
            waits: the clock of time limits; None: `clock`.
        """
        self._writer = writer
        self._clock = clock
        self._waits = waits or clock
        self._writer_id = writer_id
        self._retained = retained_columns
        self._compile = compile_where
        self._pause = pause
        self.overlay = Overlay()
        self.position = NO_REQUEST
        self.shares_documents = True
        self.errors: tuple[type[Exception], ...] = (psycopg.Error, OutcomeUnknownError)
        self.store_failures: tuple[type[Exception], ...] = (
            *STORE_FAILURES, OutdatedError, RequestsFailed, OutcomeUnknownError
        )
        self._entities: dict[str, EntityReads] = {}
        by_default = self.get_fact(references.FACT) == "check"
        self._references = references.checked_references(manifest, by_default=by_default)
        self._manifest = references.with_reference_indexes(manifest, by_default=by_default)
        self._session: BlockingSession | None = None  # while a transaction is open
        self._is_locked = False
        self._origin = PROVISIONAL_SEQ  # of the journal: what it gives begins behind it
        self._head = 0  # known to the engine
        self._base = 0  # the seq before the first of this transaction, if it is locked
        self._document_base = 0  # the number of the newest document update before this one
        self._document_number = 0  # the newest, if it is locked
        self.gathered: list[Gathered] = []  # what waits for the flush
        self._sent: list[Gathered] = []  # of this transaction, before a scan
        self._mark = -1  # where the open step begins in `_gathered`; -1: no step
        self._mark_sent = 0  # the length of `_sent` at that time
        self._events: Sequence[ChangeEvent] = ()
        self._changes_documents = False
        self._changes_sessions = False

    def table(self, entity: Entity, rules: EntityRules) -> PostgresTable:
        """See `RowTransaction`."""
        known = self._manifest.by_name[entity.name]
        indexed = [index.fields for index in known.indexes]
        indexed += [(field.name,) for field in entity.fields if field.unique]
        if entity.search is not None:
            indexed += [(name,) for name in entity.search.sortable]
        table = PostgresTable(
            self, entity, rules, self._retained.get(entity.name, {}), indexed
        )
        places = {field.name: place for place, field in enumerate(entity.fields)}
        parents = {
            r.field: (places[r.field], r.target)
            for r in self._references if r.entity == entity.name
        }
        locks: set[type] = set()
        if any(r.target == entity.name for r in self._references):
            locks.add(DeleteRow)
        if rules.checks["read"]:
            locks |= {UpdateRow, DeleteRow}
        if rules.checks["update"]:
            locks.add(UpdateRow)
        if rules.checks["delete"]:
            locks.add(DeleteRow)
        if rules.checks["insert"]:
            locks.add(InsertRow)
        self._entities[entity.name] = EntityReads(entity, table, rules, parents, frozenset(locks))
        return table

    # --- The transaction -----------------------------------------------------------------------

    def begin(self, requests: Sequence[WriteRequest], head: int, locked: bool) -> int:
        """See `RowTransaction`."""
        self._session = self._writer.get()
        self._head = head
        self._origin = PROVISIONAL_SEQ
        try:
            try:
                self._read_ahead(requests, locked)
            except self.store_failures:
                raise
            except Exception as error:  # noqa: BLE001  of one request, which fails alone later
                _log.warning("batch.not_read_ahead", message=error_text(error))
                self._roll_back_failed()
                self._is_locked = False
                self.overlay.clear()
                if locked or not head:
                    self._take_lock([], guards=0)
        except psycopg.Error as error:
            self.roll_back()
            if is_lost(error):  # nothing was sent that changes anything
                self._writer.get()  # raises if the server is away
                raise OutdatedError from error
            raise
        except BaseException:
            self.roll_back()  # the engine does so once it has begun
            raise
        if self._is_locked and not self._base:
            self._origin = 0
        return self._origin

    def _read_ahead(self, requests: Sequence[WriteRequest], locked: bool) -> None:
        """Read what the requests ask for, under the lock if they need it.

        Raises: what the store raises, or anything because of a request.
        """
        prefetch = Prefetch(self._entities, self._ask)
        prefetch.plan(requests)
        # The first change of all leaves no seqs free (`core.journal`), so the journal must know.
        locked = locked or prefetch.needs_lock or not self._head
        planned = prefetch.statements(self.overlay, locked=locked)
        statements = [statement for statement, _ in planned]
        if locked:
            results = self._take_lock(statements, guards=0)
        elif statements:
            results = self._read_all(statements)
        else:
            return
        for (_, take), result in zip(planned, results, strict=True):
            take(result)

    def begin_step(self) -> None:
        """See `RowTransaction`. The upkeep of this store has a connection of its own, so the only
        steps here are those of a start."""
        self.begin((), self._head, True)

    def lock(self) -> None:
        """Exclude the other writers from now on. What was read before is checked.

        Raises:
            OutdatedError
        """
        if self._is_locked:
            return
        guards = self._guards(everything=True)
        metrics.BATCHES_LOCKED.inc()
        self._take_lock(guards, guards=len(guards))
        self.overlay.read_versions.clear()
        self.overlay.touched.clear()
        if self._mark >= 0:
            self.gathered.insert(self._mark, _plain("SAVEPOINT step"))
            self._mark += 1

    def _take_lock(self, statements: Sequence[Statement], guards: int) -> list[PGresult]:
        """Begin a transaction with the lock. Return the results of the statements.

        Args:
            guards: how many of the statements are guards; the first ones.
        """
        session = self._open_session
        sent: list[Statement] = [
            ("BEGIN", ()), self._writer.lock, (_BASE, ()), *statements
        ]
        outcome = self._send(session, sent)
        if outcome.error is not None:
            self._roll_back_failed()
            place = len(outcome.results) - 3
            if 0 <= place < guards or isinstance(outcome.error, _AGAIN):
                raise OutdatedError from outcome.error
            raise outcome.error
        self._is_locked = True
        self._base = int(outcome.results[2].get_value(0, 0) or 0)
        self._document_base = int(outcome.results[2].get_value(0, 1) or 0)
        self._document_number = self._document_base
        return outcome.results[3:]

    def commit(self) -> Shift | None:
        """See `RowTransaction`."""
        if not self.gathered and not self._sent:
            shift = Shift(self._head, self._head - self._origin)
            if self._is_locked:
                self._roll_back_failed()
            self._end()
            return shift
        last_seq = last_seq_of(self.gathered, last_seq_of(self._sent, self._origin))
        flush = Flush()
        guards = range(0)
        if self._is_locked:
            self._add_gathered(flush, last_seq)
            head = self._base + last_seq - self._origin if self._events else 0
            flush.add(log.NOTIFY, (self._writer.channel, self._payload(head)))
        else:
            guards = self._add_optimistic(flush, last_seq)
        flush.add("COMMIT")
        outcome = self._send(self._open_session, flush.statements)
        if outcome.error is not None:
            shift = self._explain(flush, outcome, guards)
        else:
            if outcome.results[-1].command_status != b"COMMIT":
                raise psycopg.OperationalError("the server has rolled the batch back")
            base = self._base if self._is_locked else int(
                outcome.results[2].get_value(0, 0) or 0
            )
            shift = Shift(base, base - self._origin)
        self._writer.holders.forget()
        self._writer.acknowledged = max(self._writer.acknowledged, last_seq + shift.by)
        self._end()
        return shift

    def _add_optimistic(self, flush: Flush, last_seq: int) -> range:
        """Add all that a transaction without the lock needs before COMMIT. Return the places of the
        guards."""
        flush.add("BEGIN")
        flush.add(*self._writer.lock)
        if self._events:
            flush.add(log.TAKE, EncodedParameters([
                b"%d" % (last_seq - self._origin), self._writer.channel.encode(),
                self._payload(None).encode(),
            ]))
        elif any(item.seq >= 0 for item in self.gathered):  # an op_id without a change
            last_seq += 1
            flush.add(log.TAKE, (1, self._writer.channel, self._payload(None)))
        else:
            flush.add(log.TELL, (self._writer.channel, self._payload(0)))
        first = len(flush.statements)
        for text, parameters in self._guards(everything=False):
            flush.add(text, parameters)
        guards = range(first, len(flush.statements))
        flush.add_gathered(self.gathered, last_seq)
        return guards

    def _add_gathered(self, flush: Flush, last_seq: int, *, single: bool = False) -> None:
        """Add what a locked transaction has gathered."""
        if any(item.seq >= 0 for item in self.gathered):
            last_seq = max(last_seq, self._origin + 1)
            flush.add(log.SET, (self._base + last_seq - self._origin,))
        if self._document_number > self._document_base:
            flush.add(documents.SET_NUMBER, (self._document_number,))
        flush.add_gathered(self.gathered, last_seq, single=single)

    def _payload(self, head: int | None) -> str:
        """Return the payload of the notification. `head` None: without it, as the rest of one."""
        text = payload(
            head or 0, self._writer_id, documents=self._changes_documents,
            sessions=self._changes_sessions,
        )
        return text[1:] if head is None else text  # "0:..." without its digit

    def _guards(self, *, everything: bool) -> list[Statement]:
        """Return the statements that fail if something read without the lock has changed.

        Args:
            everything: also rows that were read and not changed: later requests may rely on them.
        """
        overlay = self.overlay
        if not overlay.read_versions and not overlay.parents:
            return []
        found: list[Statement] = []
        by_entity: dict[str, list[RowKey]] = {}
        for key in overlay.read_versions if everything else overlay.touched:
            by_entity.setdefault(key[0], []).append(key)
        for name, keys in by_entity.items():
            found.append((_GUARD_ROWS % quote(name), (
                [key[1] for key in keys], [overlay.read_versions[key] for key in keys], len(keys),
            )))
        parents: dict[str, list[str]] = {}
        for key in overlay.parents:
            if overlay.exists.get(key) or key in overlay.read_versions:
                parents.setdefault(key[0], []).append(key[1])
        for name, ids in parents.items():
            found.append((_GUARD_PARENTS % quote(name), (ids, len(ids))))
        plain = [
            key for key in (overlay.documents if everything else overlay.touched)
            if overlay.documents.get(key, 0) is None
        ]
        if plain:
            found.append((
                _GUARD_DOCUMENTS, ([key[0] for key in plain], [key[1] for key in plain]),
            ))
        return found

    def roll_back(self) -> bool:
        """See `RowTransaction`."""
        if self._session is None:
            return False
        self._roll_back_failed()
        self._end()
        return True

    def _roll_back_failed(self) -> None:
        session = self._session
        if session is not None and not session.is_broken and session.is_in_transaction:
            try:
                session.execute("ROLLBACK")
            except psycopg.Error as error:
                self._writer.lose(error)

    def _end(self) -> None:
        self._session = None
        self._is_locked = False
        self.gathered.clear()
        self._sent.clear()
        self._mark = -1
        self._events = ()
        self._changes_documents = self._changes_sessions = False
        self.overlay.clear()

    # --- Failures ------------------------------------------------------------------------------

    def _send(
        self, session: BlockingSession, statements: Sequence[Statement]
    ) -> PipelineOutcome:
        """Send statements that begin with the lock, and wait for it. A lost connection is
        closed."""
        until_s = self._waits.monotonic_s() + LOCK_WAIT_S
        while True:
            outcome = session.try_pipeline(statements)
            error = outcome.error
            if error is None:
                return outcome
            if is_lost(error) or session.is_broken:
                self._writer.lose(error)
                return outcome
            if not isinstance(error, errors.LockNotAvailable) or statements[0][0] != "BEGIN":
                return outcome
            metrics.LOCK_WAITS.inc()
            self._writer.wait_for_lock(session, error, until_s)

    def _explain(self, flush: Flush, outcome: PipelineOutcome, guards: range) -> Shift:
        """Find out what a failed flush means.

        Returns: the outcome of a commit whose answer was lost.

        Raises:
            OutdatedError, RequestsFailed, ForeignWriterError, OutcomeUnknownError
            psycopg.Error: of the store.
        """
        error = outcome.error
        assert error is not None
        if is_lost(error) or self._open_session.is_broken:
            return self._settle(error)
        self._roll_back_failed()
        place = len(outcome.results)
        if place in guards or isinstance(error, _AGAIN):
            raise OutdatedError from error
        if isinstance(error, STORE_FAILURES):
            raise error
        if not self._is_locked:  # a unique value of another node, perhaps; look closely
            raise OutdatedError from error
        origins = flush.origins[place] if place < len(flush.origins) else ()
        if origins and all(item.shape is _EVENTS for item in origins):
            raise ForeignWriterError from error
        refused = self._find_refused()
        if not refused:
            raise error
        raise RequestsFailed(refused)

    def _find_refused(self) -> dict[int, PylonError]:
        """Send the statements of each request alone, and undo them all. Return the refusals, by the
        positions of the requests."""
        metrics.BATCHES_EXAMINED.inc()
        session = self._open_session
        items = [*self._sent, *self.gathered]
        last_seq = max(last_seq_of(items, self._origin), self._origin + 1)
        refused: dict[int, PylonError] = {}
        self._writer.take_lock(session)
        try:
            session.execute(log.SET, (self._base + last_seq - self._origin,))
            for position in dict.fromkeys(item.position for item in items):
                if position == NO_REQUEST:
                    continue
                flush = Flush()
                flush.add("SAVEPOINT request")
                flush.add_gathered(
                    [item for item in items if item.position == position], last_seq, single=True
                )
                flush.add("SET CONSTRAINTS ALL IMMEDIATE")
                flush.add("RELEASE SAVEPOINT request")
                outcome = session.try_pipeline(flush.statements)
                error = outcome.error
                if error is None:
                    continue
                if isinstance(error, STORE_FAILURES) or session.is_broken:
                    raise error
                origins = flush.origins[len(outcome.results)]
                refused[position] = _refusal(origins, error)
                _log.warning("write.refused", position=position, message=error_text(error))
                session.execute("ROLLBACK TO SAVEPOINT request")
        finally:
            self._roll_back_failed()
        return refused

    def _settle(self, error: psycopg.Error) -> Shift:
        """Find out whether a batch whose answer was lost was committed.

        The new connection comes after the end of the lost one, and takes the lock, so the answer
        is final.

        Raises:
            OutdatedError: it was not.
            OutcomeUnknownError: the server does not tell in time.
        """
        until_s = self._waits.monotonic_s() + SETTLE_S
        while True:
            try:
                session = self._writer.connect()
                found = self._find_committed(session)
            except psycopg.Error as problem:
                error = problem
                if self._waits.monotonic_s() >= until_s:
                    raise OutcomeUnknownError(error_text(error)) from error
                self._pause(_SETTLE_PAUSE_S)
                continue
            _log.warning("write.settled", committed=found is not None)
            if found is None:
                raise OutdatedError from error
            return found

    def _find_committed(self, session: BlockingSession) -> Shift | None:
        """Look for the events of this transaction. Without any it is executed again: all its
        operations may be repeated."""
        if not self._events:
            return None
        first, last = self._events[0], self._events[-1]
        self._writer.take_lock(session)
        try:
            found = session.execute(log.FIND_COMMITTED, (
                self._head, first.entity, first.row_id, first.kind, first.data, first.prev_data,
                first.timestamp_s,
            ))
            if not found.ntuples:
                return None
            seq = int(found.get_value(0, 0) or 0)
            by = seq - first.seq
            count = session.execute(log.COUNT_BETWEEN, (seq, last.seq + by))
            if int(count.get_value(0, 0) or 0) != len(self._events):
                return None
            return Shift(self._origin + by, by)
        finally:
            with suppress(psycopg.Error):
                session.execute("ROLLBACK")

    # --- Reads and statements, for the tables --------------------------------------------------

    @property
    def _open_session(self) -> BlockingSession:
        assert self._session is not None, "no transaction is open"
        return self._session

    def _gather(self, text: str, parameters: Sequence[Parameter]) -> None:
        values, formats = encode_parameters(parameters)
        self.gathered.append(Gathered(
            text, values or [], self.position, binary=None if formats is None else parameters
        ))

    def read(self, text: str, parameters: Sequence[Parameter]) -> PGresult:
        """Read rows by keys that the overlay lacks: one round trip.

        Raises:
            psycopg.Error
        """
        metrics.BATCH_READS.inc()
        return self._read_all([(text, parameters)])[0]

    def scan(self, text: str, parameters: Sequence[Parameter]) -> PGresult:
        """Read with the changes of this transaction, under the lock.

        Raises:
            OutdatedError, RequestsFailed, psycopg.Error
        """
        self.lock()
        self._send_gathered()
        return self.read(text, parameters)

    def note_read(self, key: RowKey, row: KnownRow) -> None:
        """Note a row that was read alone."""
        self.overlay.rows[key] = row
        if not self._is_locked:
            self.overlay.read_versions[key] = row[1]

    def version_now(self, version: int | None) -> int | None:
        """Return the version of a row that a scan has read, provisional if it is of this
        transaction."""
        if version is None or version <= self._base:
            return version
        return version - self._base + self._origin

    def _read_all(self, statements: Sequence[Statement]) -> list[PGresult]:
        session = self._open_session
        outcome = session.try_pipeline(statements)
        error = outcome.error
        if error is None:
            return outcome.results
        if is_lost(error) or session.is_broken:
            self._writer.lose(error)
        raise error

    def _send_gathered(self) -> None:
        """Send what was gathered, within the locked transaction."""
        if not self.gathered:
            return
        flush = Flush()
        last_seq = last_seq_of(self.gathered, last_seq_of(self._sent, self._origin))
        self._add_gathered(flush, last_seq)
        outcome = self._send(self._open_session, flush.statements)
        error = outcome.error
        if error is not None:
            if is_lost(error) or self._open_session.is_broken:
                raise error
            self._roll_back_failed()
            if isinstance(error, _AGAIN):
                raise OutdatedError from error
            if isinstance(error, STORE_FAILURES):
                raise error
            refused = self._find_refused()
            if not refused:
                raise error
            raise RequestsFailed(refused)
        self._sent += self.gathered
        self.gathered.clear()
        if self._mark >= 0:
            self._mark = 0

    # --- Steps ---------------------------------------------------------------------------------

    def open_savepoint(self) -> None:
        """See `RowTransaction`."""
        self.overlay.mark()
        if self._is_locked:
            self.gathered.append(_plain("SAVEPOINT step"))
        self._mark = len(self.gathered)
        self._mark_sent = len(self._sent)

    def keep_savepoint(self) -> None:
        """See `RowTransaction`."""
        self.overlay.keep()
        self._mark = -1
        if self._is_locked:
            self.gathered.append(_plain("RELEASE SAVEPOINT step"))

    def undo_savepoint(self) -> None:
        """See `RowTransaction`."""
        self.overlay.undo()
        is_sent = len(self._sent) > self._mark_sent
        mark, self._mark = self._mark, -1
        del self.gathered[mark:]
        if not self._is_locked:
            return
        if is_sent:
            self.gathered.append(_plain("ROLLBACK TO SAVEPOINT step"))
        self.gathered.append(_plain("RELEASE SAVEPOINT step"))

    # --- Facts and questions -------------------------------------------------------------------

    def has_row(self, entity: str, where: Predicate) -> bool:
        """See `RowTransaction`."""
        check = (entity, where)
        known = self.overlay.checks.get(check)
        if known is None:
            found = self.scan(*self._ask(check))
            known = found.get_value(0, 0) == b"t"
            self.overlay.put_check(check, known)
        return known

    def _ask(self, check: Check) -> Statement:
        """Return the statement that answers a check."""
        entity, where = check
        text, parameters = self._compile(entity, where)
        return f"SELECT EXISTS (SELECT 1 FROM {quote(entity)} WHERE {text})", parameters

    def get_fact(self, key: str) -> str | None:
        """See `RowTransaction`."""
        return meta.get(self._writer.get(), key)

    def put_fact(self, key: str, value: str) -> None:
        """See `RowTransaction`."""
        self._gather(meta.PUT, (key, value))

    def end_run(self, head: int) -> None:
        """See `RowTransaction`. The server loses no commit, however this process ends."""

    def resume_run(self) -> None:
        """See `RowTransaction`."""

    def refusal_of(self, error: Exception) -> tuple[BatchRefusal, str]:
        """See `RowTransaction`."""
        text = error_text(error)
        return BatchRefusal(refusal_reason(error), text), text

    def find_problem(self) -> BatchRefusal | None:
        """See `RowTransaction`. A server acknowledges no commit that it may lose."""
        return None

    # --- The change log ------------------------------------------------------------------------

    def head_seq(self) -> int:
        """See `LogRows`."""
        try:
            return int(self._writer.get().execute(log.HEAD).get_value(0, 0) or 0)
        except psycopg.OperationalError:
            return self._head  # asked after a failure; the next batch learns it

    def append_events(self, events: Sequence[ChangeEvent]) -> None:
        """See `LogRows`."""
        self._events = events
        if not events:
            return
        now = b"%d" % events[0].timestamp_s
        self.gathered += [
            Gathered("", [
                None, event.entity.encode(), event.row_id.encode(), _KINDS[event.kind], event.data,
                event.prev_data, now,
            ], NO_REQUEST, event.seq, _EVENTS)
            for event in events
        ]

    def find_op(self, name: OpName) -> DoneOp | None:
        """See `LogRows`.

        Raises:
            InvalidValue: no text can be stored with a character of the name.
        """
        known: Any = self.overlay.ops.get(name, _UNKNOWN)
        if known is not _UNKNOWN:
            return known  # type: ignore[no-any-return]
        if not all(map(is_sendable, name)):
            raise InvalidValue("an op_id has no NUL character")
        found = self.read(op_ids.FIND, ([name[0]], [name[1]]))
        if not found.ntuples:
            return None
        digest = found.get_value(0, 4)
        return (
            int(found.get_value(0, 2) or 0), (found.get_value(0, 3) or b"").decode(),
            None if digest is None else digest.decode(),
        )

    def put_ops(self, ops: Mapping[OpName, DoneOp], now_s: int) -> None:
        """See `LogRows`."""
        at = b"%d" % now_s
        for (identity, op_id), (seq, row_id, digest) in ops.items():
            self.gathered.append(Gathered("", [
                None, identity.encode(), op_id.encode(), row_id.encode(), at,
                None if digest is None else digest.encode(),
            ], NO_REQUEST, seq, _OPS))

    # --- Documents -----------------------------------------------------------------------------

    def document_number(self, key: DocumentKey) -> int | None:
        """See `DocumentRows`. That a row has none is certain only with a guard or the lock; any
        other answer takes the lock."""
        known: Any = self.overlay.documents.get(key, _UNKNOWN)
        if known is None or (known is not _UNKNOWN and self._is_locked):
            return known  # type: ignore[no-any-return]
        if known is not _UNKNOWN:
            self.lock()
        found = self.read(documents.NUMBERS, ([key[0]], [key[1]]))
        number = int(found.get_value(0, 2) or 0) if found.ntuples else None
        self.overlay.documents[key] = number
        if number is not None and not self._is_locked:
            return self.document_number(key)
        return number

    def document_keys(self) -> Iterable[DocumentKey]:
        """See `DocumentRows`."""
        found = self._writer.get().execute(documents.KEYS)
        for n in range(found.ntuples):
            yield (found.get_value(n, 0) or b"").decode(), (found.get_value(n, 1) or b"").decode()

    def find_document(self, key: DocumentKey) -> StoredDocument | None:
        """See `DocumentRows`."""
        self.lock()
        self._send_gathered()
        snapshot, updates, views = self._read_all(
            [(documents.SNAPSHOT, key), (documents.UPDATES, key), (documents.VIEWS, key)]
        )
        if not snapshot.ntuples:
            return None
        return documents.stored_document(snapshot, updates, views)

    def put_snapshot(self, key: DocumentKey, snapshot: bytes, now_s: int) -> None:
        """See `DocumentRows`."""
        self.lock()
        at = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._gather(documents.PUT_SNAPSHOT, (*key, snapshot, at))
        if self.overlay.documents.get(key) is None:
            self.overlay.put(self.overlay.documents, key, 0)
        self._changes_documents = True

    def append_update(self, key: DocumentKey, prev: int, seq: int, data: bytes) -> int:
        """See `DocumentRows`."""
        self.lock()
        self._document_number += 1
        number = self._document_number
        if seq >= self._origin:
            seq += self._base - self._origin
        self._gather(documents.PUT_UPDATE, (*key, number, prev, seq, data))
        self.overlay.put(self.overlay.documents, key, number)
        self._changes_documents = True
        return number

    def drop_updates_before(self, key: DocumentKey, number: int) -> None:
        """See `DocumentRows`."""
        self._gather(documents.FOLD, (*key, number))

    def last_view(self, key: DocumentKey) -> tuple[int | None, int]:
        """See `DocumentRows`."""
        found = self.scan(documents.LAST_VIEW, key)
        number = found.get_value(0, 0)
        return None if number is None else int(number), int(found.get_value(0, 1) or 0)

    def put_view(self, key: DocumentKey, number: int, view: DocumentView) -> None:
        """See `DocumentRows`."""
        self._gather(documents.PUT_VIEW, (*key, number, view.before, view.after, view.facts))

    def drop_views_before(self, key: DocumentKey, number: int) -> None:
        """See `DocumentRows`."""
        self._gather(documents.DROP_VIEWS, (*key, number))

    def forget_views(self, entity: str, facts: str) -> None:
        """See `DocumentRows`."""
        delete, insert = documents.FORGET_VIEWS
        self._gather(delete, (entity,))
        self._gather(insert, (entity, facts))

    def drop_document(self, key: DocumentKey) -> None:
        """See `DocumentRows`."""
        self.lock()
        for text in documents.DELETE:
            self._gather(text, key)
        self.overlay.put(self.overlay.documents, key, None)

    def drop_documents(self, entity: str) -> None:
        """See `DocumentRows`."""
        self.lock()
        for text in documents.DROP_ENTITY:
            self._gather(text, (entity,))
        for key in [key for key in self.overlay.documents if key[0] == entity]:
            self.overlay.put(self.overlay.documents, key, None)

    # --- Sessions and shards -------------------------------------------------------------------

    def put_session(self, session: SessionRow) -> None:
        """See `SessionRows`."""
        self._gather(sessions.PUT, (
            session.session_id, session.user_id, session.is_guest, session.created_at_s,
            session.expires_at_s, session.device, session.tenant_id,
        ))
        if session.is_unused:
            self._gather(sessions.PUT_UNUSED, (session.session_id, session.created_at_s))
        self._mark_session(sessions.MADE, session.session_id)
        self.overlay.put(self.overlay.sessions, session.session_id, True)

    def drop_session(self, session_id: str) -> int:
        """See `SessionRows`."""
        known = self.overlay.sessions.get(session_id)
        if known is None:
            known = bool(self.read(sessions.KNOWN, ([session_id],)).ntuples)
        self._gather(sessions.DROP_UNUSED, (session_id,))
        self._gather(sessions.DROP, (session_id,))
        self._mark_session(sessions.ENDED, session_id)
        self.overlay.put(self.overlay.sessions, session_id, False)
        return int(known)

    def _mark_session(self, kind: str, session_id: str) -> None:
        self._gather(sessions.MARK, (kind, session_id, self._clock.wall_ns() // NS_PER_S))
        self._changes_sessions = True

    def put_shard(self, shard_id: str, tick: int, data: bytes, now_s: int) -> None:
        """See `ShardRows`."""
        self._gather(shards.PUT, (shard_id, tick, data, now_s))

    def place_shard(self, shard_id: str, home: str | None, now_s: int) -> None:
        """See `ShardRows`."""
        self._gather(shards.MOVE, (shard_id, home, now_s))

    def drop_shard(self, shard_id: str) -> int:
        """See `ShardRows`."""
        found = self.scan(shards.COUNT, (shard_id,))
        self._gather(shards.DROP, (shard_id,))
        return int(found.get_value(0, 0) or 0)


def _plain(text: str) -> Gathered:
    return Gathered(text, [], NO_REQUEST)


def _refusal(origins: Sequence[Gathered], error: psycopg.Error) -> PylonError:
    for item in origins:
        if item.source is not None:
            return item.source.refuse(error, item.row_json)
    return InternalError("the database refused a statement of this write")
