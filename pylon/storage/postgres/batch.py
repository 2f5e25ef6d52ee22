"""Batch: the open transaction of a writer: what it knows, what it has gathered, and its seqs.

Usually a batch is *optimistic*: it reads without a transaction, and one flush sends BEGIN, the
lock, the seqs, *guards*, all statements, the notification and COMMIT. So no round trip happens
under the lock. A guard fails if a row that the batch relies on is no longer as it was read.

A primitive whose answer the flush could not check takes the lock at once (`lock`). From then on the
batch is *locked*: it knows its seqs, reads the database itself, and sends what it has gathered
before each scan. It may have read earlier which rows are not there (`is_late`): if the database
then refuses a statement, the batch runs again, locked from its beginning.

Invariants: seqs, document numbers and mark numbers ascend in commit order, since all are taken
under the lock. A batch that is not open knows nothing. Made by `transaction`, which opens and ends
it; `table`, `log`, `documents`, `sessions` and `shards` read and gather.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import errors
from psycopg.pq.abc import PGresult

from pylon import metrics
from pylon.clock import Clock
from pylon.storage.core.transaction import PROVISIONAL_SEQ, OutdatedError, RequestsFailed
from pylon.storage.events import ChangeEvent
from pylon.storage.postgres import sequences
from pylon.storage.postgres.connect import STORE_FAILURES, is_lost
from pylon.storage.postgres.failures import AGAIN, find_refused
from pylon.storage.postgres.flush import (
    NO_REQUEST,
    Flush,
    Gathered,
    RefusalSource,
    last_seq_of,
)
from pylon.storage.postgres.guards import guards_of
from pylon.storage.postgres.overlay import KnownRow, Overlay, RowKey
from pylon.storage.postgres.parameters import Parameter, encode_parameters
from pylon.storage.postgres.statements import PipelineOutcome, Statement
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.postgres.writer_session import LOCK_WAIT_S, WriterSession


class Batch:
    """See the module.

    Attributes:
        overlay: what it knows of the database.
        gathered: the statements that wait for the flush.
        events: those of its changes, once they are gathered.
        position: of the request that gathers.
        is_locked: see the module.
        is_late: whether it took the lock after its first reads.
        head: the newest seq that the engine knew when the batch began.
        origin: the seq before the first one that the journal gives.
        base: the seq that `origin` stands for, if the batch is locked.
        document_number: the newest, if the batch is locked.
        changes_documents, changes_sessions: what the notification says.
    """

    __slots__ = (
        "_document_base", "_mark", "_mark_sent", "_sent", "_session", "_waits", "base",
        "changes_documents", "changes_sessions", "document_number", "events", "gathered", "head",
        "is_late", "is_locked", "origin", "overlay", "position", "writer",
    )

    def __init__(self, writer: WriterSession, waits: Clock) -> None:
        """Args: `waits`: the clock of time limits."""
        self.writer = writer
        self._waits = waits
        self.overlay = Overlay()
        self.gathered: list[Gathered] = []
        self.events: Sequence[ChangeEvent] = ()
        self.position = NO_REQUEST
        self.head = 0
        self.origin = PROVISIONAL_SEQ
        self.base = 0
        self.is_locked = False
        self.is_late = False
        self.document_number = 0
        self.changes_documents = False
        self.changes_sessions = False
        self._session: BlockingSession | None = None
        self._document_base = 0  # the number of the newest document update before this batch
        self._sent: list[Gathered] = []  # of this batch, before a scan
        self._mark = -1  # where the open step begins in `gathered`; -1: no step
        self._mark_sent = 0  # the length of `_sent` at that time

    # --- Begin and end -------------------------------------------------------------------------

    def open(self, head: int) -> None:
        """Begin. Nothing is sent.

        Raises:
            psycopg.OperationalError: there is no connection.
        """
        self._session = self.writer.get()
        self.head = head
        self.origin = PROVISIONAL_SEQ

    @property
    def session(self) -> BlockingSession:
        """Return the connection of an open batch."""
        assert self._session is not None, "no batch is open"
        return self._session

    def undo(self) -> None:
        """Roll back what was sent, and forget the lock and all that was read."""
        self.writer.roll_back(self.session)
        self.is_locked = self.is_late = False
        self.overlay.clear()

    def close(self) -> None:
        """End, and roll back what is not committed. Idempotent."""
        if self._session is None:
            return
        self.writer.roll_back(self._session)
        self._session = None
        self.is_locked = self.is_late = False
        self.gathered.clear()
        self._sent.clear()
        self._mark = -1
        self.events = ()
        self.changes_documents = self.changes_sessions = False
        self.overlay.clear()

    # --- The lock ------------------------------------------------------------------------------

    def lock(self) -> None:
        """Exclude the other writers from now on. What was read before is checked.

        Raises:
            OutdatedError
        """
        if self.is_locked:
            return
        guards = guards_of(self.overlay, everything=True)
        metrics.BATCHES_LOCKED.inc()
        self.take_lock(guards, guards=len(guards))
        self.is_late = True
        self.overlay.trust()
        if self._mark >= 0:
            self.gathered.insert(self._mark, _plain("SAVEPOINT step"))
            self._mark += 1

    def take_lock(self, statements: Sequence[Statement], guards: int = 0) -> list[PGresult]:
        """Begin a transaction with the lock. Return the results of the statements.

        Args:
            guards: how many of the statements are guards; the first ones.

        Raises:
            OutdatedError, psycopg.Error
        """
        outcome = self.send([
            ("BEGIN", ()), self.writer.lock, (sequences.BASE, ()), *statements
        ])
        if outcome.error is not None:
            self.writer.roll_back(self.session)
            place = len(outcome.results) - 3
            if 0 <= place < guards or isinstance(outcome.error, AGAIN):
                raise OutdatedError from outcome.error
            raise outcome.error
        self.is_locked = True
        self.base = int(outcome.results[2].get_value(0, 0) or 0)
        self._document_base = int(outcome.results[2].get_value(0, 1) or 0)
        self.document_number = self._document_base
        return outcome.results[3:]

    # --- Reads and statements ------------------------------------------------------------------

    def gather(
        self, text: str, parameters: Sequence[Parameter], source: RefusalSource | None = None
    ) -> None:
        """Gather a statement without a seq. Args: `source` explains a refusal of the database."""
        self.gathered.append(self._gathered(text, parameters, source))

    def _gathered(
        self, text: str, parameters: Sequence[Parameter], source: RefusalSource | None = None
    ) -> Gathered:
        values, formats = encode_parameters(parameters)
        return Gathered(
            text, values or [], self.position, source=source,
            binary=None if formats is None else parameters,
        )

    def read(self, text: str, parameters: Sequence[Parameter]) -> PGresult:
        """Read rows by keys that the overlay lacks: one round trip.

        Raises:
            psycopg.Error
        """
        metrics.BATCH_READS.inc()
        return self.read_all([(text, parameters)])[0]

    def scan(self, text: str, parameters: Sequence[Parameter]) -> PGresult:
        """Read with the changes of this batch, under the lock.

        Raises:
            OutdatedError, RequestsFailed, psycopg.Error
        """
        return self.scan_all([(text, parameters)])[0]

    def scan_all(self, statements: Sequence[Statement]) -> list[PGresult]:
        """Read with the changes of this batch, under the lock, in one round trip.

        It sends what was gathered in front of the statements.

        Raises:
            OutdatedError, RequestsFailed, psycopg.Error
        """
        self.lock()
        metrics.BATCH_READS.inc()
        flush = Flush()
        if self.gathered:
            self.add_gathered(flush, self.last_seq())
        sent = len(flush.statements)
        outcome = self.send([*flush.statements, *statements])
        error = outcome.error
        if error is not None:
            if is_lost(error) or self.session.is_broken:
                raise error
            self.writer.roll_back(self.session)
            if isinstance(error, AGAIN):
                raise OutdatedError from error
            if isinstance(error, STORE_FAILURES) or len(outcome.results) >= sent:
                raise error
            if self.is_late:
                raise OutdatedError from error
            raise self.refusals(error)
        self._sent += self.gathered
        self.gathered.clear()
        if self._mark >= 0:
            self._mark = 0
        return outcome.results[sent:]

    def change(self, text: str, parameters: Sequence[Parameter]) -> PGresult:
        """Carry out a statement at once, under the lock. Return its result.

        Raises:
            OutdatedError, RequestsFailed, psycopg.Error
        """
        result = self.scan(text, parameters)
        self._sent.append(self._gathered(text, parameters))
        return result

    def read_all(self, statements: Sequence[Statement]) -> list[PGresult]:
        """Read in one round trip.

        Raises:
            psycopg.Error
        """
        session = self.session
        outcome = session.try_pipeline(statements)
        error = outcome.error
        if error is None:
            return outcome.results
        if is_lost(error) or session.is_broken:
            self.writer.lose(error)
        raise error

    def note_read(self, key: RowKey, row: KnownRow) -> None:
        """Note a row that was read alone."""
        self.overlay.rows[key] = row
        if not self.is_locked:
            self.overlay.read_versions[key] = row[1]

    def version_now(self, version: int | None) -> int | None:
        """Return the version of a row that a scan has read, provisional if it is of this batch."""
        if version is None or version <= self.base:
            return version
        return version - self.base + self.origin

    def send(self, statements: Sequence[Statement]) -> PipelineOutcome:
        """Send statements that begin with the lock, and wait for it. A lost connection is
        closed."""
        session = self.session
        until_s = self._waits.monotonic_s() + LOCK_WAIT_S
        while True:
            outcome = session.try_pipeline(statements)
            error = outcome.error
            if error is None:
                return outcome
            if is_lost(error) or session.is_broken:
                self.writer.lose(error)
                return outcome
            if not isinstance(error, errors.LockNotAvailable) or statements[0][0] != "BEGIN":
                return outcome
            metrics.LOCK_WAITS.inc()
            self.writer.wait_for_lock(session, error, until_s)

    def refusals(self, error: psycopg.Error) -> Exception:
        """Return the refusals of single requests in place of an error of their flush.

        Returns: `RequestsFailed`; the error, if the database takes each request alone.

        Raises:
            psycopg.Error: the store failed.
        """
        refused = find_refused(
            self.writer, self.session, [*self._sent, *self.gathered], self.base, self.origin,
            self.last_seq(),
        )
        return RequestsFailed(refused) if refused else error

    # --- The flush -----------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether it has no statement to commit."""
        return not self.gathered and not self._sent

    def last_seq(self) -> int:
        """Return the last provisional seq so far."""
        return last_seq_of(self.gathered, last_seq_of(self._sent, self.origin))

    def add_gathered(self, flush: Flush, last_seq: int) -> None:
        """Add what a locked batch has gathered."""
        if any(item.seq >= 0 for item in self.gathered):
            last_seq = max(last_seq, self.origin + 1)
            flush.add(sequences.SET, (self.base + last_seq - self.origin,))
        if self.document_number > self._document_base:
            flush.add(sequences.SET_DOCUMENT_NUMBER, (self.document_number,))
        flush.add_gathered(self.gathered, last_seq)

    # --- Steps ---------------------------------------------------------------------------------

    def open_step(self) -> None:
        """Begin a step that `undo_step` may undo."""
        self.overlay.mark()
        if self.is_locked:
            self.gathered.append(_plain("SAVEPOINT step"))
        self._mark = len(self.gathered)
        self._mark_sent = len(self._sent)

    def keep_step(self) -> None:
        """End the step and keep its changes."""
        self.overlay.keep()
        self._mark = -1
        if self.is_locked:
            self.gathered.append(_plain("RELEASE SAVEPOINT step"))

    def undo_step(self) -> None:
        """End the step and undo its changes."""
        self.overlay.undo()
        is_sent = len(self._sent) > self._mark_sent
        mark, self._mark = self._mark, -1
        del self.gathered[mark:]
        if not self.is_locked:
            return
        if is_sent:
            self.gathered.append(_plain("ROLLBACK TO SAVEPOINT step"))
        self.gathered.append(_plain("RELEASE SAVEPOINT step"))


def _plain(text: str) -> Gathered:
    return Gathered(text, [], NO_REQUEST)
