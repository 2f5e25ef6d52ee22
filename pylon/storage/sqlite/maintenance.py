"""Maintenance of a SQLite database: the steps that change it, between the writer's batches.

Each step is a transaction of its own on the writer's connection. It is short, so that no batch
waits for long: a caller repeats it until it has nothing to do.

Called by the flusher, the drain and the control commands, from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import apsw

from pylon import limits
from pylon.clock import Clock
from pylon.manifest.model import Manifest
from pylon.storage.core.engine import BatchEngine
from pylon.storage.interface import IndexSpec, LogRetention
from pylon.storage.sqlite.schema.indexes import put_indexes
from pylon.storage.sqlite.schema.search import renew
from pylon.storage.sqlite.turn_lock import TurnLock

T = TypeVar("T")

_INDEXES_S: Final = 3600.0  # a large table takes long; batches wait meanwhile, and are told so
_END_RUN_S: Final = 10.0


class SqliteMaintenance:
    """See the module, and `pylon.storage.interface.Maintenance`."""

    def __init__(
        self, conn: apsw.Connection, batches: BatchEngine, turns: TurnLock, manifest: Manifest,
        clock: Clock,
    ) -> None:
        self._conn = conn
        self._batches = batches
        self._turns = turns
        self._manifest = manifest
        self._clock = clock

    def prune_log(self, step: LogRetention) -> int:
        """See `Maintenance`."""
        return self._run(lambda: self._batches.prune_log(step))

    def prune_sessions(self, limit: int, unused_before_s: int) -> int:
        """See `Maintenance`."""
        return self._run(lambda: self._batches.prune_sessions(limit, unused_before_s))

    def mark_sessions_used(self, session_ids: Sequence[str]) -> int:
        """See `Maintenance`."""
        return self._run(lambda: self._batches.mark_sessions_used(session_ids))

    def put_indexes(self, indexes: Sequence[IndexSpec]) -> int:
        """See `Maintenance`."""
        return self._run(
            lambda: self._batches.run_step(
                lambda: put_indexes(self._conn, self._manifest, indexes, self._clock)
            ), _INDEXES_S,
        )

    def renew_search(self, entity: str, after_id: str, rows: int) -> tuple[int, str]:
        """See `Maintenance`."""
        return self._run(
            lambda: self._batches.run_step(
                lambda: renew(self._conn, self._manifest, entity, after_id, rows)
            )
        )

    def end_run(self) -> None:
        """See `Maintenance`."""
        self._run(self._batches.end_run, _END_RUN_S)

    def _run(self, step: Callable[[], T], timeout_s: float = limits.WRITE_TIMEOUT_S) -> T:
        with self._turns.behind(timeout_s):
            return step()
