"""Online: carries out the steps of a plan while other nodes read and write.

A statement that waits for a table's exclusive lock stops all readers behind it. So it waits at
most `LOCK_WAIT_MS`, and is tried again after a random pause, for `RETRY_S`. An index is built
CONCURRENTLY, which waits for transactions but stops nobody; one that was not built to its end
(INVALID) is dropped first. Within a transaction (`schema apply`, or new tables) the statements are
plain ones.

Each statement is a transaction of its own. A plan is computed from the live schema, so after a kill
the next start finds the rest of the steps and goes on. Called by `apply`, `rewrite` and `indexes`,
under the lock of those who change the schema.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final

import psycopg
from psycopg import errors

from pylon.clock import Clock, RandomSource, SystemClock, SystemRandom
from pylon.errors import SchemaRefused, StartDelayed
from pylon.log import get_logger
from pylon.schema.steps import Step
from pylon.storage.postgres.connect import error_text
from pylon.storage.postgres.names import quote
from pylon.storage.postgres.schema.ddl import NEXT, drop_index
from pylon.storage.postgres.schema.live import is_invalid
from pylon.storage.postgres.schema.results import ask
from pylon.storage.postgres.wire import BlockingSession

LOCK_WAIT_MS: Final = 250
RETRY_S: Final = 300.0
_PAUSE_MAX_S: Final = 2.0
_LOG_EVERY_S: Final = 10.0
_HOLDERS: Final = (
    "SELECT DISTINCT a.pid, a.application_name, extract(epoch FROM now() - a.xact_start)::bigint, "
    "left(a.query, 80) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) "
    "WHERE l.relation = to_regclass($1) AND l.granted AND a.pid <> pg_backend_pid()"
)
FAULTS: Final = (
    errors.IntegrityError, errors.ProgrammingError, errors.NotSupportedError, errors.DataError,
    errors.ProgramLimitExceeded,
)

_log = get_logger("schema")


class OnlineSteps:
    """Carries out steps on one session."""

    __slots__ = ("_clock", "_pause", "_random", "_session")

    def __init__(
        self, session: BlockingSession, clock: Clock | None = None,
        random: RandomSource | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args: `clock`: of the time limits."""
        self._session = session
        self._clock = clock or SystemClock()
        self._random = random or SystemRandom()
        self._pause = pause

    def run(self, step: Step, new_tables: Collection[str] = ()) -> None:
        """Carry out one step that has a statement.

        Args:
            new_tables: entities whose tables have no rows that others can see.

        Raises:
            SchemaRefused: the database refuses the step; the text names it.
            StartDelayed: others held the table all the time.
            psycopg.Error: the database cannot be used.
        """
        try:
            if step.kind == "add_index":
                self.make_index(step.name, step.sql, is_new=step.entity in new_tables)
            elif step.kind == "remove_index":
                self.drop_index(step.name)
            else:
                self.change_table(step.sql, step.entity)
        except FAULTS as error:
            raise SchemaRefused(f"{step.render()}: {refusal_text(error)}") from error

    def make_index(self, name: str, sql: str, *, is_new: bool) -> None:
        """Make an index.

        Args:
            is_new: nobody else uses the table.

        Raises:
            psycopg.Error: UniqueViolation for example; there is no index then.
        """
        if self._session.is_in_transaction or is_new:
            self._session.execute_script(sql)
        else:
            self._build_index(name, sql)

    def drop_index(self, name: str) -> None:
        """Drop an index, if there is one.

        Raises:
            psycopg.Error
        """
        if self._session.is_in_transaction:
            self._session.execute_script(drop_index(name))
        else:
            self._drop(name)

    def change_table(self, sql: str, table: str) -> None:
        """Carry out statements that need a table's exclusive lock.

        Raises:
            StartDelayed: others held it for `RETRY_S`. psycopg.Error
        """
        if self._session.is_in_transaction:
            self._session.execute_script(sql)
        else:
            self._change_locked(sql, table)

    def _build_index(self, name: str, sql: str) -> None:
        """Build an index while others write."""
        create, *comments = sql.split(NEXT)
        if is_invalid(self._session, name):
            self._drop(name)
        started_s = self._clock.monotonic_s()
        try:
            self._session.execute_script(
                create.replace("INDEX", "INDEX CONCURRENTLY", 1)
            )
        except psycopg.Error:
            if not self._session.is_broken:
                self._drop(name)
            raise
        for comment in comments:
            self._session.execute_script(comment)
        _log.info("schema.index.built", index=name,
                  seconds=round(self._clock.monotonic_s() - started_s, 3))

    def _change_locked(self, sql: str, table: str) -> None:
        """Carry out statements as one transaction, which waits for locks in short attempts."""
        started_s = told_s = self._clock.monotonic_s()
        tries = 0
        while True:
            try:
                self._session.execute_script(
                    f"BEGIN;\nSET LOCAL lock_timeout = {LOCK_WAIT_MS};\n{sql};\nCOMMIT"
                )
            except psycopg.Error as error:
                if self._session.is_in_transaction:
                    self._session.execute_script("ROLLBACK")
                if not isinstance(error, errors.LockNotAvailable):
                    raise
            else:
                return
            tries += 1
            now_s = self._clock.monotonic_s()
            if now_s - told_s >= _LOG_EVERY_S or now_s - started_s > RETRY_S:
                told_s = now_s
                holders = self._holders(table)
                _log.warning("schema.lock.busy", table=table, tries=tries, holders=holders)
                if now_s - started_s > RETRY_S:
                    raise StartDelayed(
                        f"the table {table} is locked by others: {'; '.join(holders)}",
                        hint="end their transactions, then start again",
                    )
            longest_s = min(_PAUSE_MAX_S, 0.05 * 2**min(tries, 10))
            self._pause(self._random.uniform(0.0, longest_s))

    def _drop(self, name: str) -> None:
        self._session.execute_script(f"DROP INDEX CONCURRENTLY IF EXISTS {quote(name)}")

    def _holders(self, table: str) -> list[str]:
        return [
            f"{application or 'pid'} ({pid}, {seconds or 0} s: {query})"
            for pid, application, seconds, query in ask(
                self._session, _HOLDERS, (quote(table),)
            )
        ]


def refusal_text(error: psycopg.Error) -> str:
    """Return why a statement was refused, with the values for a broken constraint."""
    text = error_text(error)
    detail = error.diag.message_detail
    if isinstance(error, errors.UniqueViolation):
        return f"UNIQUE constraint failed: {detail or text}"
    return f"{text} ({detail})" if detail else text
