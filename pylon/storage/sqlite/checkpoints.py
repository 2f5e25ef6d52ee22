"""Checkpoints: writes the WAL back into the database, on a connection of its own.

The writer never checkpoints. PASSIVE checkpoints run when the WAL has grown or aged; they block no
reader or writer. SQLite restarts the WAL with the first commit that finds it fully written back and
without a reader. Under continuous commits that never happens. So above `limits.WAL_LIMIT_BYTES`
PASSIVE checkpoints run one after the other until little is left. The last one runs between two
batches (`turn_lock`), because it takes two fsyncs (about 10 ms: see `file_sync`). Only `flush_all`
waits for readers; it runs when all writes have ended. The log names a reader that prevents the
restart of the WAL (`wal.held`). With a continuous backup the capture copies the frames first
(`shipping.capture`), and a checkpoint writes back no frame that it has not copied.

Metrics: pylon_wal_size_bytes, pylon_wal_held_seconds, pylon_checkpoint_duration_seconds. Called by
`maintenance`, in the flusher's thread.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from pylon import limits, log, metrics
from pylon.clock import Clock
from pylon.errors import StoreUnavailable
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.file_sync import sync_open_file
from pylon.storage.sqlite.turn_lock import TurnLock
from pylon.storage.sqlite.wal_readers import find_readers

# Loaded with a continuous backup only.
if TYPE_CHECKING:
    from pylon.storage.sqlite.shipping.capture import SqliteCapture

_log = log.get_logger("checkpoints")
_READERS_TIMEOUT_MS: Final = 1_000  # how long `flush_all` waits for readers
_RESTART_ATTEMPTS: Final = 5
_RESTART_PAUSE_S: Final = 0.005
_TURN_S: Final = 5.0
_CATCH_UP_PASSES: Final = 10
_REST_BYTES: Final = 256 * 1024  # the largest part to write back while the writer pauses
_HELD_LOGGED_EVERY_S: Final = 30.0
_MODES: Final = {
    "passive": apsw.SQLITE_CHECKPOINT_PASSIVE,
    "restart": apsw.SQLITE_CHECKPOINT_RESTART,
    "truncate": apsw.SQLITE_CHECKPOINT_TRUNCATE,
}


def open_upkeep(path: str | Path) -> apsw.Connection:
    """Open a connection for checkpoints and for measuring the log.

    It never waits for a lock: it may run while the writer pauses, so writes would wait too.

    Raises:
        apsw.Error
    """
    conn = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    conn.set_busy_timeout(0)
    conn.execute("PRAGMA wal_autocheckpoint=0")
    # Checkpoints of a connection that has not read anything do nothing: it has not opened the WAL.
    conn.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    return conn


class Checkpoints:
    """Checkpoints one database. `wal_bytes`: the used part of the WAL; `unwritten_bytes`: the part
    of it that no checkpoint has written back."""

    def __init__(
        self, conn: apsw.Connection, turns: TurnLock, clock: Clock,
        capture: SqliteCapture | None = None,
    ) -> None:
        """
        Args:
            conn: one of `open_upkeep`.
            capture: copies the WAL for a continuous backup, before it begins anew.
        """
        self._conn = conn
        self._capture = capture
        self._turns = turns
        self._clock = clock
        self._path = Path(conn.filename)
        self._page_bytes = int(conn.pragma("page_size"))
        self._ending = threading.Event()
        self._flushed_at_s = clock.monotonic_s()
        self._held_since_s: float | None = None
        self._held_logged_s = float("-inf")
        self.wal_bytes = 0
        self.unwritten_bytes = 0

    def run_round(self) -> None:
        """Measure the WAL, and checkpoint if it has grown or aged enough.

        Raises:
            StoreUnavailable: a checkpoint failed.
        """
        self._measure()
        self._capture_log(
            is_urgent=self.unwritten_bytes >= limits.WAL_CHECKPOINT_BYTES
            or self.wal_bytes >= limits.WAL_LIMIT_BYTES
        )
        now_s = self._clock.monotonic_s()
        aged = now_s - self._flushed_at_s >= limits.WAL_CHECKPOINT_AGE_S
        if self.unwritten_bytes >= (1 if aged else limits.WAL_CHECKPOINT_BYTES):
            self.checkpoint("passive")
            self._flushed_at_s = now_s
        if self.wal_bytes < limits.WAL_LIMIT_BYTES or self._restart_wal():
            self._held_since_s = None
            metrics.WAL_HELD.set(0.0)
        else:
            self._note_held()

    def end(self) -> None:
        """Make a running round end soon. Any thread may call it."""
        self._ending.set()

    def flush_all(self) -> bool:
        """Write the whole WAL into the database and empty it. Return whether it succeeded.

        It fails after `_READERS_TIMEOUT_MS` if readers still hold the WAL.
        """
        self._conn.set_busy_timeout(_READERS_TIMEOUT_MS)
        if self._capture is not None and not self._capture.release():
            # The next start captures what the WAL still has.
            _log.warning("capture.incomplete", wal_bytes=self.wal_bytes)
            return self.checkpoint("passive")
        return self.checkpoint("truncate")

    def checkpoint(self, mode: str) -> bool:
        """Run a checkpoint now. Only the mode `truncate` waits for readers: see `flush_all`.

        Returns: whether it wrote back the whole WAL of its beginning. Then the WAL can restart,
            unless the mode is `passive`.

        Raises:
            StoreUnavailable
        """
        started_s = self._clock.monotonic_s()
        try:
            frames, written = self._conn.wal_checkpoint(mode=_MODES[mode])
        except apsw.BusyError:
            frames, written = -1, 0
        except apsw.Error as ex:
            raise StoreUnavailable(f"The WAL checkpoint failed: {error_text(ex)}") from ex
        metrics.CHECKPOINT.labels(mode).observe(self._clock.monotonic_s() - started_s)
        self._measure()
        return 0 <= frames == written

    def _restart_wal(self) -> bool:
        """Let the next commit restart the WAL if no reader holds it now. Return whether it worked.

        Most reads take less than 1 ms, so one of a few attempts succeeds.
        """
        for attempt in range(_RESTART_ATTEMPTS):
            if not self._catch_up():
                return False  # a long read holds a part of the WAL
            self._sync_database()
            if not self._catch_up():
                return False
            self._capture_log(is_urgent=True)
            if self._restart_in_turn():
                return True
            if attempt + 1 < _RESTART_ATTEMPTS and self._ending.wait(_RESTART_PAUSE_S):
                break
        return False

    def _restart_in_turn(self) -> bool:
        """Let the WAL begin anew while the writer pauses."""
        capture = self._capture
        with capture.lock if capture is not None else nullcontext(), self._turns.behind(_TURN_S):
            if capture is None:
                return self.checkpoint("restart")
            if not capture.release():
                return False
            try:
                return self.checkpoint("restart")
            finally:
                capture.hold()

    def _capture_log(self, *, is_urgent: bool) -> None:
        if self._capture is not None:
            self._capture.capture_if_due(self.wal_bytes, is_urgent=is_urgent)

    def _sync_database(self) -> None:
        try:
            sync_open_file(self._path)
        except OSError as ex:
            raise StoreUnavailable(f"The database file cannot be synced: {ex}") from ex

    def _catch_up(self) -> bool:
        """Write back all but `_REST_BYTES` of the WAL while the writer continues.

        Each pass writes the commits made during the previous pass, so the passes shrink.

        Returns: whether it succeeded.
        """
        for _ in range(_CATCH_UP_PASSES):
            if self.unwritten_bytes <= _REST_BYTES:
                return True
            before_bytes = self.unwritten_bytes
            self._capture_log(is_urgent=True)
            if not self.checkpoint("passive") and (
                # The capture itself keeps back what was committed since its round.
                self._capture is None or self.unwritten_bytes >= before_bytes
            ):
                return False
        return self.unwritten_bytes <= _REST_BYTES

    def _note_held(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._held_since_s is None:
            self._held_since_s = now_s
        held_s = now_s - self._held_since_s
        metrics.WAL_HELD.set(held_s)
        if now_s - self._held_logged_s >= _HELD_LOGGED_EVERY_S:
            self._held_logged_s = now_s
            readers = [str(reader) for reader in find_readers(self._path)]
            _log.warning("wal.held", wal_bytes=self.wal_bytes, limit_bytes=limits.WAL_LIMIT_BYTES,
                         held_s=round(held_s, 1), readers=readers,
                         hint="a long read (a backup, a slow scan, another program) keeps the WAL "
                         "from beginning anew; writes go on, and the file grows until it ends")

    def _measure(self) -> None:
        """Measure the used part of the WAL, and the part of it that is not written back.

        The size of the file does not tell: it stays when the WAL restarts.
        """
        try:
            frames, written = self._conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        except apsw.BusyError:
            return  # the writer restarts the WAL at this moment; the next round measures it
        except apsw.Error as ex:
            raise StoreUnavailable(f"The WAL cannot be measured: {error_text(ex)}") from ex
        self.wal_bytes = max(0, frames) * self._page_bytes
        self.unwritten_bytes = max(0, frames - written) * self._page_bytes
        metrics.WAL_BYTES.set(self.wal_bytes)
