"""Relay: follows the change log of all nodes, as the `ChangeSource` of one node.

The relay LISTENs, reads the log behind the last seq that it gave, and waits: for a notification,
for a batch that the node's own writer hands over, or for the poll period. It reads pages of
`_PAGE_EVENTS` events or `_PAGE_BYTES`. A batch of the own writer is given without reading it back
if nothing lies between; else the relay reads the log first.

Because all writers commit under one lock, a seq (or the number of a document update or mark) never
appears below one that is visible already. So following the numbers misses nothing.

Invariants: LISTEN comes before the first read of a connection, so no commit falls between them. No
event behind the beginning of a new epoch is given before the epoch: each read looks at the epochs
after the events. Its connection never holds a transaction open. A lost connection only delays:
it reconnects with full jitter. Bounds: `_HANDED_EVENTS` events that are
handed over and not given; beyond it they are dropped here and read from the log.

Made by `pylon.storage.postgres.backend`; its thread is `supervisor.relay`.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg

from pylon import log
from pylon.clock import Clock, RandomSource
from pylon.errors import PylonError, StoreUnavailable
from pylon.storage.backend import ChangeReport
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.postgres import sequences
from pylon.storage.postgres.channels import CHANGES, channel_name, read_payload
from pylon.storage.postgres.connect import retry_pause_s
from pylon.storage.postgres.system_reads import EVENT, EVENT_BYTES, event_of, rows_of
from pylon.storage.postgres.wire import BlockingSession

_PAGE_EVENTS: Final = 500
_PAGE_BYTES: Final = 1_048_576
_MARKS: Final = 500
_HANDED_EVENTS: Final = 20_000
_STATEMENT_S: Final = 5.0
_CHECK_AFTER_S: Final = 30.0  # without a read; retention keeps all events for longer

_FACTS: Final = (
    "SELECT (SELECT max(first_seq) FROM _pylon_epochs), "
    f"({sequences.NEWEST_UPDATE}), ({sequences.NEWEST_MARK})"
)
# PERF: the sum bounds the page in bytes where rows are large; octet_length reads no large text. A
# page and the facts cost the server 39 us with one event, 2.2 us an event with 64, 1.6 with 500.
# Without `_BY_KEY` the same page cost 25 us an event on a new database: a plan of the time when the
# log was empty reads all of it, until the server has analysed the table.
PAGE: Final = f"""
    SELECT {EVENT} FROM (
        SELECT *, sum(size) OVER (ORDER BY seq ROWS UNBOUNDED PRECEDING) - size AS before FROM (
            SELECT *, {EVENT_BYTES} AS size
            FROM _pylon_change_log WHERE seq > $1 ORDER BY seq LIMIT {_PAGE_EVENTS}
        ) AS newest
    ) AS page WHERE before < {_PAGE_BYTES} ORDER BY seq"""
# All that a relay reads are the newest rows of a table, by its key. So a plan never gets better by
# another one, and the statistics of a young table may be wrong by any factor.
_BY_KEY: Final = (
    "SELECT set_config('plan_cache_mode', 'force_generic_plan', false), "
    "set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false)"
)
_NEW_MARKS: Final = (
    f"SELECT number, kind, key FROM _pylon_marks WHERE number > $1 ORDER BY number LIMIT {_MARKS}"
)
SESSION_ENDED: Final = b"session_ended"  # the kind of the marks that a relay forwards

_log = log.get_logger("relay")


class PostgresChanges:
    """See the module and `pylon.storage.backend.ChangeSource`."""

    def __init__(
        self, connect: Callable[[], BlockingSession], writer: str, clock: Clock,
        random: RandomSource, poll_s: float,
    ) -> None:
        """
        Args:
            connect: opens a connection; raises psycopg.Error or StoreUnavailable.
            writer: the name of this node's writer in `channels.payload`.
            poll_s: how long to trust that no notification means no change.
        """
        self._connect = connect
        self._writer = writer
        self._clock = clock
        self._random = random
        self._poll_s = poll_s
        self._session: BlockingSession | None = None
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._handed: deque[ChangeBatch] = deque()
        self._handed_events = 0
        self._must_read = False
        self._poll_at_s = 0.0
        self._retry_at_s = 0.0
        self._failures = 0
        self._read_s = 0.0  # when the log was read last
        self._epoch = self._document = self._mark = 0  # newest numbers
        self._known_head = 0
        self._behind_since_s: float | None = None
        self._lost_s: float | None = None  # since when there has been no connection
        self.head = 0

    @property
    def lag_seqs(self) -> int:
        """See `ChangeSource`."""
        return max(0, self._known_head - self.head)

    @property
    def behind_s(self) -> float:
        """See `ChangeSource`."""
        since_s = self._behind_since_s
        return 0.0 if since_s is None else self._clock.monotonic_s() - since_s

    @property
    def away_s(self) -> float:
        """See `ChangeSource`."""
        since_s = self._lost_s
        return 0.0 if since_s is None else self._clock.monotonic_s() - since_s

    def begin(self) -> None:
        """See `ChangeSource`."""
        try:
            session = self._open()
            head, facts = session.pipeline([(sequences.HEAD, ()), (_FACTS, ())])
        except psycopg.Error as ex:
            raise StoreUnavailable("the change log cannot be followed now") from ex
        self.head = self._known_head = int(head.get_value(0, 0) or 0)
        self._epoch, self._document, self._mark = (
            int(facts.get_value(0, column) or 0) for column in range(3)
        )
        self._session = session
        self._read_s = self._clock.monotonic_s()
        self._poll_at_s = self._read_s + self._poll_s

    def receive(self, timeout_s: float) -> ChangeReport:
        """See `ChangeSource`."""
        report = ChangeReport([], False, [])
        if self._session is None and self._clock.monotonic_s() >= self._retry_at_s:
            self._reconnect()
        try:
            self._wait(timeout_s)
            self._give_own(report)
            if self._session is not None and (
                self._must_read or self._clock.monotonic_s() >= self._poll_at_s
            ):
                report = self._read(self._session, report)
                self._give_own(report)
        except psycopg.Error as ex:
            self._lose(ex)
        self._note_lag()
        return report

    def hand_over(self, batch: ChangeBatch) -> None:
        """See `ChangeSource`."""
        with self._lock:
            if self._handed_events + len(batch.events) > _HANDED_EVENTS:
                self._handed.clear()
                self._handed_events = 0
                self._must_read = True
            else:
                self._handed.append(batch)
                self._handed_events += len(batch.events)
        self.wake()

    def wake(self) -> None:
        """See `ChangeSource`."""
        with suppress(BlockingIOError, OSError):  # it is awake, or closed
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """See `ChangeSource`."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1

    # --- Waiting ---------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> None:
        """Wait until there is something to do, and hear the notifications.

        Raises:
            psycopg.Error: the connection is lost.
        """
        session = self._session
        due_s = self._retry_at_s if session is None else self._poll_at_s
        wait_s = min(timeout_s, due_s - self._clock.monotonic_s())
        if session is not None and self._must_read:
            wait_s = 0.0
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        if session is not None:
            if self._hear(session):
                wait_s = 0.0
            poll.register(session.conn.fileno(), select.POLLIN)
        found = dict(poll.poll(max(0.0, wait_s) * 1_000))
        if self._wake_fd in found:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        if session is not None and len(found) > (self._wake_fd in found):
            self._hear(session)

    def _hear(self, session: BlockingSession) -> bool:
        """Take the notifications that have come; return whether the log is to be read."""
        for notification in session.notifications(0.0):
            signal = read_payload(notification.extra)
            self._known_head = max(self._known_head, signal.head)
            # The own writer hands its changes over, and sends its signals itself.
            if signal.writer != self._writer and (
                signal.head > self.head or signal.has_documents or signal.has_sessions
                or not signal.head
            ):
                self._must_read = True
        return self._must_read

    def _note_lag(self) -> None:
        if self._session is not None and self._known_head <= self.head:
            self._behind_since_s = None
        elif self._behind_since_s is None:
            self._behind_since_s = self._clock.monotonic_s()

    # --- Changes ---------------------------------------------------------------------------

    def _give_own(self, report: ChangeReport) -> None:
        """Give the batches of the own writer that follow on the head."""
        with self._lock:
            while self._handed:
                batch = self._handed[0]
                if batch.prev_seq > self.head:
                    self._must_read = True  # changes of other nodes lie between
                    return
                self._handed.popleft()
                self._handed_events -= len(batch.events)
                events = batch.events
                if events and events[0].seq <= self.head:  # the log had them
                    events = [event for event in events if event.seq > self.head]
                self._give(report, events)

    def _give(self, report: ChangeReport, events: list[ChangeEvent]) -> None:
        if events:
            report.batches.append(ChangeBatch(self.head, events))
            self.head = events[-1].seq
            self._known_head = max(self._known_head, self.head)

    def _read(self, session: BlockingSession, report: ChangeReport) -> ChangeReport:
        """Read one page of the log, and what else is new.

        Raises:
            psycopg.Error: the connection is lost, or the server refused.
        """
        self._must_read = False  # before the read: who sets it during the read wants another one
        now_s = self._clock.monotonic_s()
        is_check_due = now_s - self._read_s > _CHECK_AFTER_S
        statements: list[tuple[str, tuple[int, ...]]] = [(PAGE, (self.head,)), (_FACTS, ())]
        if is_check_due:
            statements += [(sequences.OLDEST, ()), (sequences.HEAD, ())]
        page, facts, *checks = session.pipeline(statements, timeout_s=_STATEMENT_S)
        self._read_s = now_s
        self._poll_at_s = now_s + self._poll_s
        epoch, document, mark = (int(facts.get_value(0, column) or 0) for column in range(3))
        if epoch > self._epoch:
            self._epoch = epoch
            _log.warning("relay.epoch", first_seq=epoch)
            self._jump(report, epoch)
        elif checks and int(checks[0].get_value(0, 0) or 0) > self.head + 1:
            _log.warning("relay.behind", head_seq=self.head)
            self._jump(report, int(checks[1].get_value(0, 0) or 0))
        else:
            events = [event_of(row) for row in rows_of(page)]
            self._give(report, events)
            self._must_read = self._must_read or (page.ntuples > 0 and _is_full(events))
        if document > self._document:
            self._document = document
            report = report._replace(has_documents=True)
        if mark > self._mark:
            self._read_marks(session, report)
        return report

    def _jump(self, report: ChangeReport, seq: int) -> None:
        """Go to a later seq without its events: each receiver compares its head with the log."""
        if seq > self.head:
            report.batches.append(ChangeBatch(seq, []))
            self.head = seq
            self._known_head = max(self._known_head, seq)
        self._must_read = True

    def _read_marks(self, session: BlockingSession, report: ChangeReport) -> None:
        marks = session.execute(_NEW_MARKS, (self._mark,), timeout_s=_STATEMENT_S)
        for row in range(marks.ntuples):
            if marks.get_value(row, 1) == SESSION_ENDED:
                report.ended_families.append((marks.get_value(row, 2) or b"").decode())
        if marks.ntuples:
            self._mark = int(marks.get_value(marks.ntuples - 1, 0) or 0)
        self._must_read = self._must_read or marks.ntuples == _MARKS

    # --- The connection --------------------------------------------------------------------

    def _open(self) -> BlockingSession:
        session = self._connect()
        try:
            session.execute(_BY_KEY)
            name = channel_name(session, CHANGES)
            session.execute_script(f'LISTEN "{name}"', timeout_s=_STATEMENT_S)
        except BaseException:
            session.close()
            raise
        return session

    def _reconnect(self) -> None:
        try:
            self._session = self._open()
        except (psycopg.Error, PylonError, OSError) as ex:
            self._lose(ex)
            return
        _log.info("relay.connected", tries=self._failures)
        self._failures = 0
        self._lost_s = None
        self._must_read = True

    def _lose(self, error: Exception) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._lost_s is None:
            self._lost_s = self._clock.monotonic_s()
            _log.warning("relay.disconnected", error=type(error).__name__,
                         hint="changes wait in the database; it tries again until it answers")
        pause_s = retry_pause_s(self._failures, self._random.uniform)
        self._failures += 1
        self._retry_at_s = self._clock.monotonic_s() + pause_s


def _is_full(events: list[ChangeEvent]) -> bool:
    """Whether the log may have more events than this page."""
    if len(events) == _PAGE_EVENTS:
        return True
    return sum(len(each.data or b"") + len(each.prev_data or b"") for each in events) >= _PAGE_BYTES
