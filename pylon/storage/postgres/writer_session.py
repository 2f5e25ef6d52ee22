"""Writer session: the connection of a node's writer, and its return after a loss.

A connection is ready when the server takes writes, its history was compared with the stored one
(`epochs`), and what the writer had sent over the connection before it has ended: the server may not
have noticed yet that that one is lost, and would carry out a batch after somebody has looked for
it.

Invariants: at most one connection. After a loss `get` tries at once, then with full jitter between
`RETRY_FIRST_S` and `RETRY_MAX_S`, and fails without a try in between. Used by one thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import psycopg
from psycopg import errors

from pylon import metrics
from pylon.clock import Clock
from pylon.errors import StartRefused
from pylon.log import get_logger
from pylon.storage.postgres.channels import CHANGES, channel_name
from pylon.storage.postgres.connect import (
    application_name,
    check_server,
    error_text,
    open_writer,
    retry_pause_s,
)
from pylon.storage.postgres.epochs import keep_history, read_history
from pylon.storage.postgres.lock_holders import LockHolders
from pylon.storage.postgres.locks import WRITER, lock_key
from pylon.storage.postgres.parameters import EncodedParameters
from pylon.storage.postgres.statements import Statement
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.records import BatchRefusal

LOCK: Final = "SELECT pg_advisory_xact_lock($1)"
LOCK_WAIT_S: Final = 20.0
UNREACHABLE: Final = "database_unreachable"
_END_WAIT_MS: Final = 5_000
# The connection that was lost, if the server still has it.
_END: Final = (
    f"SELECT pg_terminate_backend(pid, {_END_WAIT_MS}) FROM pg_stat_activity "
    "WHERE pid = $1 AND application_name = $2 AND pid <> pg_backend_pid()"
)

_log: Final = get_logger("writer")


class WriterSession:
    """See the module. `acknowledged`: the highest seq that this writer has given to anybody."""

    def __init__(
        self, url: str, node: str, clock: Clock,
        random_s: Callable[[float, float], float] | None = None, *, is_dev: bool = False,
    ) -> None:
        """Args: `random_s`: a random number between two; None: of the system."""
        self._url = url
        self._node = node
        self._clock = clock
        self._random_s = random_s or random.uniform
        self._is_dev = is_dev
        self._session: BlockingSession | None = None
        self._pid = 0  # of the server's process; libpq knows that of a pooler, if one is between
        self._lost_pid = 0  # the same of the lost connection
        self._failures = 0
        self._retry_at_s = float("-inf")
        self._problem = ""
        self.key = 0  # of the writers' lock
        self.lock: Statement = (LOCK, (0,))
        self.channel = ""
        self.acknowledged = 0
        self.holders = LockHolders(0)

    def get(self) -> BlockingSession:
        """Return the connection; open it if it is lost and it is time to.

        Raises:
            psycopg.OperationalError: there is none.
        """
        session = self._session
        if session is not None and not session.is_broken:
            return session
        if session is not None:
            self.lose(psycopg.OperationalError("the connection was closed"))
        if self._clock.monotonic_s() < self._retry_at_s:
            raise psycopg.OperationalError(self._problem)
        return self.connect()

    def connect(self) -> BlockingSession:
        """Open the connection now.

        Raises:
            psycopg.OperationalError: it cannot be opened.
        """
        try:
            session = open_writer(self._url, self._node, self._clock)
            try:
                self._make_ready(session)
            except BaseException:
                session.close()
                raise
        except (psycopg.Error, StartRefused) as error:
            self._problem = error_text(error)
            pause_s = retry_pause_s(self._failures, self._random_s)
            self._retry_at_s = self._clock.monotonic_s() + pause_s
            self._failures += 1
            raise psycopg.OperationalError(self._problem) from error
        if self._failures or self._lost_pid:
            _log.info("database.back", attempts=self._failures + 1)
        self._session = session
        self._lost_pid = self._failures = 0
        self._problem = ""
        return session

    def lose(self, error: BaseException) -> None:
        """Close a connection that is lost."""
        if self._session is None:
            return
        metrics.WRITER_CONNECTIONS_LOST.inc()
        self._problem = error_text(error)
        _log.error("database.lost", message=self._problem)
        self._lost_pid = self._pid
        self._session.close()
        self._session = None
        self._retry_at_s = float("-inf")

    def find_problem(self) -> BatchRefusal | None:
        """Return why no batch can be committed, for readiness; from any thread."""
        if self._session is not None or not self._problem:
            return None
        return BatchRefusal(UNREACHABLE, self._problem)

    def take_lock(self, session: BlockingSession) -> None:
        """Begin a transaction with the writers' lock.

        Raises:
            psycopg.Error: LockNotAvailable after `LOCK_WAIT_S`.
        """
        until_s = self._clock.monotonic_s() + LOCK_WAIT_S
        while True:
            outcome = session.try_pipeline([("BEGIN", ()), self.lock])
            if outcome.error is None:
                return
            self.wait_for_lock(session, outcome.error, until_s)

    def wait_for_lock(
        self, session: BlockingSession, error: psycopg.Error, until_s: float
    ) -> None:
        """Roll back after an error, and look at who has the lock if it is the lock's.

        Raises:
            psycopg.Error: the error, unless waiting again makes sense.
        """
        if not session.is_broken and session.is_in_transaction:
            session.execute("ROLLBACK")
        if (
            not isinstance(error, errors.LockNotAvailable)
            or self._clock.monotonic_s() >= until_s
        ):
            raise error
        self.holders.look(session)

    def roll_back(self, session: BlockingSession) -> None:
        """Roll back what a connection has open. One that fails is lost."""
        if not session.is_broken and session.is_in_transaction:
            try:
                session.execute("ROLLBACK")
            except psycopg.Error as error:
                self.lose(error)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _make_ready(self, session: BlockingSession) -> None:
        check_server(session, self._url, is_dev=self._is_dev)
        if self._lost_pid:
            session.execute(_END, (self._lost_pid, application_name("writer", self._node)))
        self._pid = int(session.execute("SELECT pg_backend_pid()").get_value(0, 0) or 0)
        self.key = lock_key(session, WRITER)
        self.lock = (LOCK, EncodedParameters([b"%d" % self.key]))
        self.channel = channel_name(session, CHANGES)
        self.holders = LockHolders(self.key)
        history = read_history(session)
        self.take_lock(session)
        self.acknowledged = keep_history(session, history, self.acknowledged, self._clock)
        session.execute("COMMIT")


