"""Query watch: what the reads of a worker cost, by entity and kind, and which of them were slow.

`timed` measures a read of the store where it runs: in the worker's loop or in a thread, without
the wait for a connection. A read that takes longer than PYLON_SLOW_QUERY_S is counted as slow, and
logged with its shape (`pylon.query.shape_text`): the fields and the policy, and no value.

Invariants: a line has no value of a client. A read that a short time limit interrupts adds its time
and counts once, when it runs again. Bounds: a line for each shape in `limits.SLOW_QUERY_LOG_S`, of
`limits.SLOW_SHAPES` shapes; the next line says how many were left out. Log event: query.slow.
Metrics: pylon_queries_total, pylon_query_seconds_total, pylon_slow_queries_total. Called by the
resources of `pylon.api.data`; each HTTP worker has one, in `DataServices`.

PERF: 0.9 us for each read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from pylon import limits, metrics
from pylon.clock import Clock
from pylon.log import get_logger
from pylon.storage.interface import Reader

T = TypeVar("T")

Kind = Literal["list", "page", "query", "lookup", "search", "aggregate", "graph"]

NO_ENTITY: Final = "none"  # of a graph without nodes

_log = get_logger("store")


class _Counts(NamedTuple):
    add: Callable[[], None]
    add_seconds: Callable[[float], None]
    add_slow: Callable[[], None]


class _Shape(msgspec.Struct):
    """A slow shape: when the log wrote it last, and how often it was slow since."""

    logged_s: float
    left_out: int = 0


class QueryWatch:
    """The reads of one HTTP worker. Threads of its pool may call it."""

    __slots__ = ("_clock", "_counts", "_shapes", "_slow_s")

    def __init__(self, clock: Clock, slow_s: float) -> None:
        """Args: `slow_s` is PYLON_SLOW_QUERY_S."""
        self._clock = clock
        self._slow_s = slow_s
        self._counts: dict[tuple[str, Kind], _Counts] = {}
        self._shapes: dict[tuple[str, Kind, str], _Shape] = {}

    def timed(
        self, kind: Kind, entity: str, shape: Callable[[], str], read: Callable[[Reader], T]
    ) -> Callable[[Reader], T]:
        """Return `read` as a function that measures itself.

        Args:
            entity: an entity of the manifest, whose rows the read returns.
            shape: returns the text of the query's shape; called for a slow read only.
        """
        clock = self._clock
        counts = self._counts.get((entity, kind)) or self._find_counts(entity, kind)

        def run(reader: Reader) -> T:
            started_s = clock.monotonic_s()
            try:
                found = read(reader)
                counts.add()
                return found
            finally:
                elapsed_s = clock.monotonic_s() - started_s
                counts.add_seconds(elapsed_s)
                if elapsed_s > self._slow_s:
                    counts.add_slow()
                    self._log_slow(kind, entity, shape(), elapsed_s)

        return run

    def _find_counts(self, entity: str, kind: Kind) -> _Counts:
        labels = {"entity": entity, "kind": kind}
        counts = self._counts[entity, kind] = _Counts(
            metrics.QUERIES.labels(**labels).inc, metrics.QUERY_SECONDS.labels(**labels).inc,
            metrics.SLOW_QUERIES.labels(**labels).inc,
        )
        return counts

    def _log_slow(self, kind: Kind, entity: str, shape: str, elapsed_s: float) -> None:
        now_s = self._clock.monotonic_s()
        key = (entity, kind, shape)
        known = self._shapes.get(key)
        left_out = 0
        if known is None:
            if len(self._shapes) >= limits.SLOW_SHAPES:
                self._shapes.clear()
            self._shapes[key] = _Shape(now_s)
        elif now_s - known.logged_s < limits.SLOW_QUERY_LOG_S:
            known.left_out += 1
            return
        else:
            left_out, known.left_out, known.logged_s = known.left_out, 0, now_s
        _log.warning(
            "query.slow", entity=entity, kind=kind, shape=shape,
            duration_s=round(elapsed_s, 4), left_out=left_out,
        )
