"""The flusher: WAL checkpoints and retention, in a thread with a connection of its own.

The writer never checkpoints. PASSIVE checkpoints run when the WAL has grown or aged; they block
nobody. SQLite begins the WAL anew with the first commit that finds all of it written back and no
reader in it. While commits never cease, none does. So above `limits.WAL_LIMIT_BYTES` the flusher
runs PASSIVE checkpoints one after the other until little is left. It then takes the writer's lock
`commits` for the last one, which takes two fsyncs (about 10 ms). No checkpoint waits for a reader.
The log names a reader that keeps the WAL from beginning anew (`wal.held`); pylon_wal_held_seconds
says for how long.
`flush_all` truncates the WAL at the end of a drain, and waits for readers. The flusher drops old
change events, expired sessions and unused guests in small steps (`Maintenance`), between the
writer's transactions. The bounds of events are a count and a number of bytes. Events of the last
two minutes stay, unless the log has grown to `limits.LOG_HARD_FACTOR` times its bytes. The age of
events comes from the monotonic clock, so that a wall clock that jumps neither ends the retention
nor drops young events. The flusher also marks guests as used that workers saw for the first time.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from pathlib import Path
from typing import Final

import apsw

from pylon import limits, log, metrics
from pylon.clock import Clock
from pylon.errors import PylonError, StoreUnavailable
from pylon.storage.interface import LogRetention, Maintenance
from pylon.storage.sqlite import log as log_table
from pylon.storage.sqlite import sessions
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.file_watch import FileWatch
from supervisor.log_size import LogSize
from supervisor.readers import find_readers

_log = log.get_logger("flusher")
_PERIOD_S: Final = 1.0
_STOP_PATIENCE_S: Final = 5.0
_PATIENCE_MS: Final = 1_000  # for readers, at the end of a drain
_RESTART_ATTEMPTS: Final = 5
_RESTART_PAUSE_S: Final = 0.005
_CATCH_UP_PASSES: Final = 10
_REST_BYTES: Final = 256 * 1024  # so little is written back while the writer pauses
_HELD_LOGGED_EVERY_S: Final = 30.0
_NS_PER_S: Final = 1_000_000_000
_OLDEST: Final = "SELECT coalesce(min(seq), 0) FROM _pylon_change_log"
_MODES: Final = {
    "passive": apsw.SQLITE_CHECKPOINT_PASSIVE,
    "restart": apsw.SQLITE_CHECKPOINT_RESTART,
    "truncate": apsw.SQLITE_CHECKPOINT_TRUNCATE,
}


class Flusher:
    """`start` it once the schema is in place; `flush_all` and `close` after the writer's end."""

    def __init__(
        self, db_path: Path, maintenance: Maintenance, keep_events: int, clock: Clock,
        keep_bytes: int = sys.maxsize, commits: threading.Lock | None = None,
    ) -> None:
        """Args: `commits` is the lock that the writer holds during each transaction."""
        self._wal = db_path.with_name(db_path.name + "-wal")
        self._maintenance = maintenance
        self._keep_events = keep_events
        self._keep_bytes = keep_bytes
        self._commits = commits or threading.Lock()
        self._clock = clock
        self._conn = apsw.Connection(str(db_path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._conn.set_busy_timeout(0)  # while it waited with the writer's lock, no write went on
        self._conn.execute("PRAGMA wal_autocheckpoint=0")
        # A connection that has read nothing does not know of the WAL: its checkpoints do nothing.
        self._conn.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        self._file = FileWatch(db_path, clock)
        self.file_problem: str | None = None
        self._log_size = LogSize(self._conn)
        self._begun_mono_s = clock.monotonic_s()
        self._begun_wall_s = clock.wall_ns() / _NS_PER_S
        self._heads: deque[tuple[float, int]] = deque()  # when, by the monotonic clock; head
        self._cut_logged_s = float("-inf")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._db_path = db_path
        self._page_bytes = int(self._conn.pragma("page_size"))
        self._unwritten_bytes = 0  # of the WAL, that no checkpoint has written back
        self._held_since_s: float | None = None
        self._held_logged_s = float("-inf")
        self._flushed_at_s = clock.monotonic_s()
        self._pruned_at_s = clock.monotonic_s()
        self._used_guests: set[str] = set()
        self._used_guests_lock = threading.Lock()
        self._sessions_counted_s = float("-inf")
        self.oldest_seq = 0
        self.log_bytes = 0
        self.wal_bytes = 0
        self.sessions: dict[str, int] = {}  # by kind

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread: nothing is pruned or checkpointed from now on. Idempotent."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_PATIENCE_S)  # it may wait for a writer that is broken

    def flush_all(self) -> bool:
        """Write the whole WAL into the database and empty it; whether that worked.

        Call it after `stop`. Readers that still hold the WAL make it fail after a second.
        """
        self._conn.set_busy_timeout(_PATIENCE_MS)  # nobody writes any more
        return self.checkpoint("truncate")

    def close(self) -> None:
        """Close the connection. Nothing else may be called afterwards."""
        self._conn.close()

    def checkpoint(self, mode: str) -> bool:
        """Checkpoint now; whether all of the WAL as it was at the beginning was written back (and
        can begin anew, unless passive). Only `truncate` waits for readers: see `flush_all`."""
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

    def look(self) -> None:
        """One round: measure, checkpoint if it is time, prune if it is time."""
        self._look_at_file()
        self._measure()
        now_s = self._clock.monotonic_s()
        aged = now_s - self._flushed_at_s >= limits.WAL_CHECKPOINT_AGE_S
        if self._unwritten_bytes >= (1 if aged else limits.WAL_CHECKPOINT_BYTES):
            self.checkpoint("passive")
            self._flushed_at_s = now_s
        if self.wal_bytes < limits.WAL_LIMIT_BYTES or self._restart_wal():
            self._held_since_s = None
            metrics.WAL_HELD.set(0.0)
        else:
            self._note_held()
        row = self._conn.execute(_OLDEST).fetchone()
        self.oldest_seq = int(row[0]) if row else 0
        metrics.CHANGELOG_OLDEST_SEQ.set(self.oldest_seq)
        self.log_bytes = self._log_size.count(self.oldest_seq)
        metrics.CHANGELOG_BYTES.set(self.log_bytes)
        self._note_head(now_s)
        if now_s - self._sessions_counted_s >= limits.SESSIONS_COUNT_S:
            self._sessions_counted_s = now_s
            self._count_sessions()

    def _restart_wal(self) -> bool:
        """Have the next commit begin the WAL anew, if nobody reads it at this moment; whether that
        worked. Most reads take less than a millisecond, so of a few attempts one succeeds."""
        for attempt in range(_RESTART_ATTEMPTS):
            if not self._catch_up():
                return False  # a long read keeps a part of the WAL
            with self._commits:
                if self.checkpoint("restart"):
                    return True
            if attempt + 1 < _RESTART_ATTEMPTS and self._ending.wait(_RESTART_PAUSE_S):
                break
        return False

    def _catch_up(self) -> bool:
        """Write back all but `_REST_BYTES` of the WAL, while the writer goes on; whether that
        worked. Each pass takes in what was committed during the one before, hence less."""
        for _ in range(_CATCH_UP_PASSES):
            if self._unwritten_bytes <= _REST_BYTES:
                return True
            if not self.checkpoint("passive"):
                return False
        return self._unwritten_bytes <= _REST_BYTES

    def _note_held(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._held_since_s is None:
            self._held_since_s = now_s
        held_s = now_s - self._held_since_s
        metrics.WAL_HELD.set(held_s)
        if now_s - self._held_logged_s >= _HELD_LOGGED_EVERY_S:
            self._held_logged_s = now_s
            readers = [str(reader) for reader in find_readers(self._db_path)]
            _log.warning("wal.held", wal_bytes=self.wal_bytes, limit_bytes=limits.WAL_LIMIT_BYTES,
                         held_s=round(held_s, 1), readers=readers,
                         hint="a long read (a backup, a slow scan, another program) keeps the WAL "
                         "from beginning anew; writes go on, and the file grows until it ends")

    def _look_at_file(self) -> None:
        """Note for readiness whether the database file is there and may be written to."""
        problem = self._file.find_problem() or self._file.find_unwritable()
        shown = None  # without the path, since /readyz shows it to everybody
        if problem is not None:
            shown = f"the database file: {problem.reason}; the server's log says what to do"
        if shown != self.file_problem:
            if problem is not None:
                _log.error("database.unusable", reason=problem.reason, message=problem.message)
            else:
                _log.info("database.usable", path=str(self._db_path))
        self.file_problem = shown
        metrics.DB_WRITABLE.set(problem is None)

    def _measure(self) -> None:
        """Look how much of the WAL is in use, and how much of that is not written back. The file
        keeps its size when the WAL begins anew."""
        frames, written = self._conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        self.wal_bytes = max(0, frames) * self._page_bytes
        self._unwritten_bytes = max(0, frames - written) * self._page_bytes
        metrics.WAL_BYTES.set(self.wal_bytes)

    def _note_head(self, now_s: float) -> None:
        """Remember the head, so that a later call can tell the old events."""
        self._heads.append((now_s, log_table.head_seq(self._conn)))
        while len(self._heads) > 1 and now_s - self._heads[1][0] >= limits.LOG_MIN_AGE_S:
            self._heads.popleft()

    def _old_seq(self) -> int:
        """Events up to this seq are older than `limits.LOG_MIN_AGE_S`, whatever a clock said."""
        if not self._heads:
            return 0
        at_s, head = self._heads[0]
        return head if self._clock.monotonic_s() - at_s >= limits.LOG_MIN_AGE_S else 0

    def _older_than_s(self) -> int:
        """The time before which events are old. A wall clock that has jumped ahead makes no event
        old: time goes on since the start as the monotonic clock says, or slower."""
        steady_s = self._begun_wall_s + self._clock.monotonic_s() - self._begun_mono_s
        return int(min(steady_s, self._clock.wall_ns() / _NS_PER_S)) - limits.LOG_MIN_AGE_S

    def _drop_to_seq(self, old_seq: int) -> int:
        """The seq up to which events must go for their bytes: old ones to keep within the
        setting, young ones only beyond `limits.LOG_HARD_FACTOR` times that."""
        if self.log_bytes <= self._keep_bytes:
            return 0
        drop_to_seq = min(self._log_size.seq_above(self._keep_bytes), old_seq)
        hard_bytes = self._keep_bytes * limits.LOG_HARD_FACTOR
        if self.log_bytes > hard_bytes:
            hard_seq = self._log_size.seq_above(hard_bytes)
            now_s = self._clock.monotonic_s()
            if hard_seq > drop_to_seq and now_s - self._cut_logged_s >= _HELD_LOGGED_EVERY_S:
                self._cut_logged_s = now_s
                _log.warning("log.cut_short", log_bytes=self.log_bytes, limit_bytes=hard_bytes,
                             hint="more was written in two minutes than the change log may hold: "
                             "clients that missed it pull everything again "
                             "(PYLON_CHANGE_LOG_RETAIN_BYTES)")
            drop_to_seq = max(drop_to_seq, hard_seq)
        return drop_to_seq

    def _prune(self, drop_to_seq: int = 0) -> None:
        step = LogRetention(
            self._keep_events, self._older_than_s(), limits.PRUNE_STEP, self._old_seq(),
            drop_to_seq,
        )
        dropped = 0
        while not self._ending.is_set():
            count = self._maintenance.prune_log(step)
            if not count:
                break
            dropped += count
        if dropped:
            _log.debug("log.pruned", events=dropped)

    def _count_sessions(self) -> None:
        # A scan in this thread: 0.03 s for 100,000 sessions, 0.7 s for a million.
        self.sessions = sessions.count_by_kind(self._conn)
        for kind, count in self.sessions.items():
            metrics.SESSIONS.labels(kind).set(count)

    def note_used_guests(self, session_ids: list[str]) -> None:
        """Mark these guests as used in the next round; from any thread."""
        with self._used_guests_lock:
            if len(self._used_guests) < limits.USED_GUESTS:  # others come again
                self._used_guests.update(session_ids)

    def _mark_used_guests(self) -> None:
        with self._used_guests_lock:
            noted, self._used_guests = list(self._used_guests), set()
        for start in range(0, len(noted), limits.SESSION_STEP):
            self._maintenance.mark_sessions_used(noted[start : start + limits.SESSION_STEP])

    def _collect_sessions(self) -> None:
        """Drop what has expired, and guests that were never used. A step is small because a
        session lies anywhere in its table: 1,000 of a million took the writer 150 ms."""
        unused_before_s = self._clock.wall_ns() // _NS_PER_S - limits.GUEST_UNUSED_S
        for _ in range(limits.SESSION_STEPS):
            if self._ending.is_set():
                break
            count = self._maintenance.prune_sessions(limits.SESSION_STEP, unused_before_s)
            metrics.SESSIONS_COLLECTED.inc(count)
            if count < limits.SESSION_STEP:
                break

    def _run(self) -> None:
        failing = False
        while not self._ending.wait(_PERIOD_S):
            try:
                self.look()
                self._mark_used_guests()
                drop_to_seq = self._drop_to_seq(self._old_seq())
                is_due = self._clock.monotonic_s() - self._pruned_at_s >= limits.PRUNE_PERIOD_S
                if is_due or drop_to_seq >= self.oldest_seq > 0:
                    self._prune(drop_to_seq)
                if is_due:
                    self._pruned_at_s = self._clock.monotonic_s()
                    self._collect_sessions()
                failing = False
            except (PylonError, apsw.Error) as ex:
                # A full disk passes; until then we try again each round, and say so once.
                if not failing:
                    _log.exception("flusher.failed", error=ex)
                failing = True
        try:
            self._mark_used_guests()
        except PylonError as ex:
            _log.warning("guests.not_marked", error=ex.message,
                         hint="they are marked when they come again")
