"""Reader pool: runs quick reads inline, and long scans in gevent's thread pool.

gevent has one thread for all requests of a worker, so a long scan there would block them all. Point
reads (a row by its id, a session, the head) run inline on a connection of their own. They take
microseconds, less than a switch of threads. A scan begins inline too, with `INLINE_S` of CPU time
for all its statements. A scan that needs more is interrupted, and a scanning connection runs it
again in the thread pool. The next scans with that statement skip the inline try
(`slow_statements`). The limit is CPU time, because on a busy machine every statement takes long.
Re-running every statement in threads would overload it (GIL contention). Patterns that may meet a
long text, and full-text matches, begin in the pool at once. A timer interrupts scans that exceed
their time limit there.

Bounds: `limits.READ_CONNECTIONS` connections, of which a caller has at most
`limits.SCANS_PER_CALLER`. Without a free connection a scan waits in its caller's queue
(`pylon.admission`) for at most `limits.READ_TIMEOUT_S`, then fails with QueryTimeout. Metrics:
pylon_db_pool_wait_seconds, pylon_reads_moved_to_threads_total, those of `plan_watch`,
pylon_admission_queue_length{queue="scan"}. Each worker has one pool as its
`pylon.storage.interface.Store`; `backend` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import gevent

from pylon import limits
from pylon.admission import Admission
from pylon.clock import Clock, CpuTimeClock, SystemClock
from pylon.errors import QueryTimeout, StoreUnavailable
from pylon.manifest.model import Manifest
from pylon.metrics.families import POOL_WAIT, READS_MOVED
from pylon.storage.interface import SERVER, Reader
from pylon.storage.sql.plan_watch import PlanWatch
from pylon.storage.sqlite.reader import SqliteReader

T = TypeVar("T")

INLINE_S: Final = 0.001
_INLINE_CHECK_STEPS: Final = 2_000  # 240 rows, or 500 patterns over short ones: 18 ms at worst
_LATE_CHECK_S: Final = 0.25


class ReaderPool:
    """A `Store` that any number of greenlets of one thread may share."""

    local_reads = True

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        clock: Clock | None = None,
        connections: int = limits.READ_CONNECTIONS,
    ) -> None:
        """
        Args:
            connections: one runs inline reads, the others scan; at least 3, so that one caller
                cannot occupy all scanning connections.

        Raises:
            StoreUnavailable: the database cannot be opened.
        """
        self._clock = clock or SystemClock()
        self._inline = SqliteReader(path, manifest, CpuTimeClock(), _INLINE_CHECK_STEPS)
        # PERF: opened when a scan needs them: 0.35 MiB each, which an idle worker keeps.
        self._plans = PlanWatch()
        self._open_scanner = partial(
            SqliteReader, path, manifest, self._clock, plans=self._plans
        )
        self._scanners: list[SqliteReader] = []
        self._free: list[SqliteReader] = []
        scanners = connections - 1
        self._admission = Admission(
            "scan", scanners, max(1, min(limits.SCANS_PER_CALLER, scanners - 1))
        )

    def point(self, read: Callable[[Reader], T], /) -> T:
        """See `Store`. A local read takes less time than a switch of threads."""
        return read(self._inline)

    # One function for both: a point read of SQLite never switches.
    point_inline = point

    def scan(
        self, read: Callable[[Reader], T], inline: bool = True, caller: str = SERVER
    ) -> T:
        """Run a read that may be long; other greenlets continue meanwhile.

        Args:
            read: must have no effect except its result: it may be interrupted and repeated.
            inline: try it inline first. Not for a full-text match: FTS5 may work for long
                between two calls of the progress handler.
            caller: the caller whose share of the connections the scan uses.

        Raises:
            QueryTimeout: the read took too long, or no connection became free in time.
            Unavailable: too many of the caller's scans wait already.
        """
        if inline:
            try:
                return self._inline.within(INLINE_S, read)
            except QueryTimeout:
                READS_MOVED.inc()  # the read needs more than `INLINE_S`
        return self._scan(read, caller)

    def release_memory(self) -> None:
        """See `Store`. A connection that a scan uses keeps its caches."""
        for reader in (self._inline, *self._free):
            reader.release_memory()

    def close(self) -> None:
        """Close all connections. No scan may be under way."""
        self._inline.close()
        for reader in self._scanners:
            reader.close()

    def _free_scanner(self) -> SqliteReader:
        """Return a connection that no scan uses. The caller has been admitted.

        Raises:
            StoreUnavailable: another one cannot be opened.
        """
        if not self._free:
            self._scanners.append(self._open_scanner())
            return self._scanners[-1]
        return self._free.pop()

    def _scan(self, read: Callable[[Reader], T], caller: str) -> T:
        started_s = self._clock.monotonic_s()
        try:
            if not self._admission.enter(caller, limits.READ_TIMEOUT_S):
                raise QueryTimeout("no database connection became free in time")
        finally:
            POOL_WAIT.observe(self._clock.monotonic_s() - started_s)
        try:
            reader = self._free_scanner()
        except StoreUnavailable:
            self._admission.leave(caller)
            raise
        hub = gevent.get_hub()
        watch = hub.loop.timer(_LATE_CHECK_S, _LATE_CHECK_S)
        watch.start(reader.interrupt_late)

        def free_scanner(_: object) -> None:
            watch.stop()
            watch.close()
            self._free.append(reader)
            self._admission.leave(caller)

        # The end of the thread's job frees the connection, not the greenlet: a greenlet may be
        # killed while it waits, and the thread still uses the connection then.
        job = hub.threadpool.spawn(_read_and_judge, read, reader)
        job.rawlink(free_scanner)
        result: T = job.get()
        self._plans.report()
        return result


def _read_and_judge(read: Callable[[Reader], T], reader: SqliteReader) -> T:
    try:
        return read(reader)
    finally:
        reader.judge_plans()
