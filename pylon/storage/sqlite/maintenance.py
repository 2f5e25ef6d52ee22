"""SQLite maintenance: runs pruning and index steps, checkpoints, and measurements of a database.

Each step is a transaction of its own on the writer's connection. Steps are short, so that no batch
waits for long; a caller repeats a step until it has nothing to do. Checkpoints and measurements use
a connection of their own, which is opened with the first of them.

Called by the flusher, the drain and the control commands. Any thread may call steps and sizes; one
thread at a time may call the other methods.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import apsw

from pylon import limits
from pylon.clock import NS_PER_S, Clock
from pylon.errors import StoreUnavailable
from pylon.manifest.model import Manifest
from pylon.storage.core.engine import BatchEngine
from pylon.storage.core.retention import Retention
from pylon.storage.core.sessions import prune_guests, prune_sessions
from pylon.storage.core.transaction import MaintenanceRows
from pylon.storage.records import (
    BatchRefusal,
    ConversionStep,
    GuestStep,
    IndexSpec,
    LogFacts,
    LogRetention,
    SessionNote,
    StoreSizes,
)
from pylon.storage.sqlite import log, records, sessions
from pylon.storage.sqlite.checkpoints import Checkpoints, open_upkeep
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.file_watch import FileWatch
from pylon.storage.sqlite.instants import convert_step
from pylon.storage.sqlite.schema.indexes import put_indexes
from pylon.storage.sqlite.schema.search import renew
from pylon.storage.sqlite.turn_lock import TurnLock
from pylon.storage.sqlite.wal_readers import find_readers

# Loaded with a continuous backup only.
if TYPE_CHECKING:
    from pylon.storage.sqlite.shipping.capture import SqliteCapture

T = TypeVar("T")

_INDEXES_S: Final = 3600.0  # time limit: a large table takes long, and batches wait meanwhile
_END_RUN_S: Final = 10.0


class SqliteMaintenance:
    """See the module, and `pylon.storage.interface.Maintenance`."""

    def __init__(
        self, conn: apsw.Connection, batches: BatchEngine, rows: MaintenanceRows,
        retention: Retention, turns: TurnLock, manifest: Manifest, clock: Clock,
        capture: SqliteCapture | None = None,
    ) -> None:
        self._conn = conn
        self._batches = batches
        self._rows = rows
        self._retention = retention
        self._turns = turns
        self._manifest = manifest
        self._clock = clock
        self._capture = capture
        self._path = Path(conn.filename)
        self._file = FileWatch(conn.filename, clock)
        self._upkeep: apsw.Connection | None = None
        self._checkpoints: Checkpoints | None = None
        self._log_size = retention.log_size

    # --- Steps between batches ---------------------------------------------------------------

    def prune_log(self, step: LogRetention) -> int:
        """See `Maintenance`."""
        return self._run(lambda: self._batches.run_step(lambda: self._retention.prune(step)))

    def prune_sessions(self, limit: int, unused_before_s: int) -> int:
        """See `Maintenance`."""
        now_s = self._clock.wall_ns() // NS_PER_S
        return self._run(lambda: self._batches.run_step(
            lambda: prune_sessions(self._rows, limit, now_s, unused_before_s)
        ))

    def prune_guests(self, after_id: str, limit: int, seen_before_s: int) -> GuestStep:
        """See `Maintenance`."""
        return self._run(lambda: self._batches.run_step(
            lambda: prune_guests(self._rows, after_id, limit, seen_before_s)
        ))

    def prune_records(self, limit: int, now_s: int, kept_s: Mapping[str, int]) -> dict[str, int]:
        """See `Maintenance`."""
        return self._run(
            lambda: self._batches.run_step(
                lambda: records.prune(self._conn, limit, now_s, kept_s)
            )
        )

    def note_sessions_used(self, session_ids: Sequence[str], note: SessionNote) -> int:
        """See `Maintenance`."""
        return self._run(lambda: self._batches.run_step(
            lambda: self._rows.note_sessions_used(session_ids, note)
        ))

    def note_keys_used(self, key_ids: Sequence[str], now_s: int) -> int:
        """See `Maintenance`."""
        return self._run(
            lambda: self._batches.run_step(
                lambda: records.note_keys_used(self._conn, key_ids, now_s)
            )
        )

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

    def convert_datetimes(self) -> ConversionStep | None:
        """See `Maintenance`."""
        return self._run(
            lambda: self._batches.run_step(lambda: convert_step(self._conn, self._manifest))
        )

    def end_run(self) -> None:
        """See `Maintenance`."""
        self._run(self._batches.end_run, _END_RUN_S)

    def _run(self, step: Callable[[], T], timeout_s: float = limits.WRITE_TIMEOUT_S) -> T:
        with self._turns.behind(timeout_s):
            try:
                return step()
            finally:
                if self._capture is not None:
                    self._capture.commits.settle(self._batches.head)

    # --- Files and measures ------------------------------------------------------------------

    @property
    def checkpoints(self) -> Checkpoints:
        """Return the checkpoints of the WAL.

        Raises:
            StoreUnavailable: the database cannot be opened.
        """
        if self._checkpoints is None:
            self._checkpoints = Checkpoints(
                self._connect(), self._turns, self._clock, self._capture
            )
        return self._checkpoints

    def checkpoint(self) -> None:
        """See `Maintenance`."""
        self.checkpoints.run_round()

    def end_checkpoints(self) -> None:
        """See `Maintenance`."""
        if self._checkpoints is not None:
            self._checkpoints.end()

    def flush_all(self) -> bool:
        """See `Maintenance`."""
        return self.checkpoints.flush_all()

    def list_blockers(self) -> list[str]:
        """See `Maintenance`."""
        return [str(reader) for reader in find_readers(self._path)]

    def find_problem(self) -> BatchRefusal | None:
        """See `Maintenance`."""
        problem = self._file.find_problem() or self._file.find_unwritable()
        return None if problem is None else BatchRefusal(*problem)

    def measure_log(self) -> LogFacts:
        """See `Maintenance`."""
        try:
            conn = self._connect()
            oldest, head = log.oldest_logged_seq(conn), log.head_seq(conn)
            size_bytes = self._log_size.count(
                oldest, head, lambda seq, limit: log.sizes(conn, seq, limit)
            )
            return LogFacts(head, oldest, size_bytes)
        except apsw.Error as ex:
            raise _unreadable(ex) from ex

    def log_seq_above(self, size_bytes: int) -> int:
        """See `Maintenance`."""
        return self._log_size.seq_above(size_bytes)

    def count_sessions(self) -> dict[str, int]:
        """See `Maintenance`."""
        try:
            return sessions.count_by_kind(self._connect())
        except apsw.Error as ex:
            raise _unreadable(ex) from ex

    def sizes(self) -> StoreSizes:
        """See `Maintenance`."""
        wal_bytes = 0 if self._checkpoints is None else self._checkpoints.wal_bytes
        return StoreSizes(_size_bytes(self._path), wal_bytes, _free_bytes(self._path.parent))

    def close(self) -> None:
        """Close the connection of checkpoints and measures. Idempotent."""
        if self._capture is not None:
            self._capture.disconnect()
        if self._upkeep is not None:
            self._upkeep.close()

    def _connect(self) -> apsw.Connection:
        if self._upkeep is None:
            try:
                self._upkeep = open_upkeep(self._path)
            except apsw.Error as ex:
                raise _unreadable(ex) from ex
        return self._upkeep


def _unreadable(error: apsw.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the database cannot be read: {error_text(error)}")


def _size_bytes(path: Path) -> int:
    """Return the size of a file; 0 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write on the folder's disk; 0 if unknown."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize
