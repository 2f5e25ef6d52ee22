"""The pipe: one connection of a worker, shared by all of its greenlets, for short reads.

A greenlet puts its statement into libpq's buffer and waits. The pipe sends the statements of one
turn of the event loop together, with one Sync behind them. A watcher of the socket takes the
results, which come in order, and gives each to its greenlet. So a read costs neither a connection
nor a system call of its own. PERF: `bench/results/2026-11-28/postgres-workers.md`.

A statement that fails ends the others of its turn, up to the Sync: the pipe sends these again. They
only read. A text that has failed before gets a Sync of its own, so that it ends no others. A
statement that runs into the server's limit (that of `connect`) delays all behind it. The pipe
refuses its text for the next 10 s (`PipeRefused`), as it refuses all that needs a connection
for itself, such as a transaction; the caller then runs the read on a scanner.

Reads of rows by their ids wait for the end of the turn, and become one statement (`key_reads`). If
that fails, the pipe asks each of them alone; if it runs into the limit, no read of it goes again.

Invariants: each greenlet gets its own result, or an error. A greenlet that is killed while it waits
gets nothing, and the pipe drops its result. While the connection is lost each call fails at once
with OperationalError, and so does each waiting one; `pipe_link` makes a new one. A server that
answers nothing for `limits.POINT_STALL_S` counts as lost. Bounds: `limits.POINT_READS_WAITING`
greenlets wait; the next one fails with Unavailable. Metrics: pylon_admission_queue_length and
pylon_admission_refused_total with the name of the queue. Called by `store` and `short_reads`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent
import psycopg
from gevent.hub import Hub
from greenlet import getcurrent, greenlet
from psycopg import errors, pq
from psycopg.pq.abc import PGconn, PGresult

from pylon import limits
from pylon.clock import Clock, RandomSource
from pylon.errors import Unavailable
from pylon.metrics.families import ADMISSION_REFUSED, ADMISSION_WAITING
from pylon.storage.postgres.key_reads import KeyReads, KeyStatement, Row, row_of
from pylon.storage.postgres.parameters import Parameter, encode_parameters
from pylon.storage.postgres.pending_statements import PendingStatement, PipeRefused, TextMemory
from pylon.storage.postgres.pipe_link import LinkWatch, PipeLink
from pylon.storage.postgres.prepared import error_of, is_outdated, send_statement
from pylon.storage.postgres.statements import PipelineOutcome, Statement
from pylon.storage.postgres.wire import BlockingSession

_ATTEMPTS: Final = 3  # of a statement whose preparation no longer fits the schema


class Pipe:
    """A `pylon.storage.postgres.statements.Session` for any number of greenlets of one thread."""

    def __init__(
        self, connect: Callable[[], BlockingSession], clock: Clock, random: RandomSource,
        queue: str = "point_read",
    ) -> None:
        """
        Args:
            connect: opens the connection, with the limits of its session; may switch greenlets.
            queue: the label of its metrics.
        """
        self._hub: Hub = gevent.get_hub()
        self._link = PipeLink(connect, random, self._on_readable, self._on_writable)
        self._watch = LinkWatch(lambda: self._waiting > 0, self._lose)
        self._sent: deque[PendingStatement | None] = deque()  # in order; None: a Sync
        self._waiting = 0  # greenlets
        self._is_flush_due = False
        self._texts = TextMemory(clock)
        self._key_reads = KeyReads(self._texts, self._ask_again)
        self._waiting_gauge = ADMISSION_WAITING.labels(queue)
        self._refused = ADMISSION_REFUSED.labels(queue)

    # --- The connection ------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._link.pgconn is not None

    def open(self) -> None:
        """Connect. May switch greenlets.

        Raises:
            psycopg.Error: the server cannot be reached; nothing tries again.
        """
        self._link.open()

    def open_later(self) -> None:
        """Have a greenlet connect, if there is no connection and none is being made."""
        self._link.open_later()

    def drop_idle(self) -> None:
        """Close the connection until `open_later`, if nothing waits. Never switches."""
        if not self._sent and not self._waiting:
            self._link.drop()

    def close(self) -> None:
        """Close the connection for good. Idempotent."""
        self._link.close()
        self._watch.stop()
        self._fail_all("the reads of this process have ended")

    # --- Calls ---------------------------------------------------------------------------

    def execute(
        self, text: str, parameters: Sequence[Parameter] = (), *, timeout_s: float | None = None
    ) -> PGresult:
        """See `Session`. `timeout_s` is not used: the server's limit applies.

        Raises:
            psycopg.Error: of the statement's SQLSTATE; OperationalError when the connection is
                lost.
            PipeRefused: the pipe does not run this statement.
            Unavailable: too many statements wait.
        """
        question = self._ask(text, parameters)
        if question.is_open:
            try:
                self._wait(question)
            finally:
                question.waiter = None
        if question.error is not None:
            raise question.error
        assert question.result is not None
        return question.result

    def pipeline(
        self, statements: Sequence[Statement], *, timeout_s: float | None = None
    ) -> list[PGresult]:
        """See `Session` and `execute`."""
        outcome = self.try_pipeline(statements)
        if outcome.error is not None:
            raise outcome.error
        return outcome.results

    def try_pipeline(
        self, statements: Sequence[Statement], *, timeout_s: float | None = None
    ) -> PipelineOutcome:
        """See `Session` and `execute`. The statements behind a failed one are carried out."""
        questions = [self._ask(text, parameters) for text, parameters in statements]
        try:
            for question in questions:
                while question.is_open:
                    self._wait(question)
        finally:
            for question in questions:
                question.waiter = None
        results: list[PGresult] = []
        for question in questions:
            if question.result is None:
                if not isinstance(question.error, psycopg.Error):
                    assert question.error is not None
                    raise question.error
                return PipelineOutcome(results, question.error)
            results.append(question.result)
        return PipelineOutcome(results, None)

    def read_by_key(
        self, statement: KeyStatement, key: str, parameters: Sequence[Parameter] = ()
    ) -> Row | None:
        """See `Session` and `execute`. Reads of one turn are sent as one statement."""
        values, formats = encode_parameters((key, *parameters))
        if formats is not None:  # a binary value, which equal texts would not tell apart
            return row_of(self.execute(statement.one, (key, *parameters)))
        assert values is not None
        self._check(statement.one)
        read = self._key_reads.add(statement, values, self._current().switch)
        self._flush_later()
        self._waiting += 1
        try:
            self._hub.switch()
        finally:
            read.waiter = None
        if read.error is not None:
            raise read.error
        return read.row

    # --- Sending -------------------------------------------------------------------------

    def _ask(self, text: str, parameters: Sequence[Parameter]) -> PendingStatement:
        if text.startswith("BEGIN"):
            raise PipeRefused
        pgconn = self._check(text)
        question = PendingStatement(text, parameters)
        try:
            self._send(pgconn, question)
        except psycopg.OperationalError as error:
            self._lose(str(error))
            raise
        self._waiting += 1
        return question

    def _check(self, text: str) -> PGconn:
        """Return the connection for a statement. Raises: as `execute`."""
        if self._texts.is_slow(text):
            raise PipeRefused
        pgconn = self._link.pgconn
        if pgconn is None:
            raise psycopg.OperationalError("the database is not available")
        if self._waiting >= limits.POINT_READS_WAITING:
            self._refused.inc()
            raise Unavailable(
                "Too many reads wait for the database", hint="Try again in a moment"
            )
        return pgconn

    def _send(self, pgconn: PGconn, question: PendingStatement) -> None:
        text = question.text
        prepared = self._link.prepared
        name = prepared.find(text)
        if name is None:
            pending: deque[Any] = deque()
            send_statement(pgconn, prepared, text, question.parameters, pending)
            question.leading = len(pending) - 1
        else:
            values, formats = encode_parameters(question.parameters)
            pgconn.send_query_prepared(name, values, formats)
            question.leading = 0
        self._sent.append(question)
        if self._texts.has_failed(text):
            pgconn.pipeline_sync()
            self._sent.append(None)
        self._flush_later()

    def _flush_later(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self._hub.loop.run_callback(self._flush)
        self._watch.begin()

    def _ask_again(self, questions: Sequence[PendingStatement]) -> bool:
        """Send questions of greenlets that wait already; return whether there is a connection."""
        pgconn = self._link.pgconn
        if pgconn is None:
            return False
        self._waiting += len(questions)
        self._send_all(pgconn, questions)
        return True

    def _send_all(self, pgconn: PGconn, questions: Sequence[PendingStatement]) -> None:
        """Send questions.

        Raises:
            psycopg.OperationalError: the connection is lost; all are among those that fail.
        """
        for number, question in enumerate(questions):
            try:
                self._send(pgconn, question)
            except psycopg.OperationalError:
                self._sent.extend(rest for rest in questions[number:] if rest not in self._sent)
                raise

    def _flush(self) -> None:
        """Send the statements of this turn."""
        self._is_flush_due = False
        pgconn = self._link.pgconn
        if pgconn is None:
            return
        try:
            self._send_all(pgconn, self._key_reads.take_questions())
            if self._sent and self._sent[-1] is not None:
                pgconn.pipeline_sync()
                self._sent.append(None)
            self._send_rest(pgconn)
        except psycopg.OperationalError as error:
            self._lose(str(error))
        self._waiting_gauge.set(self._waiting)

    def _send_rest(self, pgconn: PGconn) -> None:
        self._link.watch_writable(bool(pgconn.flush()))

    def _on_writable(self) -> None:
        pgconn = self._link.pgconn
        if pgconn is None:
            return
        try:
            self._send_rest(pgconn)
        except psycopg.OperationalError as error:
            self._lose(str(error))

    # --- Receiving -----------------------------------------------------------------------

    def _wait(self, question: PendingStatement) -> None:
        question.waiter = self._current().switch
        self._hub.switch()

    def _current(self) -> greenlet:
        current = getcurrent()
        assert current is not self._hub, "a callback of the event loop must not wait"
        return current

    def _on_readable(self) -> None:
        pgconn = self._link.pgconn
        if pgconn is None:
            return
        sent = self._sent
        self._watch.note_progress()
        try:
            pgconn.consume_input()
            # A greenlet that gets its result runs at once; it may send, or lose the connection.
            while sent and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is not None:
                    self._take(pgconn, result)
                elif pgconn.status == pq.ConnStatus.BAD:
                    self._lose("the server closed the connection")
                if self._link.pgconn is not pgconn:
                    return
            if not sent and pgconn.status == pq.ConnStatus.BAD:
                self._lose("the server closed the connection")
        except psycopg.OperationalError as error:
            if self._link.pgconn is pgconn:
                self._lose(str(error))
        self._waiting_gauge.set(self._waiting)

    def _take(self, pgconn: PGconn, result: PGresult) -> None:
        """Give a result to the first question; a Sync ends its turn."""
        sent = self._sent
        status = result.status
        if status == pq.ExecStatus.PIPELINE_SYNC:
            sent.popleft()
            return
        question = sent[0]
        if question is None:  # an error of the connection, which no statement caused
            self._lose(result.get_error_message())
            return
        if status == pq.ExecStatus.TUPLES_OK or status == pq.ExecStatus.COMMAND_OK:
            if question.leading:
                question.leading -= 1
                return
            sent.popleft()
            self._waiting -= question.readers
            question.result = result
            question.wake()
        elif status == pq.ExecStatus.PIPELINE_ABORTED:
            # Of a statement that failed while it was prepared, or of another one of the turn.
            if question.leading:
                self._link.prepared.discard(question.text)
                question.leading -= 1
                return
            sent.popleft()
            if question.error is not None:
                self._waiting -= question.readers
                question.wake()
            else:
                self._send_all(pgconn, (question,))
        else:
            self._fail(pgconn, question, error_of(result))

    def _fail(self, pgconn: PGconn, question: PendingStatement, error: psycopg.Error) -> None:
        if pgconn.status == pq.ConnStatus.BAD:
            self._lose(str(error))
            return
        self._texts.note_failed(question.text)
        if question.leading:  # its other results follow, aborted
            self._link.prepared.discard(question.text)
            question.leading -= 1
            question.error = error
            return
        self._sent.popleft()
        question.attempts += 1
        if is_outdated(error) and question.attempts < _ATTEMPTS:
            # A migration changed a table. The old statement stays in the server until the
            # connection closes.
            self._link.prepared.discard(question.text)
            self._send_all(pgconn, (question,))
            return
        self._waiting -= question.readers
        if isinstance(error, errors.QueryCanceled):
            self._texts.note_slow(question.text)
            question.error = PipeRefused(was_slow=True)
        else:
            question.error = error
        question.wake()

    # --- Loss of the connection ------------------------------------------------------------

    def _lose(self, reason: str) -> None:
        """Fail all that waits, and connect anew. Does not switch greenlets."""
        if self._link.pgconn is None:
            return
        lines = reason.strip().splitlines() or ["the connection is lost"]
        self._link.lose(lines[0], self._waiting)
        self._fail_all(lines[0])
        self._link.open_later()

    def _fail_all(self, reason: str) -> None:
        failed = [question for question in self._sent if question is not None]
        failed += self._key_reads.take_questions()
        self._sent.clear()
        self._waiting = 0
        self._waiting_gauge.set(0)
        for question in failed:
            question.error = psycopg.OperationalError(reason)
            # In a callback: the caller may be a greenlet that cannot switch now.
            self._hub.loop.run_callback(question.wake)
