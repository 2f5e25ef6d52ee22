"""Scanners: the connections of a worker for reads that may be long.

A greenlet that scans has a connection for itself, and waits for it in the event loop, so that other
greenlets run meanwhile. A scanner is opened when none is free, and closed after
`limits.SCANNER_IDLE_S` without a scan. The one that was used last is used next.

Invariants: a scanner that is given back has no statement under way and no open transaction. A
killed greenlet cancels its statement first (`wire`). A scanner that was lost while it was idle
fails no scan: the scan begins again on a new connection. Bounds: `connections` scanners, of which a
caller has at most `limits.SCANS_PER_CALLER`, and all but one. Without a free one a scan waits in
its caller's queue (`pylon.admission`) for at most `limits.READ_TIMEOUT_S`, then fails with
QueryTimeout. Metrics: pylon_db_pool_wait_seconds, pylon_admission_queue_length{queue="scan"}.
Called by `store`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import gevent
import psycopg
from gevent.hub import Waiter

from pylon import limits
from pylon.admission import Admission
from pylon.clock import Clock
from pylon.errors import QueryTimeout, StoreUnavailable
from pylon.metrics.families import POOL_WAIT
from pylon.storage.interface import Reader
from pylon.storage.postgres.wire import BlockingSession

T = TypeVar("T")

_ROLLBACK_S: Final = 1.0
_IDLE_CHECK_S: Final = 10.0
_READ: Final = 1  # events of gevent's watchers
_WRITE: Final = 2
_POLL_WRITE: Final = 4  # select.POLLOUT


def wait_in_loop(descriptor: int, events: int, timeout_s: float) -> int:
    """A `wire.WaitForSocket` that lets other greenlets run, whether gevent has patched `select` or
    not. It may return more events than there are: libpq's calls never block."""
    hub = gevent.get_hub()
    watcher = hub.loop.io(descriptor, _READ | (_WRITE if events & _POLL_WRITE else 0))
    timer = hub.loop.timer(max(timeout_s, 0.0))
    waiter = Waiter(hub)
    watcher.start(waiter.switch, events)
    hub.loop.update_now()  # the loop's time stands still while a greenlet works
    timer.start(waiter.switch, 0)
    try:
        found: int = waiter.get()
        return found
    finally:
        watcher.stop()
        watcher.close()
        timer.stop()
        timer.close()


@dataclass(slots=True)
class _Scanner:
    """A connection, and the reader on it."""

    session: BlockingSession
    reader: Reader
    idle_since_s: float = 0.0


class Scanners:
    """The scanners of one worker."""

    def __init__(
        self, connect: Callable[[], BlockingSession],
        make_reader: Callable[[BlockingSession], Reader], clock: Clock, connections: int,
        judge: Callable[[Reader], None] = lambda _: None,
    ) -> None:
        """
        Args:
            connect: opens a connection; may switch greenlets. Raises StoreUnavailable.
            judge: called with the reader after each read that the caller has not given up.
        """
        self._connect = connect
        self._make_reader = make_reader
        self._judge = judge
        self._clock = clock
        self._free: list[_Scanner] = []
        self._admission = Admission(
            "scan", connections, max(1, min(limits.SCANS_PER_CALLER, connections - 1))
        )
        self._timer = gevent.get_hub().loop.timer(_IDLE_CHECK_S, _IDLE_CHECK_S, ref=False)
        self._is_timed = False
        self._is_closed = False

    def scan(self, read: Callable[[Reader], T], caller: str) -> T:
        """Run a read on a scanner. Switches greenlets.

        Raises:
            QueryTimeout: the read took too long, or no connection became free in time.
            StoreUnavailable: no connection can be opened, or it was lost.
            Unavailable: too many of the caller's scans wait already.
        """
        started_s = self._clock.monotonic_s()
        try:
            if not self._admission.enter(caller, limits.READ_TIMEOUT_S):
                raise QueryTimeout("no database connection became free in time")
        finally:
            POOL_WAIT.observe(self._clock.monotonic_s() - started_s)
        try:
            return self._scan(read)
        finally:
            self._admission.leave(caller)

    def close_idle(self) -> None:
        """Close the scanners that no scan uses. Never switches."""
        free, self._free = self._free, []
        for scanner in free:
            scanner.session.close()
        self._stop_timer()

    def close_expired(self) -> None:
        """Close the scanners that have been idle for `limits.SCANNER_IDLE_S`. Never switches."""
        since_s = self._clock.monotonic_s() - limits.SCANNER_IDLE_S
        while self._free and self._free[0].idle_since_s <= since_s:
            self._free.pop(0).session.close()
        if not self._free:
            self._stop_timer()

    def close(self) -> None:
        """Close all connections; that of a scan that is under way at its end."""
        self._is_closed = True
        self.close_idle()

    def _scan(self, read: Callable[[Reader], T]) -> T:
        while True:
            is_used = bool(self._free)
            scanner = self._free.pop() if self._free else self._open()
            try:
                answer = read(scanner.reader)
                self._judge(scanner.reader)
                return answer
            except StoreUnavailable:
                if not (is_used and scanner.session.is_broken):
                    raise
                self.close_idle()  # all of them were idle while the server went away
            except QueryTimeout:
                self._judge(scanner.reader)
                raise
            finally:
                self._give_back(scanner)

    def _open(self) -> _Scanner:
        session = self._connect()
        return _Scanner(session, self._make_reader(session))

    def _give_back(self, scanner: _Scanner) -> None:
        session = scanner.session
        if session.is_in_transaction and not session.is_broken:
            try:
                session.execute("ROLLBACK", timeout_s=_ROLLBACK_S)
            except psycopg.Error:
                session.close()
        if session.is_broken or self._is_closed:
            session.close()
            return
        scanner.idle_since_s = self._clock.monotonic_s()
        self._free.append(scanner)
        if not self._is_timed:
            self._is_timed = True
            self._timer.start(self.close_expired)

    def _stop_timer(self) -> None:
        self._timer.stop()
        self._is_timed = False
