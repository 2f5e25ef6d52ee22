"""The readers of a worker on PostgreSQL: the pipe for reads by key, and scanners for long reads.

`point` runs a read on the pipe (`pipe`), whose statements travel together with those of other
greenlets. A read that the pipe refuses, since it needs a transaction or was slow before, runs on a
scanner (`scanners`). `scan` begins on a second pipe (`short_reads`), unless its caller says that it
is hard to interrupt. `point_inline` blocks the worker, with a bound (`inline`).

Invariants: psycopg was imported after gevent's patch; else each of its waits would block the worker
without a word. No connection is opened before the fork of the worker: `open` makes the store.
Called by `backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import psycopg
from gevent import monkey

from pylon import limits
from pylon.clock import Clock, RandomSource, SystemRandom
from pylon.errors import StoreUnavailable
from pylon.manifest.model import Manifest
from pylon.storage.interface import SERVER, Reader
from pylon.storage.postgres.connect import Limits, error_text, open_session
from pylon.storage.postgres.inline import InlineReads, open_inline_session
from pylon.storage.postgres.pending_statements import PipeRefused
from pylon.storage.postgres.pipe import Pipe
from pylon.storage.postgres.reader import PostgresReader
from pylon.storage.postgres.scanners import Scanners, wait_in_loop
from pylon.storage.postgres.short_reads import ShortReads
from pylon.storage.postgres.statements import Session
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.sql.plan_watch import PlanWatch

T = TypeVar("T")

_PART: Final = "reader"  # in application_name
_MS: Final = 1_000


class PostgresStore:
    """A `Store` that any number of greenlets of one thread may share."""

    local_reads = False

    def __init__(
        self, url: str, manifest: Manifest, clock: Clock, *, connections: int = 3, node: str = "",
        random: RandomSource | None = None,
    ) -> None:
        """
        Args:
            connections: for scans (PYLON_DATABASE_CONNECTIONS); the two pipes and the inline reads
                have one each besides.
            node: in the names of the connections.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        check_patches()
        random = random or SystemRandom()
        self._pipe = Pipe(
            partial(_open, url, node, clock, limits.POINT_READ_TIMEOUT_S), clock, random
        )
        try:
            self._pipe.open()
        except psycopg.Error as error:
            raise _unreachable(error) from error
        self._reader = PostgresReader(self._pipe, manifest, clock)

        def make_reader(session: Session) -> Reader:
            return PostgresReader(session, manifest, clock)

        plans = PlanWatch()

        def make_judged(session: Session) -> Reader:
            return PostgresReader(session, manifest, clock, plans)

        def judge(reader: Reader) -> None:
            if isinstance(reader, PostgresReader):
                reader.judge_plans()
                plans.report()

        self._scanners = Scanners(
            partial(_open_scanner, url, node, clock), make_judged, clock, connections, judge
        )
        self._short_reads = ShortReads(
            partial(_open, url, node, clock, limits.SHORT_SCAN_S), make_reader, self._scanners,
            clock, random,
        )
        self._inline = InlineReads(
            partial(open_inline_session, url, _PART, node, clock), make_reader, clock, random
        )

    def point(self, read: Callable[[Reader], T], /) -> T:
        """See `Store`."""
        try:
            return read(self._reader)
        except PipeRefused:
            return self._scanners.scan(read, SERVER)

    def point_inline(self, read: Callable[[Reader], T], /) -> T:
        """See `Store` and `InlineReads.read`."""
        return self._inline.read(read)

    def scan(
        self, read: Callable[[Reader], T], inline: bool = True, caller: str = SERVER
    ) -> T:
        """See `Store`. `inline` False: it begins on a scanner.

        Raises: as `Scanners.scan`.
        """
        if inline:
            return self._short_reads.scan(read, caller)
        return self._scanners.scan(read, caller)

    def release_memory(self) -> None:
        """See `Store`. A scanner opens again in some milliseconds."""
        self._scanners.close_idle()
        self._short_reads.drop_idle()

    def close(self) -> None:
        """See `Store`."""
        self._pipe.close()
        self._short_reads.close()
        self._scanners.close()
        self._inline.close()


def check_patches() -> None:
    """Check that psycopg waits in gevent's loop, where gevent has patched the process.

    Raises:
        RuntimeError: psycopg was imported before the patch.
    """
    blocking = getattr(psycopg.waiting, "wait_c", None)
    if monkey.is_module_patched("select") and psycopg.waiting.wait is blocking:
        raise RuntimeError("psycopg was imported before gevent's patch, and would block the worker")


def _open(url: str, node: str, clock: Clock, statement_s: float) -> BlockingSession:
    # Beyond the server's limit the server itself does not answer.
    return open_session(
        url, _PART, node, clock, Limits(statement_ms=round(statement_s * _MS)), writes=False,
        timeout_s=statement_s + limits.POINT_STALL_S, wait=wait_in_loop,
    )


def _open_scanner(url: str, node: str, clock: Clock) -> BlockingSession:
    try:
        return _open(url, node, clock, limits.READ_TIMEOUT_S)
    except psycopg.Error as error:
        raise _unreachable(error) from error


def _unreachable(error: psycopg.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the database is not available: {error_text(error)}")
