"""Statements: runs those of one SQLite connection, each within its time and size limit.

`Deadline` limits the time of each statement. SQLite calls it only between rows. So within a group
(`begin_group`) a full-text match is refused, and a pattern on texts that may be long. The pool also
interrupts a statement in a thread from outside (`interrupt_late`). SQLite checks for interrupts
at each row, and FTS5 at each page of its index.

A statement that has passed the limit of a group is refused at once the next times
(`SlowStatements`).

Invariants: a statement exceeds its time limit by at most one check interval and the cost of one
row. Every error of apsw becomes one of ours. One thread at a time calls it, except for
`interrupt_late`. Called by `reader`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import apsw

from pylon.clock import Clock
from pylon.errors import PylonError, QueryTimeout
from pylon.query.predicate_parts import Cost
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sqlite.connect import translate
from pylon.storage.sqlite.deadline import Deadline
from pylon.storage.sqlite.short_rows import has_short_rows
from pylon.storage.sqlite.slow_statements import SlowStatements

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Instructions of SQLite's virtual machine between two checks of the clock: about 10 ms.
SCAN_CHECK_STEPS: Final = 500_000
_PATTERN: Final = "pattern:"
_KNOWN_SLOW: Final = "the statement is known to take longer"
_SHORT_ROWS_TTL_NS: Final = 50_000_000  # PERF: a query for each pattern took 3 us of 65


class SizeLimit:
    """Context in which SQLite raises apsw.TooBigError instead of making a text above `size_bytes`.

    SQLite stops at the row that would exceed the limit. So a refused result never takes more memory
    than an accepted one.
    """

    __slots__ = ("_set", "_size_bytes", "_usual_bytes")

    def __init__(self, conn: apsw.Connection, size_bytes: int) -> None:
        self._set = conn.limit
        self._size_bytes = size_bytes
        self._usual_bytes = conn.limit(apsw.SQLITE_LIMIT_LENGTH)

    def __enter__(self) -> None:
        self._set(apsw.SQLITE_LIMIT_LENGTH, self._size_bytes)

    def __exit__(self, *_: object) -> None:
        self._set(apsw.SQLITE_LIMIT_LENGTH, self._usual_bytes)


class Statements:
    """See the module; for one connection."""

    __slots__ = (
        "_clock", "_conn", "_deadline", "_execute", "_pattern_key", "_short_rows",
        "_short_rows_read_ns", "_slow",
    )

    def __init__(
        self, conn: apsw.Connection, clock: Clock, deadline: Deadline, check_steps: int
    ) -> None:
        """
        Args:
            deadline: limits the statements. A caller that runs one by itself tells it first.
            check_steps: SQLite instructions between two checks of the clock.
        """
        self._deadline = deadline
        self._clock = clock
        self._conn = conn
        self._execute = conn.execute
        self._slow = SlowStatements()
        self._pattern_key = ""  # key in `_slow` of the patterns like that of the last statement
        self._short_rows: dict[str, bool] = {}
        self._short_rows_read_ns = 0
        conn.set_progress_handler(deadline.is_over, check_steps)

    def one(self, sql: str, params: tuple[object, ...]) -> Any:
        """Return the first column of the first row, or the row if it has several; None: no row."""
        deadline = self._deadline
        deadline.start_statement()
        if deadline.in_group and self._slow.should_skip(sql):
            raise QueryTimeout(_KNOWN_SLOW)
        try:
            return self._execute(sql, params).get
        except apsw.Error as error:
            raise self._failed(sql, error) from error

    def all(self, sql: str, params: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Return all rows."""
        deadline = self._deadline
        deadline.start_statement()
        if deadline.in_group and self._slow.should_skip(sql):
            raise QueryTimeout(_KNOWN_SLOW)
        try:
            return self._execute(sql, params).fetchall()
        except apsw.Error as error:
            raise self._failed(sql, error) from error

    def call(self, read: Callable[[apsw.Connection, *Ts], T], *args: *Ts) -> T:
        """Call a function on the connection. Return its result."""
        self._deadline.start_statement()
        try:
            return read(self._conn, *args)
        except apsw.Error as error:
            raise translate(error) from error

    def _failed(self, sql: str, error: apsw.Error) -> PylonError:
        if self._deadline.in_group and isinstance(error, apsw.InterruptError):
            self._slow.add(sql)
            if self._pattern_key:  # similar patterns may be as slow
                self._slow.add(self._pattern_key)
        return translate(error)

    def begin_group(self, timeout_s: float) -> None:
        """Limit all statements until the deadline's `end_group` to `timeout_s` together."""
        self._pattern_key = ""
        self._deadline.begin_group(timeout_s)

    def at_one_commit(self, read: Callable[[], T]) -> T:
        """Run `read` in one transaction."""
        try:
            self._deadline.start_statement()
            self._conn.execute("BEGIN")
            try:
                return read()
            finally:
                # SQLite counts the steps of all runs of a kept statement, so it may call the
                # progress handler in a COMMIT, too.
                self._deadline.exempt_statement()
                self._conn.execute("COMMIT")
        except apsw.Error as error:
            raise translate(error) from error

    def interrupt_late(self) -> None:
        """Interrupt a statement that another thread runs here, if its time is over."""
        if self._deadline.is_over():
            self._conn.interrupt()

    def refuse_long(self, entity: str, clause: SqlClause) -> None:
        """Refuse to run a match or a pattern inline if it may be slow.

        Raises:
            QueryTimeout: a single step of the statement may take too long, or did so with
                another pattern.
        """
        if clause.cost is Cost.MATCH:
            raise QueryTimeout("a full-text match must run in a thread")
        if not self._has_short_rows(entity):
            raise QueryTimeout("a pattern may meet long texts")
        self._pattern_key = _PATTERN + entity
        if self._slow.should_skip(self._pattern_key):
            raise QueryTimeout(_KNOWN_SLOW)

    def _has_short_rows(self, entity: str) -> bool:
        now_ns = self._clock.wall_ns()
        if not 0 <= now_ns - self._short_rows_read_ns < _SHORT_ROWS_TTL_NS:
            self._short_rows.clear()
            self._short_rows_read_ns = now_ns
        known = self._short_rows.get(entity)
        if known is None:
            known = self._short_rows[entity] = self.call(has_short_rows, entity)
        return known
