"""The link of a pipe: its connection, the watchers of its socket, and how it comes back when lost.

A greenlet connects anew, after pauses of at most 0.1 to 5 s with full jitter. Invariants: at most
one connection is open, and at most one greenlet makes one. Metric:
pylon_database_connections_lost_total. Called by `pipe`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gevent
import psycopg
from gevent.hub import get_hub
from psycopg.pq.abc import PGconn

from pylon import limits, log
from pylon.clock import RandomSource
from pylon.metrics.families import DATABASE_LOST
from pylon.storage.postgres.prepared import PreparedStatements
from pylon.storage.postgres.wire import BlockingSession

_READ: Final = 1  # events of gevent's watchers
_WRITE: Final = 2
_PAUSE_FIRST_S: Final = 0.1
_PAUSE_MAX_S: Final = 5.0
_LONGEST_BACKOFF: Final = 6  # 0.1 s * 2**6 is above the longest pause

_log = log.get_logger("database")


class PipeLink:
    """One connection in pipeline mode. `pgconn` and `prepared` belong to the pipe."""

    __slots__ = (
        "_connect", "_has_lost", "_is_closed", "_on_readable", "_on_writable", "_random",
        "_reconnector", "_session", "_watches", "pgconn", "prepared",
    )

    def __init__(
        self, connect: Callable[[], BlockingSession], random: RandomSource,
        on_readable: Callable[[], object], on_writable: Callable[[], object],
    ) -> None:
        """
        Args:
            connect: opens the connection, with the limits of its session; may switch greenlets.
            on_readable: called in the hub when the socket has bytes.
            on_writable: called in the hub when the socket takes bytes, while `watch_writable`.
        """
        self._connect = connect
        self._random = random
        self._on_readable = on_readable
        self._on_writable = on_writable
        self._session: BlockingSession | None = None
        self.pgconn: PGconn | None = None  # None: there is no connection, as far as is known
        self.prepared = PreparedStatements()
        self._watches: tuple[Any, Any] | None = None  # of the socket: readable, writable
        self._reconnector: gevent.Greenlet[..., Any] | None = None
        self._has_lost = False  # a connection, since the last one was made by `_reconnect`
        self._is_closed = False

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
        loop = get_hub().loop
        readable, writable = loop.io(pgconn.socket, _READ), loop.io(pgconn.socket, _WRITE)
        self._session, self.pgconn = session, pgconn
        self.prepared = session.prepared
        self._watches = readable, writable
        readable.start(self._on_readable)

    def open_later(self) -> None:
        """Have a greenlet connect, if there is no connection and none is being made."""
        if self.pgconn is None and self._reconnector is None and not self._is_closed:
            self._reconnector = gevent.spawn(self._reconnect)

    def watch_writable(self, is_wanted: bool) -> None:
        """Begin or end to call `on_writable`."""
        assert self._watches is not None
        writable = self._watches[1]
        if is_wanted:
            writable.start(self._on_writable)
        elif writable.active:
            writable.stop()

    def lose(self, reason: str, reads: int) -> None:
        """Drop the connection and report it; `open_later` connects anew.

        Args:
            reads: the number of those that waited.
        """
        _log.warning("database.connection_lost", error=reason, reads=reads)
        DATABASE_LOST.inc()
        self._has_lost = True
        self.drop()

    def drop(self) -> None:
        """Close the connection. Never switches."""
        session, self._session, self.pgconn = self._session, None, None
        watches, self._watches = self._watches, None
        if watches is not None:
            for watch in watches:
                watch.stop()
                watch.close()
        if session is not None:
            session.close()

    def close(self) -> None:
        """Close the connection for good. Idempotent."""
        self._is_closed = True
        if self._reconnector is not None:
            self._reconnector.kill(block=False)
        self.drop()

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


class LinkWatch:
    """Reports that nothing came for `limits.POINT_STALL_S` while something is awaited."""

    __slots__ = ("_has_progress", "_is_awaited", "_is_running", "_on_stall", "_timer")

    def __init__(self, is_awaited: Callable[[], bool], on_stall: Callable[[str], object]) -> None:
        """Args: `on_stall` gets the reason."""
        self._is_awaited = is_awaited
        self._on_stall = on_stall
        self._is_running = False
        self._has_progress = False  # since the last call of the timer
        self._timer = get_hub().loop.timer(limits.POINT_STALL_S, limits.POINT_STALL_S, ref=False)

    def begin(self) -> None:
        """Begin to look, until nothing is awaited."""
        if not self._is_running:
            self._is_running = self._has_progress = True
            self._timer.start(self._look)

    def note_progress(self) -> None:
        """Note that something came."""
        self._has_progress = True

    def stop(self) -> None:
        """Look no more."""
        self._timer.stop()
        self._is_running = False

    def _look(self) -> None:
        if not self._is_awaited():
            self.stop()
        elif not self._has_progress:
            self._on_stall(f"the server has answered nothing for {limits.POINT_STALL_S} s")
        self._has_progress = False
