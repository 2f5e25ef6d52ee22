"""Inline reads: reads for which a whole worker waits, on a connection of their own.

A callback of the event loop cannot switch greenlets. A verdict of a live query on a related row
that no set has (`workers.hub.memberships`) is such a case. The wait is by the kernel's poll, not by
gevent's.

Invariants: nothing switches greenlets. All inline reads of one second, with the connecting, block
the worker for `limits.INLINE_READ_TIMEOUT_S` at the most (libpq looks up the names of hosts without
a limit). Beyond it, and after the loss of the connection, each read fails at once with
StoreUnavailable, until a greenlet has connected anew, after pauses with full jitter. The first read
connects. Called by `store`.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, Final, TypeVar

import gevent
import psycopg
from gevent import monkey
from psycopg import pq

from pylon import limits, log
from pylon.clock import Clock, RandomSource
from pylon.errors import PylonError, QueryTimeout, StoreUnavailable
from pylon.storage.interface import Reader
from pylon.storage.postgres.connect import (
    Limits,
    connection_text,
    error_text,
    retry_pause_s,
    set_limits,
)
from pylon.storage.postgres.scanners import wait_in_loop
from pylon.storage.postgres.wire import BlockingSession, WaitForSocket

T = TypeVar("T")

_PERIOD_S: Final = 1.0
_MS: Final = 1_000

_log = log.get_logger("database")


def wait_in_kernel(descriptor: int, events: int, timeout_s: float) -> int:
    """A `wire.WaitForSocket` that blocks the process, also where gevent has patched `select`."""
    poll = monkey.get_original("select", "poll")()
    poll.register(descriptor, events)
    found = poll.poll(timeout_s * _MS)
    return int(found[0][1]) if found else 0


def open_inline_session(
    url: str, part: str, node: str, clock: Clock, wait: WaitForSocket, timeout_s: float
) -> BlockingSession:
    """Open a connection for inline reads. The session waits in the kernel, and cancels nothing.

    Args:
        wait: how to wait for the connection, for `timeout_s` at the most.

    Raises:
        psycopg.Error
    """
    deadline_s = clock.monotonic_s() + timeout_s
    pgconn = pq.PGconn.connect_start(connection_text(url, part, node, writes=False).encode())
    while (status := pgconn.connect_poll()) != pq.PollingStatus.OK:
        if status == pq.PollingStatus.FAILED:
            raise psycopg.OperationalError(pgconn.get_error_message())
        events = select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT
        left_s = deadline_s - clock.monotonic_s()
        if left_s <= 0 or not wait(pgconn.socket, events, left_s):
            pgconn.finish()
            raise psycopg.OperationalError("the server did not take the connection in time")
    conn: psycopg.Connection[Any] = psycopg.Connection(pgconn)
    conn.autocommit = True
    session = BlockingSession(
        conn, clock, timeout_s=max(deadline_s - clock.monotonic_s(), 0.0), cancel_wait_s=0.0,
        wait=wait_in_kernel,
    )
    settings = Limits(statement_ms=round(limits.INLINE_READ_TIMEOUT_S * _MS))
    set_limits(session, settings, writes=False)
    return session


class InlineReads:
    """The inline reads of one worker."""

    def __init__(
        self, connect: Callable[[WaitForSocket, float], BlockingSession],
        make_reader: Callable[[BlockingSession], Reader], clock: Clock, random: RandomSource,
    ) -> None:
        """
        Args:
            connect: opens a connection by waiting in the given way, for so many seconds at the
                most; the session waits in the kernel in any case.
        """
        self._connect = connect
        self._make_reader = make_reader
        self._clock = clock
        self._random = random
        self._session: BlockingSession | None = None
        self._reader: Reader | None = None
        self._reconnector: gevent.Greenlet | None = None
        self._period_s = 0.0  # when the present second began
        self._spent_s = 0.0  # in it
        self._is_closed = False

    def read(self, read: Callable[[Reader], T]) -> T:
        """Run a read of a few rows. Blocks the process.

        Raises:
            StoreUnavailable: the database did not answer in time, now or a moment ago.
        """
        started_s = self._clock.monotonic_s()
        if started_s - self._period_s >= _PERIOD_S:
            self._period_s, self._spent_s = started_s, 0.0
        left_s = limits.INLINE_READ_TIMEOUT_S - self._spent_s
        if self._is_closed or self._reconnector is not None or left_s <= 0:
            raise StoreUnavailable("the database did not answer in time", hint="try again")
        try:
            if self._reader is None:
                self._take(self._connect(wait_in_kernel, left_s))
            assert self._reader is not None and self._session is not None
            self._session.timeout_s = left_s
            return read(self._reader)
        except psycopg.Error as error:
            raise self._fail(error_text(error)) from error
        except (QueryTimeout, StoreUnavailable) as error:
            raise self._fail(error.message) from error
        finally:
            self._spent_s += self._clock.monotonic_s() - started_s

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._is_closed = True
        if self._reconnector is not None:
            self._reconnector.kill(block=False)
        self._drop()

    def _take(self, session: BlockingSession) -> None:
        self._session = session
        self._reader = self._make_reader(session)

    def _drop(self) -> None:
        session, self._session, self._reader = self._session, None, None
        if session is not None:
            session.close()

    def _fail(self, reason: str) -> PylonError:
        """Close the connection, have another one made, and return the error."""
        self._drop()
        if self._reconnector is None and not self._is_closed:
            _log.warning("database.inline_reads_ended", error=reason)
            self._reconnector = gevent.spawn(self._reconnect)
        return StoreUnavailable(f"the database did not answer in time: {reason}")

    def _reconnect(self) -> None:
        failures = 0
        while True:  # `close` kills this greenlet
            gevent.sleep(retry_pause_s(failures, self._random.uniform))
            try:
                session = self._connect(wait_in_loop, limits.POINT_STALL_S)
            except psycopg.Error:
                failures += 1
                continue
            self._take(session)
            self._reconnector = None
            return
