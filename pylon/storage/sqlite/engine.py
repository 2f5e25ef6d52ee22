"""SQLite write engine: executes batches on the only connection that changes rows.

`pylon.storage.core.engine` executes the batches. Steps of maintenance (`maintenance`) run on the
same connection, between two batches (`turn_lock`): SQLite has one writer at a time, so batches
would wait for a second connection in its busy handler.

Made by `backend`. Called by the supervisor's writer thread, by the benchmark and by tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from pylon import limits
from pylon.clock import Clock
from pylon.errors import PylonError, StartDelayed, StartRefused, StoreUnavailable
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.runtime.boot_id import read_boot_id
from pylon.storage.core.engine import BatchEngine
from pylon.storage.core.retention import Retention
from pylon.storage.ops import WriteRequest
from pylon.storage.records import BatchResult
from pylon.storage.sqlite import epochs, pragmas
from pylon.storage.sqlite.connect import open_writer
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.maintenance import SqliteMaintenance
from pylon.storage.sqlite.schema.apply import prepare_store
from pylon.storage.sqlite.transaction import SqliteTransaction
from pylon.storage.sqlite.turn_lock import TurnLock

# Loaded with a continuous backup only.
if TYPE_CHECKING:
    from pylon.storage.sqlite.shipping.capture import SqliteCapture


class SqliteEngine:
    """`pylon.storage.interface.WriteEngine` on one SQLite file. `maintenance`: its upkeep."""

    def __init__(
        self, conn: apsw.Connection, batches: BatchEngine, turns: TurnLock,
        maintenance: SqliteMaintenance, capture: SqliteCapture | None = None,
    ) -> None:
        """Used by `open`; the connection is prepared and becomes the engine's own."""
        self._capture = capture
        self._conn = conn
        self._batches = batches
        self._turns = turns
        self.maintenance = maintenance

    @classmethod
    def open(
        cls,
        path: str | Path,
        manifest: Manifest,
        rules: RuleSet,
        clock: Clock,
        durability: str,
        boot_id: str | None = None,
        row_max_bytes: int = limits.BODY_BYTES,
        capture: SqliteCapture | None = None,
    ) -> SqliteEngine:
        """Open the database, bring its schema to the manifest and note the start.

        Args:
            durability: `normal` or `full`.
            boot_id: names this boot of the machine; None asks the kernel.
            row_max_bytes: of a row's JSON (PYLON_ROW_MAX_BYTES).
            capture: copies the WAL for a continuous backup; made before this call.

        Raises:
            SchemaRefused: the schema cannot be reached by additive steps.
            StartRefused: the database cannot be opened or written.
        """
        conn: apsw.Connection | None = None
        try:
            conn = open_writer(path)
            prepared = prepare_store(conn, manifest, clock)
            boot = read_boot_id() if boot_id is None else boot_id
            epochs.begin_run(conn, durability, boot, clock)
            pragmas.set_durability(conn, durability)
            transaction = SqliteTransaction(conn, clock, prepared.retained_columns)
            retention = Retention(transaction.maintenance)
            batches = BatchEngine(transaction, manifest, rules, clock, row_max_bytes, retention)
            turns = TurnLock()
            maintenance = SqliteMaintenance(
                conn, batches, transaction.maintenance, retention, turns, manifest, clock,
                capture,
            )
            if capture is not None:
                capture.open(conn, turns)
                capture.commits.settle(batches.head)
            return cls(conn, batches, turns, maintenance, capture)
        except apsw.Error as error:
            if conn is not None:
                conn.close()
            if isinstance(error, (apsw.FullError, apsw.IOError)):
                raise StartDelayed(
                    f"the database {path} cannot be used: {error_text(error)}: make room on its "
                    "disk or mend it, and start again"
                ) from error
            raise StartRefused(
                f"the database {path} cannot be used: {error_text(error)}"
            ) from error
        except PylonError:
            if conn is not None:
                conn.close()
            raise

    @property
    def head(self) -> int:
        """See `WriteEngine`."""
        return self._batches.head

    def apply(
        self, requests: Sequence[WriteRequest], *, large_bytes: int | None = None
    ) -> BatchResult:
        """See `WriteEngine`."""
        self._turns.acquire()
        try:
            return self._batches.apply(requests, large_bytes=large_bytes)
        finally:
            if self._capture is not None:
                self._capture.commits.settle(self._batches.head)
            self._turns.release()

    def close(self) -> None:
        """See `WriteEngine`."""
        try:
            self.maintenance.close()
            self._conn.close()
        except apsw.Error as error:
            raise StoreUnavailable(
                f"the database was not closed in order: {error_text(error)}"
            ) from error
