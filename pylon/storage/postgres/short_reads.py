"""Short reads: scans that are mostly short, on a pipe of their own before a scanner runs them.

A scanner serves one read at a time; a pipe carries those of many greenlets. PERF: a look-up by an
index costs 11 us of CPU on a pipe and 100 on a scanner, since the greenlets share the system calls.
Nobody knows beforehand which reads are long. So each begins here, with `limits.SHORT_SCAN_S` in the
server. One that needs more is ended, begins again on a scanner, and its text goes to scanners at
once for the next 10 s (`pipe`). So does every read of its caller, so that nobody can delay others
again and again by long reads of ever new forms.

Invariants: an answer is that of one of the two, whole. Reads by key have another pipe, so none
waits for a scan. Bounds: those of `pipe`; `_CALLERS_KEPT` callers. Metric:
pylon_reads_moved_to_threads_total. Called by `store`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from pylon.clock import Clock, RandomSource
from pylon.errors import StoreUnavailable
from pylon.metrics.families import READS_MOVED
from pylon.storage.interface import Reader
from pylon.storage.postgres.pending_statements import PipeRefused
from pylon.storage.postgres.pipe import Pipe
from pylon.storage.postgres.scanners import Scanners
from pylon.storage.postgres.statements import Session
from pylon.storage.postgres.wire import BlockingSession

T = TypeVar("T")

_QUEUE: Final = "short_scan"
_CALLER_S: Final = 10.0  # so long all reads of a caller with a long one go to scanners
_CALLERS_KEPT: Final = 1_024


class ShortReads:
    """The scans of one worker: on a pipe, or on its scanners."""

    def __init__(
        self, connect: Callable[[], BlockingSession], make_reader: Callable[[Session], Reader],
        scanners: Scanners, clock: Clock, random: RandomSource,
    ) -> None:
        """
        Args:
            connect: opens a connection with the limit of short scans; may switch greenlets.
        """
        self._scanners = scanners
        self._clock = clock
        self._pipe = Pipe(connect, clock, random, _QUEUE)
        self._reader = make_reader(self._pipe)
        self._until_s_by_caller: dict[str, float] = {}

    def scan(self, read: Callable[[Reader], T], caller: str) -> T:
        """Run a read that is mostly short.

        Raises: as `Scanners.scan`.
        """
        if self._begins_here(caller):
            try:
                return read(self._reader)
            except PipeRefused as refused:
                if refused.was_slow:
                    READS_MOVED.inc()
                    self._note_slow(caller)
            except StoreUnavailable:
                if self._pipe.is_connected:
                    raise
        return self._scanners.scan(read, caller)

    def drop_idle(self) -> None:
        """Close the connection until the next scan, if nothing waits. Never switches."""
        self._pipe.drop_idle()

    def close(self) -> None:
        """Close the connection."""
        self._pipe.close()

    def _begins_here(self, caller: str) -> bool:
        if not self._pipe.is_connected:
            self._pipe.open_later()  # a scanner runs this one
            return False
        if self._until_s_by_caller and caller in self._until_s_by_caller:
            if self._until_s_by_caller[caller] > self._clock.monotonic_s():
                return False
            del self._until_s_by_caller[caller]
        return True

    def _note_slow(self, caller: str) -> None:
        known = self._until_s_by_caller
        if caller not in known and len(known) >= _CALLERS_KEPT:
            del known[next(iter(known))]
        known[caller] = self._clock.monotonic_s() + _CALLER_S
