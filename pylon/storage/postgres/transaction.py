"""PostgreSQL transaction: implements `pylon.storage.core.transaction.RowTransaction`.

Writers of all nodes order their commits by one advisory lock of the transaction, and by nothing
else: no row locks, so no deadlocks among nodes. `begin` reads ahead, without a transaction, what
the requests will ask for (`prefetch`). The core executes the requests on an `overlay` of that, and
`commit` sends all in one flush. What the flush could not check takes the lock before it is asked
(`batch`). A batch that was overtaken begins locked.

Parts: `log`, `documents`, `sessions`, `shards`, and a `table` for each entity. They share the open
`batch`.

Invariants: what the database refuses is undone as a whole, and the request at fault is found
(`failures`). After a lost connection during a COMMIT nothing is answered before the outcome is
known. Made by `engine`; one thread at a time uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import psycopg

from pylon.clock import Clock
from pylon.log import get_logger
from pylon.manifest import references
from pylon.manifest.model import Entity, Manifest
from pylon.policy.entity_rules import EntityRules
from pylon.query.predicate import Predicate
from pylon.storage.core.transaction import (
    ForeignWriterError,
    OutcomeUnknownError,
    OutdatedError,
    RequestsFailed,
    Shift,
)
from pylon.storage.ops import WriteRequest
from pylon.storage.postgres import meta, sequences
from pylon.storage.postgres.batch import Batch
from pylon.storage.postgres.channels import payload
from pylon.storage.postgres.connect import STORE_FAILURES, error_text, is_lost, refusal_reason
from pylon.storage.postgres.documents import PostgresDocuments
from pylon.storage.postgres.failures import AGAIN, settle
from pylon.storage.postgres.flush import Flush
from pylon.storage.postgres.guards import guards_of
from pylon.storage.postgres.log import EVENTS, PostgresLog
from pylon.storage.postgres.names import quote
from pylon.storage.postgres.overlay import Check
from pylon.storage.postgres.parameters import EncodedParameters, Parameter
from pylon.storage.postgres.prefetch import EntityReads, Prefetch
from pylon.storage.postgres.records import PostgresRecords
from pylon.storage.postgres.sessions import PostgresSessions
from pylon.storage.postgres.shards import PostgresShards
from pylon.storage.postgres.statements import PipelineOutcome, Statement
from pylon.storage.postgres.table import PostgresTable
from pylon.storage.postgres.writer_session import WriterSession
from pylon.storage.records import BatchRefusal

_log: Final = get_logger("writer")


class PostgresTransaction:
    """See the module."""

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
        self._waits = waits or clock
        self._writer_id = writer_id
        self._retained = retained_columns
        self._compile = compile_where
        self._pause = pause
        self._batch = Batch(writer, self._waits)
        self.log = PostgresLog(self._batch)
        self.documents = PostgresDocuments(self._batch)
        self.sessions = PostgresSessions(self._batch, clock)
        self.records = PostgresRecords(self._batch, self.sessions)
        self.shards = PostgresShards(self._batch)
        self.shares_documents = True
        self.errors: tuple[type[Exception], ...] = (psycopg.Error, OutcomeUnknownError)
        self.store_failures: tuple[type[Exception], ...] = (
            *STORE_FAILURES, OutdatedError, RequestsFailed, OutcomeUnknownError
        )
        self._entities: dict[str, EntityReads] = {}
        by_default = self.get_fact(references.FACT) == "check"
        self._references = references.checked_references(manifest, by_default=by_default)
        self._referring: dict[str, list[references.Reference]] = {}
        for reference in self._references:
            self._referring.setdefault(reference.target, []).append(reference)
        self._manifest = references.with_reference_indexes(manifest, by_default=by_default)

    def table(self, entity: Entity, rules: EntityRules) -> PostgresTable:
        """See `RowTransaction`."""
        known = self._manifest.by_name[entity.name]
        indexed = [index.fields for index in known.indexes]
        indexed += [(field.name,) for field in entity.fields if field.unique]
        if entity.search is not None:
            indexed += [(name,) for name in entity.search.sortable]
        table = PostgresTable(
            self._batch, entity, rules, self._retained.get(entity.name, {}), indexed,
            [r.field for r in self._references if r.entity == entity.name],
        )
        self._entities[entity.name] = EntityReads(entity, table, rules, self._references)
        return table

    @property
    def position(self) -> int:
        """See `RowTransaction`."""
        return self._batch.position

    @position.setter
    def position(self, position: int) -> None:
        self._batch.position = position

    # --- Begin ---------------------------------------------------------------------------------

    def begin(self, requests: Sequence[WriteRequest], head: int, locked: bool) -> int:
        """See `RowTransaction`."""
        batch = self._batch
        batch.open(head)
        try:
            try:
                self._read_ahead(requests, locked)
            except self.store_failures:
                raise
            except Exception as error:  # noqa: BLE001  of one request, which fails alone later
                _log.warning("batch.not_read_ahead", message=error_text(error))
                batch.undo()
                if locked or not head:
                    batch.take_lock([])
        except psycopg.Error as error:
            batch.close()
            if is_lost(error):  # nothing was sent that changes anything
                self._writer.get()  # raises if the server is away
                raise OutdatedError from error
            raise
        except BaseException:
            batch.close()  # the engine does so once it has begun
            raise
        if batch.is_locked and not batch.base:
            batch.origin = 0
        return batch.origin

    def _read_ahead(self, requests: Sequence[WriteRequest], locked: bool) -> None:
        """Read what the requests ask for, under the lock if they need it.

        Raises: what the store raises, or anything because of a request.
        """
        batch = self._batch
        prefetch = Prefetch(self._entities, self._ask, self._referring)
        prefetch.plan(requests)
        # The first change of all leaves no seqs free (`core.journal`), so the journal must know.
        locked = locked or prefetch.needs_lock or not batch.head
        for planned in prefetch.rounds(batch.overlay, locked=locked):
            statements = [statement for statement, _ in planned]
            if locked and not batch.is_locked:
                results = batch.take_lock(statements)
            elif statements:
                results = batch.read_all(statements)
            else:
                continue
            for (_, take), result in zip(planned, results, strict=True):
                take(result)

    def begin_step(self) -> None:
        """See `RowTransaction`. The upkeep of this store has a connection of its own, so the only
        steps here are those of a start."""
        self.begin((), self._batch.head, True)

    # --- Commit --------------------------------------------------------------------------------

    def commit(self) -> Shift | None:
        """See `RowTransaction`."""
        batch, writer = self._batch, self._writer
        if batch.is_empty:
            batch.close()
            return Shift(batch.head, batch.head - batch.origin)
        last_seq = batch.last_seq()
        flush = Flush()
        guards = range(0)
        if batch.is_locked:
            batch.add_gathered(flush, last_seq)
            head = batch.base + last_seq - batch.origin if batch.events else 0
            flush.add(sequences.NOTIFY, (writer.channel, self._payload(head)))
        else:
            guards = self._add_optimistic(flush, last_seq)
        flush.add("COMMIT")
        outcome = batch.send(flush.statements)
        if outcome.error is not None:
            shift = self._explain(flush, outcome, outcome.error, guards)
        else:
            if outcome.results[-1].command_status != b"COMMIT":
                raise psycopg.OperationalError("the server has rolled the batch back")
            base = batch.base if batch.is_locked else int(outcome.results[2].get_value(0, 0) or 0)
            shift = Shift(base, base - batch.origin)
        writer.holders.forget()
        writer.acknowledged = max(writer.acknowledged, last_seq + shift.by)
        batch.close()
        return shift

    def _add_optimistic(self, flush: Flush, last_seq: int) -> range:
        """Add all that a batch without the lock needs before COMMIT. Return the places of the
        guards."""
        batch, channel = self._batch, self._writer.channel
        flush.add("BEGIN")
        flush.add(*self._writer.lock)
        if batch.events:
            flush.add(sequences.TAKE, EncodedParameters([
                b"%d" % (last_seq - batch.origin), channel.encode(), self._payload(None).encode(),
            ]))
        elif any(item.seq >= 0 for item in batch.gathered):  # an op_id without a change
            last_seq += 1
            flush.add(sequences.TAKE, (1, channel, self._payload(None)))
        else:
            flush.add(sequences.TELL, (channel, self._payload(0)))
        first = len(flush.statements)
        for text, parameters in guards_of(batch.overlay, everything=False):
            flush.add(text, parameters)
        guards = range(first, len(flush.statements))
        flush.add_gathered(batch.gathered, last_seq)
        return guards

    def _payload(self, head: int | None) -> str:
        """Return the payload of the notification. `head` None: without it, as the rest of one."""
        batch = self._batch
        text = payload(
            head or 0, self._writer_id, documents=batch.changes_documents,
            sessions=batch.changes_sessions,
        )
        return text[1:] if head is None else text  # "0:..." without its digit

    def _explain(
        self, flush: Flush, outcome: PipelineOutcome, error: psycopg.Error, guards: range
    ) -> Shift:
        """Find out what a failed flush means.

        Returns: the outcome of a commit whose answer was lost.

        Raises:
            OutdatedError, RequestsFailed, ForeignWriterError, OutcomeUnknownError
            psycopg.Error: of the store.
        """
        batch = self._batch
        if is_lost(error) or batch.session.is_broken:
            return settle(self._writer, error, self.log.find_committed, self._waits, self._pause)
        self._writer.roll_back(batch.session)
        place = len(outcome.results)
        if place in guards or isinstance(error, AGAIN):
            raise OutdatedError from error
        if isinstance(error, STORE_FAILURES):
            raise error
        # A unique value of another node, perhaps; look closely.
        if not batch.is_locked or batch.is_late:
            raise OutdatedError from error
        origins = flush.origins[place] if place < len(flush.origins) else ()
        if origins and all(item.shape is EVENTS for item in origins):
            raise ForeignWriterError from error
        raise batch.refusals(error)

    def roll_back(self) -> None:
        """See `RowTransaction`."""
        self._batch.close()

    # --- Steps ---------------------------------------------------------------------------------

    def open_savepoint(self) -> None:
        """See `RowTransaction`."""
        self._batch.open_step()

    def keep_savepoint(self) -> None:
        """See `RowTransaction`."""
        self._batch.keep_step()

    def undo_savepoint(self) -> None:
        """See `RowTransaction`."""
        self._batch.undo_step()

    # --- Facts and questions -------------------------------------------------------------------

    def has_row(self, entity: str, where: Predicate) -> bool:
        """See `RowTransaction`."""
        check = (entity, where)
        overlay = self._batch.overlay
        known = overlay.checks.get(check)
        if known is None:
            found = self._batch.scan(*self._ask(check))
            known = found.get_value(0, 0) == b"t"
            overlay.put_check(check, known)
        else:
            overlay.used_checks[check] = None
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
        self._batch.gather(meta.PUT, (key, value))

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
