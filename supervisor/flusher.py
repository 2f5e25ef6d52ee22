"""The flusher: checkpoints and retention, in a thread of its own (`pylon.storage.interface`).

Once a second it has the store checkpoint, measures the change log, and looks whether the store can
be written to. It drops old change events, expired sessions, unused guests and expired records of
sign-in in small steps (`Maintenance`), between the writer's transactions. The bounds of events are
a count and a number of bytes. Events of the last two minutes stay, unless the log has grown to
`limits.LOG_HARD_FACTOR` times its bytes. The age of events comes from the monotonic clock, so that
a wall clock that jumps neither ends the retention nor drops young events. The flusher also writes
the notes of sessions in use (`pylon.auth.session_life`), and converts datetimes of earlier versions
(`conversion`). `flush_all` writes everything back at the end of a drain.

Metrics: pylon_changelog_size_bytes, pylon_changelog_oldest_seq, pylon_db_writable, pylon_sessions,
pylon_retention_deleted_total.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from pylon import limits, log, metrics
from pylon.auth.api_keys import is_of_key
from pylon.auth.session_life import SessionLife, session_life
from pylon.clock import NS_PER_S, Clock
from pylon.errors import PylonError
from pylon.manifest.model import AuthConfig
from pylon.storage.interface import Maintenance
from pylon.storage.records import LogRetention
from supervisor.conversion import DatetimeConversion

_log = log.get_logger("flusher")
_PERIOD_S: Final = 1.0
_STOP_PATIENCE_S: Final = 5.0
_CUT_LOGGED_EVERY_S: Final = 30.0
_DEFAULT_LIFE: Final = session_life(AuthConfig())
_DAY_S: Final = 86_400
_OUTBOX_KEPT_S: Final = 3_600  # the identity workers drop, and count, what nobody could send


class Flusher:
    """`start` it once the schema is in place; `flush_all` after the writer's end."""

    def __init__(
        self, maintenance: Maintenance, keep_events: int, clock: Clock,
        keep_bytes: int = sys.maxsize, *, leads: Callable[[], bool] = lambda: True,
        life: SessionLife = _DEFAULT_LIFE, audit_retain_days: int = 90,
        guest_retain_days: int = 0,
    ) -> None:
        """
        Args:
            leads: whether this node does the upkeep that one of all nodes is to do: retention, the
                collection of sessions, conversions.
            guest_retain_days: 0 keeps guests until they expire.
        """
        self._maintenance = maintenance
        self._keep_events = keep_events
        self._keep_bytes = keep_bytes
        self._leads = leads
        self._life = life
        self._kept_s = {"audit": audit_retain_days * _DAY_S, "outbox": _OUTBOX_KEPT_S}
        self._guest_retain_s = guest_retain_days * _DAY_S
        self._guests_after_id = ""  # the sessions up to this id were looked at
        self._clock = clock
        self.store_problem: str | None = None
        self._begun_mono_s = clock.monotonic_s()
        self._begun_wall_s = clock.wall_ns() / NS_PER_S
        self._heads: deque[tuple[float, int]] = deque()  # when, by the monotonic clock; head
        self._cut_logged_s = float("-inf")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._pruned_at_s = clock.monotonic_s()
        self._used_sessions: set[str] = set()
        self._used_sessions_lock = threading.Lock()
        self._sessions_counted_s = float("-inf")
        self.conversion = DatetimeConversion(maintenance, clock)
        self.oldest_seq = 0
        self.log_bytes = 0
        self.sessions: dict[str, int] = {}  # by kind

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread: nothing is pruned or checkpointed from now on. Idempotent."""
        self._ending.set()
        self._maintenance.end_checkpoints()
        if self._thread.is_alive():
            self._thread.join(_STOP_PATIENCE_S)  # it may wait for a writer that is broken

    def flush_all(self) -> bool:
        """Write everything back; whether that worked. Call it after `stop`."""
        return self._maintenance.flush_all()

    def look(self) -> None:
        """One round: checkpoint if it is time, and measure.

        Raises:
            StoreUnavailable
        """
        self._look_for_problem()
        self._maintenance.checkpoint()
        now_s = self._clock.monotonic_s()
        facts = self._maintenance.measure_log()
        self.oldest_seq, self.log_bytes = facts.oldest_seq, facts.size_bytes
        metrics.CHANGELOG_OLDEST_SEQ.set(self.oldest_seq)
        metrics.CHANGELOG_BYTES.set(self.log_bytes)
        self._note_head(now_s, facts.head_seq)
        if now_s - self._sessions_counted_s >= limits.SESSIONS_COUNT_S:
            self._sessions_counted_s = now_s
            self._count_sessions()

    def _look_for_problem(self) -> None:
        """Note for readiness whether the store can be written to."""
        problem = self._maintenance.find_problem()
        shown = None  # without the path, since /readyz shows it to everybody
        if problem is not None:
            shown = f"the database: {problem.reason}; the server's log says what to do"
        if shown != self.store_problem:
            if problem is not None:
                _log.error("database.unusable", reason=problem.reason, message=problem.message)
            else:
                _log.info("database.usable")
        self.store_problem = shown
        metrics.DB_WRITABLE.set(problem is None)

    def _note_head(self, now_s: float, head_seq: int) -> None:
        """Remember the head, so that a later call can tell the old events."""
        self._heads.append((now_s, head_seq))
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
        return int(min(steady_s, self._clock.wall_ns() / NS_PER_S)) - limits.LOG_MIN_AGE_S

    def _drop_to_seq(self, old_seq: int) -> int:
        """The seq up to which events must go for their bytes: old ones to keep within the
        setting, young ones only beyond `limits.LOG_HARD_FACTOR` times that."""
        if self.log_bytes <= self._keep_bytes:
            return 0
        drop_to_seq = min(self._maintenance.log_seq_above(self._keep_bytes), old_seq)
        hard_bytes = self._keep_bytes * limits.LOG_HARD_FACTOR
        if self.log_bytes > hard_bytes:
            hard_seq = self._maintenance.log_seq_above(hard_bytes)
            now_s = self._clock.monotonic_s()
            if hard_seq > drop_to_seq and now_s - self._cut_logged_s >= _CUT_LOGGED_EVERY_S:
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
            metrics.RETENTION_DELETED.labels("change_log").inc(dropped)
            _log.debug("log.pruned", events=dropped)

    def _count_sessions(self) -> None:
        self.sessions = self._maintenance.count_sessions()
        for kind, count in self.sessions.items():
            metrics.SESSIONS.labels(kind).set(count)

    def note_used_sessions(self, session_ids: list[str]) -> None:
        """Note the use of these sessions and API keys in the next round; from any thread."""
        with self._used_sessions_lock:
            if len(self._used_sessions) < limits.USED_SESSIONS:  # others come again
                self._used_sessions.update(session_ids)

    def _note_used(self) -> None:
        with self._used_sessions_lock:
            noted, self._used_sessions = list(self._used_sessions), set()
        now_s = self._clock.wall_ns() // NS_PER_S
        note = self._life.note(now_s)
        keys = [each for each in noted if is_of_key(each)]
        if keys:
            noted = [each for each in noted if not is_of_key(each)]
            self._maintenance.note_keys_used(keys, now_s)
        for start in range(0, len(noted), limits.SESSION_STEP):
            self._maintenance.note_sessions_used(
                noted[start : start + limits.SESSION_STEP], note
            )

    def _collect_sessions(self) -> None:
        """Drop what has expired, and guests that were never used. A step is small because a
        session lies anywhere in its table: 1,000 of a million took the writer 150 ms."""
        unused_before_s = self._clock.wall_ns() // NS_PER_S - limits.GUEST_UNUSED_S
        for _ in range(limits.SESSION_STEPS):
            if self._ending.is_set():
                break
            count = self._maintenance.prune_sessions(limits.SESSION_STEP, unused_before_s)
            metrics.SESSIONS_COLLECTED.inc(count)
            metrics.RETENTION_DELETED.labels("sessions").inc(count)
            if count < limits.SESSION_STEP:
                break

    def _collect_guests(self) -> None:
        """Drop guests that were not seen for long. The table has no index of when each session was
        seen, which each use would have to change: each round looks at a part of it."""
        if not self._guest_retain_s:
            return
        seen_before_s = self._clock.wall_ns() // NS_PER_S - self._guest_retain_s
        for _ in range(limits.GUEST_STEPS):
            if self._ending.is_set():
                break
            step = self._maintenance.prune_guests(
                self._guests_after_id, limits.GUEST_STEP, seen_before_s
            )
            self._guests_after_id = step.last_id
            metrics.RETENTION_DELETED.labels("guests").inc(step.dropped)
            if not step.last_id:
                break

    def _prune_records(self) -> None:
        """Drop the records of sign-in whose time is over."""
        for _ in range(limits.SESSION_STEPS):
            if self._ending.is_set():
                break
            now_s = self._clock.wall_ns() // NS_PER_S
            dropped = self._maintenance.prune_records(limits.SESSION_STEP, now_s, self._kept_s)
            for table, count in dropped.items():
                if count:
                    metrics.RETENTION_DELETED.labels(table).inc(count)
            if not any(dropped.values()):
                break

    def _run(self) -> None:
        failing = False
        while not self._ending.wait(_PERIOD_S):
            try:
                self.look()
                self._note_used()
                if not self._leads():
                    failing = False
                    continue
                self.conversion.run_round(self._ending)
                drop_to_seq = self._drop_to_seq(self._old_seq())
                is_due = self._clock.monotonic_s() - self._pruned_at_s >= limits.PRUNE_PERIOD_S
                if is_due or drop_to_seq >= self.oldest_seq > 0:
                    self._prune(drop_to_seq)
                if is_due:
                    self._pruned_at_s = self._clock.monotonic_s()
                    self._collect_sessions()
                    self._collect_guests()
                    self._prune_records()
                failing = False
            except PylonError as ex:
                # A full disk passes; until then we try again each round, and say so once.
                if not failing:
                    _log.exception("flusher.failed", error=ex)
                failing = True
        try:
            self._note_used()
        except PylonError as ex:
            _log.warning("sessions.not_noted", error=ex.message,
                         hint="their use is noted when they come again")
