"""The pipe: one connection of a worker, shared by all of its greenlets, for short reads.

A greenlet puts its statement into libpq's buffer and waits. The pipe sends the statements of one
turn of the event loop together, with one Sync behind them. A watcher of the socket takes the
results, which come in order, and gives each to its greenlet. So a read costs neither a connection
nor a system call of its own. PERF: `bench/results/2026-11-28/postgres-workers.md`.

A statement that fails ends the others of its turn, up to the Sync: the pipe sends these again. They
only read. A text that has failed before gets a Sync of its own, so that it ends no others. A
statement that runs into the server's limit (that of `connect`) delays all behind it. The pipe
refuses its text for the next `_SLOW_S` (`PipeRefused`), as it refuses all that needs a connection
for itself, such as a transaction; the caller then runs the read on a scanner.

Invariants: each greenlet gets its own result, or an error. A greenlet that is killed while it waits
gets nothing, and the pipe drops its result. While the connection is lost each call fails at once
with OperationalError, and so does each waiting one. A greenlet connects anew, after pauses of at
most 0.1 to 5 s with full jitter. A server that answers nothing for `limits.POINT_STALL_S` counts as
lost. Bounds: `limits.POINT_READS_WAITING` statements wait; the next one fails with Unavailable.
Metrics: pylon_admission_queue_length and pylon_admission_refused_total with the name of the queue,
pylon_database_connections_lost_total. Called by `store` and `short_reads`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import gevent
import psycopg
from gevent.hub import Hub
from greenlet import getcurrent, greenlet
from psycopg import errors, pq
from psycopg.pq.abc import PGconn, PGresult

from pylon import limits, log
from pylon.clock import Clock, RandomSource
from pylon.errors import Unavailable
from pylon.metrics.families import ADMISSION_REFUSED, ADMISSION_WAITING, DATABASE_LOST
from pylon.storage.postgres.parameters import Parameter, encode_parameters
from pylon.storage.postgres.prepared import (
    PreparedStatements,
    error_of,
    is_outdated,
    send_statement,
)
from pylon.storage.postgres.statements import PipelineOutcome, Statement
from pylon.storage.postgres.wire import BlockingSession

T = TypeVar("T")

_READ: Final = 1  # events of gevent's watchers
_WRITE: Final = 2
_SLOW_S: Final = 10.0
_TEXTS_KEPT: Final = 256  # of those that failed, and of those that were slow
_ATTEMPTS: Final = 3  # of a statement whose preparation no longer fits the schema
_PAUSE_FIRST_S: Final = 0.1
_PAUSE_MAX_S: Final = 5.0
_LONGEST_BACKOFF: Final = 6  # 0.1 s * 2**6 is above the longest pause

_log = log.get_logger("database")


class PipeRefused(Exception):
    """The read needs a connection for itself. Not an error: a scanner runs it.

    `was_slow`: it has just run into the server's limit.
    """

    def __init__(self, *, was_slow: bool = False) -> None:
        self.was_slow = was_slow


class _Question:
    """A statement that waits for its result."""

    __slots__ = ("attempts", "error", "greenlet", "leading", "parameters", "result", "text")

    def __init__(self, text: str, parameters: Sequence[Parameter]) -> None:
        self.text = text
        self.parameters = parameters
        self.greenlet: greenlet | None = None
        self.result: PGresult | None = None
        self.error: Exception | None = None
        self.attempts = 0
        self.leading = 0  # results before its own: of the preparation

    @property
    def is_open(self) -> bool:
        return self.result is None and self.error is None


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
        self._connect = connect
        self._clock = clock
        self._random = random
        self._session: BlockingSession | None = None
        self._pgconn: PGconn | None = None
        self._prepared = PreparedStatements()
        self._hub: Hub = gevent.get_hub()
        self._watches: tuple[Any, Any] | None = None  # of the socket: readable, writable
        self._timer = self._hub.loop.timer(
            limits.POINT_STALL_S, limits.POINT_STALL_S, ref=False
        )
        self._is_timed = False
        self._has_progress = False  # since the last call of the timer
        self._sent: deque[_Question | None] = deque()  # in order; None: a Sync
        self._waiting = 0
        self._is_flush_due = False
        self._failing: dict[str, None] = {}  # texts that get a Sync of their own
        self._slow: dict[str, float] = {}  # texts that the pipe refuses, and until when
        self._reconnector: gevent.Greenlet | None = None
        self._has_lost = False  # a connection, since the last one was made by `_reconnect`
        self._is_closed = False
        self._waiting_gauge = ADMISSION_WAITING.labels(queue)
        self._refused = ADMISSION_REFUSED.labels(queue)

    # --- The connection ------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._pgconn is not None

    def open(self) -> None:
        """Connect. May switch greenlets.

        Raises:
            psycopg.Error: the server cannot be reached; nothing tries again.
        """
        session = self._connect()
        if self._is_closed:  # meanwhile
            session.close()
            return
        pgconn = session.conn.pgconn
        pgconn.enter_pipeline_mode()
        loop = self._hub.loop
        readable, writable = loop.io(pgconn.socket, _READ), loop.io(pgconn.socket, _WRITE)
        self._session, self._pgconn = session, pgconn
        self._prepared = session.prepared
        self._watches = readable, writable
        readable.start(self._on_readable)

    def open_later(self) -> None:
        """Have a greenlet connect, if there is no connection and none is being made."""
        if self._pgconn is None and self._reconnector is None and not self._is_closed:
            self._reconnector = gevent.spawn(self._reconnect)

    def drop_idle(self) -> None:
        """Close the connection until `open_later`, if nothing waits. Never switches."""
        if not self._sent:
            self._drop()

    def close(self) -> None:
        """Close the connection for good. Idempotent."""
        self._is_closed = True
        if self._reconnector is not None:
            self._reconnector.kill(block=False)
        self._drop()
        self._timer.stop()
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
                question.greenlet = None
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
                question.greenlet = None
        results: list[PGresult] = []
        for question in questions:
            if question.result is None:
                if not isinstance(question.error, psycopg.Error):
                    assert question.error is not None
                    raise question.error
                return PipelineOutcome(results, question.error)
            results.append(question.result)
        return PipelineOutcome(results, None)

    # --- Sending -------------------------------------------------------------------------

    def _ask(self, text: str, parameters: Sequence[Parameter]) -> _Question:
        if text.startswith("BEGIN"):
            raise PipeRefused
        if self._slow and text in self._slow:
            if self._slow[text] > self._clock.monotonic_s():
                raise PipeRefused
            del self._slow[text]
        if self._pgconn is None:
            raise psycopg.OperationalError("the database is not available")
        if self._waiting >= limits.POINT_READS_WAITING:
            self._refused.inc()
            raise Unavailable(
                "Too many reads wait for the database", hint="Try again in a moment"
            )
        question = _Question(text, parameters)
        try:
            self._send(self._pgconn, question)
        except psycopg.OperationalError as error:
            self._lose(str(error))
            raise
        self._waiting += 1
        return question

    def _send(self, pgconn: PGconn, question: _Question) -> None:
        text = question.text
        name = self._prepared.find(text)
        if name is None:
            pending: deque[Any] = deque()
            send_statement(pgconn, self._prepared, text, question.parameters, pending)
            question.leading = len(pending) - 1
        else:
            values, formats = encode_parameters(question.parameters)
            pgconn.send_query_prepared(name, values, formats)
            question.leading = 0
        self._sent.append(question)
        if text in self._failing:
            pgconn.pipeline_sync()
            self._sent.append(None)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._hub.loop.run_callback(self._flush)
        if not self._is_timed:
            self._is_timed = self._has_progress = True
            self._timer.start(self._check_progress)

    def _send_again(self, pgconn: PGconn, question: _Question) -> None:
        """Send a question anew that was answered without a result.

        Raises:
            psycopg.OperationalError: the connection is lost; the question is among those that fail.
        """
        try:
            self._send(pgconn, question)
        except psycopg.OperationalError:
            if question not in self._sent:
                self._sent.append(question)
            raise

    def _flush(self) -> None:
        """Send the statements of this turn."""
        self._is_flush_due = False
        pgconn = self._pgconn
        if pgconn is None:
            return
        try:
            if self._sent and self._sent[-1] is not None:
                pgconn.pipeline_sync()
                self._sent.append(None)
            self._send_rest(pgconn)
        except psycopg.OperationalError as error:
            self._lose(str(error))
        self._waiting_gauge.set(self._waiting)

    def _send_rest(self, pgconn: PGconn) -> None:
        assert self._watches is not None
        writable = self._watches[1]
        if pgconn.flush():
            writable.start(self._on_writable)
        elif writable.active:
            writable.stop()

    def _on_writable(self) -> None:
        pgconn = self._pgconn
        if pgconn is None:
            return
        try:
            self._send_rest(pgconn)
        except psycopg.OperationalError as error:
            self._lose(str(error))

    # --- Receiving -----------------------------------------------------------------------

    def _wait(self, question: _Question) -> None:
        current = getcurrent()
        assert current is not self._hub, "a callback of the event loop must not wait"
        question.greenlet = current
        self._hub.switch()

    def _on_readable(self) -> None:
        pgconn = self._pgconn
        if pgconn is None:
            return
        sent = self._sent
        self._has_progress = True
        try:
            pgconn.consume_input()
            # A greenlet that gets its result runs at once; it may send, or lose the connection.
            while sent and not pgconn.is_busy():
                result = pgconn.get_result()
                if result is not None:
                    self._take(pgconn, result)
                elif pgconn.status == pq.ConnStatus.BAD:
                    self._lose("the server closed the connection")
                if self._pgconn is not pgconn:
                    return
            if not sent and pgconn.status == pq.ConnStatus.BAD:
                self._lose("the server closed the connection")
        except psycopg.OperationalError as error:
            if self._pgconn is pgconn:
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
            self._waiting -= 1
            question.result = result
            self._wake(question)
        elif status == pq.ExecStatus.PIPELINE_ABORTED:
            # Of a statement that failed while it was prepared, or of another one of the turn.
            if question.leading:
                self._prepared.discard(question.text)
                question.leading -= 1
                return
            sent.popleft()
            if question.error is not None:
                self._waiting -= 1
                self._wake(question)
            else:
                self._send_again(pgconn, question)
        else:
            self._fail(pgconn, question, error_of(result))

    def _fail(self, pgconn: PGconn, question: _Question, error: psycopg.Error) -> None:
        if pgconn.status == pq.ConnStatus.BAD:
            self._lose(str(error))
            return
        _keep(self._failing, question.text, None)
        if question.leading:  # its other results follow, aborted
            self._prepared.discard(question.text)
            question.leading -= 1
            question.error = error
            return
        self._sent.popleft()
        question.attempts += 1
        if is_outdated(error) and question.attempts < _ATTEMPTS:
            # A migration changed a table. The old statement stays in the server until the
            # connection closes.
            self._prepared.discard(question.text)
            self._send_again(pgconn, question)
            return
        self._waiting -= 1
        if isinstance(error, errors.QueryCanceled):
            _keep(self._slow, question.text, self._clock.monotonic_s() + _SLOW_S)
            question.error = PipeRefused(was_slow=True)
        else:
            question.error = error
        self._wake(question)

    def _wake(self, question: _Question) -> None:
        waiter, question.greenlet = question.greenlet, None
        if waiter is not None:
            waiter.switch()

    # --- Loss of the connection ------------------------------------------------------------

    def _check_progress(self) -> None:
        if not self._waiting:
            self._timer.stop()
            self._is_timed = False
        elif not self._has_progress:
            self._lose(f"the server has answered nothing for {limits.POINT_STALL_S} s")
        self._has_progress = False

    def _lose(self, reason: str) -> None:
        """Fail all that waits, and connect anew. Does not switch greenlets."""
        if self._pgconn is None:
            return
        lines = reason.strip().splitlines() or ["the connection is lost"]
        _log.warning("database.connection_lost", error=lines[0], reads=self._waiting)
        DATABASE_LOST.inc()
        self._has_lost = True
        self._drop()
        self._fail_all(lines[0])
        self.open_later()

    def _drop(self) -> None:
        session, self._session, self._pgconn = self._session, None, None
        watches, self._watches = self._watches, None
        if watches is not None:
            for watch in watches:
                watch.stop()
                watch.close()
        if session is not None:
            session.close()

    def _fail_all(self, reason: str) -> None:
        failed = [question for question in self._sent if question is not None]
        self._sent.clear()
        self._waiting = 0
        self._waiting_gauge.set(0)
        for question in failed:
            question.error = psycopg.OperationalError(reason)
            # In a callback: the caller may be a greenlet that cannot switch now.
            self._hub.loop.run_callback(partial(self._wake, question))

    def _reconnect(self) -> None:
        failures = 0
        while not self._is_closed:
            longest_s = min(_PAUSE_MAX_S, _PAUSE_FIRST_S * 2 ** min(failures, _LONGEST_BACKOFF))
            if failures or self._has_lost:
                gevent.sleep(self._random.uniform(0.0, longest_s))
            try:
                self.open()
            except psycopg.Error as error:
                failures += 1
                if failures == 1:
                    _log.warning("database.unreachable", error=str(error).strip())
                continue
            if failures or self._has_lost:
                _log.info("database.connected", attempts=failures + 1)
            self._reconnector, self._has_lost = None, False
            return


def _keep(texts: dict[str, T], text: str, value: T) -> None:
    """Note a text; the oldest one is forgotten for it."""
    if text not in texts and len(texts) >= _TEXTS_KEPT:
        del texts[next(iter(texts))]
    texts[text] = value
