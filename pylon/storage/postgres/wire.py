"""Wire: statements to the server and their results, over libpq's pipeline mode.

A `Session` sends any number of statements in one flush and waits for all results: one round trip.
It prepares each text once (`prepared`). Nothing here begins a transaction: a caller sends BEGIN and
COMMIT as statements. The statements of one flush without a BEGIN are one transaction.

psycopg opens the connection (`connect`) and has the classes of errors; its cursors may use the
connection between two calls. PERF: a point read costs 9 to 13 us of CPU here, 56 to 71 by a cursor.

Invariants: a failed statement raises the class of psycopg.errors of its SQLSTATE, and the server
does not carry out the statements behind it. After an error the session is usable, or `is_broken`.
No call waits beyond its deadline: it cancels its statement, waits `CANCEL_WAIT_S` for the end of
it, and closes the connection if there is none.

One thread or greenlet at a time uses a session. It waits by `select.poll`: gevent's where gevent
has patched it, so that other greenlets run meanwhile. Used by the writer, the reader, the scanners
and the upkeep.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors, pq
from psycopg.pq.abc import PGconn, PGresult

from pylon.clock import Clock, SystemClock
from pylon.storage.postgres.key_reads import KeyStatement, Row, row_of
from pylon.storage.postgres.parameters import Parameter, encode_parameters
from pylon.storage.postgres.prepared import (
    STATEMENTS_KEPT,
    Pending,
    PreparedStatements,
    Step,
    error_of,
    is_outdated,
    send_statement,
)
from pylon.storage.postgres.statements import PipelineOutcome, Statement

# Waits until a descriptor has one of the events of `select.poll`, or for so many seconds. Returns
# the events; 0: the time is over.
WaitForSocket: TypeAlias = Callable[[int, int, float], int]

CANCEL_WAIT_S: Final = 1.0
NO_LIMIT_S: Final = 86_400.0

_HAS_PORTIONS: Final = pq.version() >= 170_000
_DONE: Final = (int(pq.ExecStatus.TUPLES_OK), int(pq.ExecStatus.COMMAND_OK))
_SYNC: Final = int(pq.ExecStatus.PIPELINE_SYNC)
_BAD: Final = int(pq.ConnStatus.BAD)
_READ: Final = select.POLLIN | select.POLLPRI | select.POLLHUP | select.POLLERR
_WRITE: Final = select.POLLOUT
_FAILED: Final = frozenset({pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE})


def wait_by_poll(descriptor: int, events: int, timeout_s: float) -> int:
    """The usual `WaitForSocket`. It looks `poll` up in each call: gevent may have patched it."""
    poll = select.poll()
    poll.register(descriptor, events)
    found = poll.poll(timeout_s * 1_000)
    return found[0][1] if found else 0


class BlockingSession:
    """A `Session` whose caller waits. See the module."""

    __slots__ = (
        "_cancel_wait_s", "_clock", "_in_portions", "_pgconn", "_wait", "conn", "prepared",
        "timeout_s",
    )

    def __init__(
        self, conn: psycopg.Connection[Any], clock: Clock | None = None, *,
        timeout_s: float = NO_LIMIT_S, cancel_wait_s: float = CANCEL_WAIT_S,
        wait: WaitForSocket = wait_by_poll, statements_kept: int = STATEMENTS_KEPT,
    ) -> None:
        """
        Args:
            conn: open, in autocommit mode; the session closes it.
            timeout_s: how long a call may wait.
            cancel_wait_s: how long it may wait for the end of a cancelled statement. 0: it does not
                cancel, it closes the connection at once.
        """
        self.conn = conn
        self._pgconn: PGconn = conn.pgconn
        self._pgconn.nonblocking = 1
        self._clock = clock or SystemClock()
        self.timeout_s = timeout_s
        self._cancel_wait_s = cancel_wait_s
        self._wait = wait
        self.prepared = PreparedStatements(statements_kept)
        self._in_portions = False

    @property
    def is_broken(self) -> bool:
        """Whether the connection is lost or closed."""
        return self._pgconn.status == pq.ConnStatus.BAD

    @property
    def is_in_transaction(self) -> bool:
        """Whether a BEGIN is open, also a failed one."""
        return self._pgconn.transaction_status in (
            pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR
        )

    def execute(
        self, text: str, parameters: Sequence[Parameter] = (), *, timeout_s: float | None = None
    ) -> PGresult:
        """See `Session`."""
        outcome = self.try_pipeline([(text, parameters)], timeout_s=timeout_s)
        if outcome.error is not None:
            raise outcome.error
        return outcome.results[0]

    def pipeline(
        self, statements: Sequence[Statement], *, timeout_s: float | None = None
    ) -> list[PGresult]:
        """See `Session`."""
        outcome = self.try_pipeline(statements, timeout_s=timeout_s)
        if outcome.error is not None:
            raise outcome.error
        return outcome.results

    def try_pipeline(
        self, statements: Sequence[Statement], *, timeout_s: float | None = None
    ) -> PipelineOutcome:
        """See `Session`."""
        deadline_s = self._deadline_s(timeout_s)
        was_in_transaction = self.is_in_transaction
        outcome = self._run(statements, deadline_s)
        if (
            outcome.error is None or was_in_transaction or not is_outdated(outcome.error)
            or any(result.command_status == b"COMMIT" for result in outcome.results)
        ):
            return outcome
        # A migration changed a table behind a prepared statement. Nothing was committed.
        if self.is_in_transaction:
            self._run([("ROLLBACK", ())], deadline_s)
        self.forget_statements(self._left_s(deadline_s))
        return self._run(statements, deadline_s)

    def read_by_key(
        self, statement: KeyStatement, key: str, parameters: Sequence[Parameter] = ()
    ) -> Row | None:
        """See `Session`."""
        return row_of(self.execute(statement.one, (key, *parameters)))

    def execute_script(self, script: str, *, timeout_s: float | None = None) -> list[PGresult]:
        """Carry out any number of statements, separated by `;`, without parameters. Without a BEGIN
        among them they are one transaction. Not prepared: for DDL.

        Raises: as `execute`.
        """
        deadline_s = self._deadline_s(timeout_s)
        results: list[PGresult] = []
        error: psycopg.Error | None = None
        try:
            self._pgconn.send_query(script.encode())
            self._flush(deadline_s)
            while (result := self._next_result(deadline_s)) is not None:
                if result.status in _FAILED:
                    error = error or error_of(result)
                else:
                    results.append(result)
        except psycopg.Error as found:
            error = found
            self._recover()
        except BaseException:  # the greenlet is killed
            self._recover()
            raise
        if error is not None:
            raise error
        return results

    def stream(
        self, text: str, parameters: Sequence[Parameter] = (), *, portion_rows: int = 1_000,
        timeout_s: float | None = None,
    ) -> Iterator[PGresult]:
        """Carry out one statement, and yield its rows in portions while the server sends them. The
        last portion may be empty. A caller that closes the iterator early cancels the statement.

        Args:
            portion_rows: of a portion, at the most. An old libpq (before 17) gives one row each.

        Raises: as `execute`.
        """
        deadline_s = self._deadline_s(timeout_s)
        values, formats = encode_parameters(parameters)
        pgconn = self._pgconn
        is_under_way = True
        try:
            # Outside of pipeline mode: a cancelled statement is the only one to clear away.
            pgconn.send_query_params(text.encode(), values, param_formats=formats)
            self._in_portions = True
            if _HAS_PORTIONS:
                pgconn.set_chunked_rows_mode(portion_rows)
            else:
                pgconn.set_single_row_mode()
            self._flush(deadline_s)
            while (result := self._next_result(deadline_s)) is not None:
                if result.status in _FAILED:
                    raise error_of(result)
                yield result
            is_under_way = False
        finally:
            if is_under_way:
                self._recover()

    def notifications(self, timeout_s: float) -> list[pq.PGnotify]:
        """Return the notifications that have come since the last call; if there are none, wait
        for some. For a connection that LISTENs.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        found = self._take_notifications()
        if not found and self._wait(self._pgconn.socket, _READ, timeout_s):
            found = self._take_notifications()
        return found

    def forget_statements(self, timeout_s: float | None = None) -> None:
        """Close all prepared statements, here and in the server.

        Raises: as `execute`.
        """
        self.prepared.clear()
        self.execute_script("DEALLOCATE ALL", timeout_s=timeout_s)

    def cancel(self) -> None:
        """Ask the server to end the statement that runs; from any thread. The call that waits for
        it raises QueryCanceled, if the server still can.

        Raises:
            psycopg.Error: the server cannot be reached.
        """
        self.conn.cancel_safe(timeout=CANCEL_WAIT_S)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self.conn.close()

    def _run(self, statements: Sequence[Statement], deadline_s: float) -> PipelineOutcome:
        pgconn = self._pgconn
        results: list[PGresult] = []
        pending: Pending = deque()
        if not statements:
            return PipelineOutcome(results, None)
        error: psycopg.Error | None = None
        try:
            if self._in_portions:
                self._leave_portions(deadline_s)
            pgconn.enter_pipeline_mode()
            try:
                for text, parameters in statements:
                    send_statement(pgconn, self.prepared, text, parameters, pending)
            except errors.CharacterNotInRepertoire as found:
                error = found  # those before it are on their way, and are carried out
            pgconn.pipeline_sync()
            self._flush(deadline_s)
            error = self._take_results(pending, results, deadline_s) or error
            pgconn.exit_pipeline_mode()
        except psycopg.Error as found:
            error = found
            self._abandon(pending)
        except BaseException:  # the greenlet is killed, or a parameter has no encoding
            self._abandon(pending)
            raise
        return PipelineOutcome(results, error)

    def _leave_portions(self, deadline_s: float) -> None:
        """Carry out an empty statement. libpq would keep the mode of a stream for the first
        statement of the next pipeline, if that is prepared already."""
        self._pgconn.send_query(b"")
        self._flush(deadline_s)
        while self._next_result(deadline_s) is not None:
            pass
        self._in_portions = False

    def _take_results(
        self, pending: Pending, results: list[PGresult], deadline_s: float
    ) -> psycopg.Error | None:
        """Read the answers of all statements, and of the Sync behind them."""
        error: psycopg.Error | None = None
        # PERF: without a call for each answer, and with numbers in place of enumerations: a batch
        # of 64 inserts has 30 answers, and each took 4 us.
        pgconn, query = self._pgconn, Step.QUERY
        is_busy, get_result = pgconn.is_busy, pgconn.get_result
        while True:
            while is_busy():
                self._wait_for(_READ, deadline_s)
                pgconn.consume_input()
            result = get_result()
            if result is None:  # the end of one statement's answer
                if pgconn.status == _BAD:
                    raise psycopg.OperationalError("the connection to the database is lost")
                continue
            status = result.status
            if status in _DONE:
                if pending.popleft()[0] is query:
                    results.append(result)
                continue
            if status == _SYNC:
                return error
            if status in _FAILED:
                error = error_of(result)
                # Without a statement that waits, the server has ended the connection in place of
                # answering the Sync; libpq may not have read that end yet.
                if self.is_broken or not pending:
                    raise error
            step, text = pending.popleft()
            if status in _FAILED or status == pq.ExecStatus.PIPELINE_ABORTED:
                if step is Step.PREPARE:
                    self.prepared.discard(text)
            elif step is Step.QUERY:
                results.append(result)

    def _next_result(self, deadline_s: float) -> PGresult | None:
        pgconn = self._pgconn
        while pgconn.is_busy():
            self._wait_for(_READ, deadline_s)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None and pgconn.status == pq.ConnStatus.BAD:
            raise psycopg.OperationalError("the connection to the database is lost")
        return result

    def _flush(self, deadline_s: float) -> None:
        """Send all that is in libpq's buffer. Takes what the server sends meanwhile, since a server
        whose results nobody reads reads no statements."""
        pgconn = self._pgconn
        while pgconn.flush():
            if self._wait_for(_READ | _WRITE, deadline_s) & _READ:
                pgconn.consume_input()

    def _wait_for(self, events: int, deadline_s: float) -> int:
        found = self._wait(self._pgconn.socket, events, max(0.0, self._left_s(deadline_s)))
        if not found:
            raise _DeadlinePassed("the statement took longer than its time limit")
        return found

    def _abandon(self, pending: Pending) -> None:
        """Give up the statements whose answers are pending."""
        for step, text in pending:
            if step is Step.PREPARE:
                self.prepared.discard(text)
        self._recover()

    def _recover(self) -> None:
        """Cancel what is under way, so that the connection is usable again, or close it."""
        try:
            if self._cancel_wait_s and not self.is_broken and self._cancel_and_drain():
                return
        except psycopg.Error:
            pass  # the connection is of no more use
        self.close()

    def _cancel_and_drain(self) -> bool:
        """Return whether the connection is idle, or in a transaction, after all."""
        pgconn = self._pgconn
        if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self.cancel()
        deadline_s = self._clock.monotonic_s() + self._cancel_wait_s
        in_pipeline = pgconn.pipeline_status != pq.PipelineStatus.OFF
        ends = 0
        while ends < (2 if in_pipeline else 1):
            result = self._next_result(deadline_s)
            if result is None:
                ends += 1
                continue
            ends = 0
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                pgconn.exit_pipeline_mode()
                return True
        return not in_pipeline  # in pipeline mode the Sync was never sent

    def _take_notifications(self) -> list[pq.PGnotify]:
        self._pgconn.consume_input()
        found: list[pq.PGnotify] = []
        while (notification := self._pgconn.notifies()) is not None:
            found.append(notification)
        return found

    def _deadline_s(self, timeout_s: float | None) -> float:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        return self._clock.monotonic_s() + limit_s

    def _left_s(self, deadline_s: float) -> float:
        return deadline_s - self._clock.monotonic_s()


class _DeadlinePassed(errors.QueryCanceled):
    """No answer came before the deadline."""
