"""Node link: one connection of a node for its news, its heartbeat, and the lock of the leader.

Every `HEARTBEAT_S` it renews the node's row in the registry, reads who else lives, and says so in
the news, so that a receiver misses nothing without noticing. A node whose row is not renewed for
`DEAD_AFTER_S` is dead to the others. The leader is the node whose connection holds the advisory
lock `UPKEEP`; the others try for it every `_LEAD_S`. A leader that has lost its connection leads no
more, at once. So two nodes lead at most for the moment until a leader notices that its connection
is dead, and what a leader does is harmless twice.

A node with shards workers has a lease, which its heartbeats renew (`registry`). By the monotonic
clock of the node it lasts from the moment before the heartbeat was sent, and ends `LEASE_MARGIN_S`
earlier than by the clock of the database. A node whose lease has ended takes another one.

Queued news leave once in `NEWS_TICK_S`, the first at once. The connection does not wait for the
disk (`synchronous_commit` off): nothing of it need survive a crash of the database. Bounds: of
queued news `_QUEUE_BYTES`; beyond it all are dropped, and the others notice a gap.

Metrics: pylon_news_bytes_total, pylon_news_dropped_total. Made by `pylon.storage.postgres.backend`;
its thread is `supervisor.nodes`.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Final

import msgspec
import psycopg

from pylon import log, metrics
from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.errors import PylonError, StoreUnavailable
from pylon.storage.nodes import (
    CLOCK_SKEW_S,
    DEAD_AFTER_S,
    HEARTBEAT_S,
    LEASE_MARGIN_S,
    LEASE_S,
    NEWS_TICK_S,
    SHARDS_ROLE,
    NodeFacts,
    NodeLease,
    NodesReport,
)
from pylon.storage.postgres import meta, registry
from pylon.storage.postgres.channels import NEWS, channel_name
from pylon.storage.postgres.connect import retry_pause_s
from pylon.storage.postgres.locks import UPKEEP, lock_key
from pylon.storage.postgres.news import NewsReader, NewsWriter
from pylon.storage.postgres.statements import Statement
from pylon.storage.postgres.wire import BlockingSession

_SALT_BYTES: Final = 16
_LEAD_S: Final = 5.0
_STATEMENT_S: Final = 5.0
LEASE_RETRY_S: Final = 1.0  # the longest pause between tries to connect, of a node with shards
_QUEUE_BYTES: Final = 8_388_608
_FLUSH_BYTES: Final = 262_144  # of payloads in one transaction
_NOTIFY: Final = "SELECT pg_notify($1, $2)"
_TRY_LOCK: Final = "SELECT pg_try_advisory_lock($1)"
BEAT_TOPIC: Final = "beat"
END_TOPIC: Final = "end"
_CHANGED_TOPIC: Final = "changed"  # the row of the node in the registry

_log = log.get_logger("nodes")


class PostgresNodes:
    """See the module and `pylon.storage.nodes.NodeLink`."""

    def __init__(
        self, connect: Callable[[], BlockingSession], facts: NodeFacts, clock: Clock,
        random: RandomSource,
    ) -> None:
        """Args: `connect` opens a connection; raises psycopg.Error or StoreUnavailable."""
        self._connect = connect
        self.facts = facts
        self._clock = clock
        self._random = random
        self._session: BlockingSession | None = None
        self._channel = ""
        self._lead_key = 0
        self._leases_taken = 0
        self._has_shards = SHARDS_ROLE in facts.roles  # also after `withdraw`
        self._is_changed = False  # since it was registered
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._queue: list[tuple[str, bytes]] = []
        self._queue_bytes = 0
        self._has_dropped = False
        self._writer = NewsWriter(facts.incarnation, facts.name)
        self._reader = NewsReader(facts.incarnation)
        self._beat_at_s = self._lead_at_s = self._flush_at_s = self._retry_at_s = 0.0
        self._failures = 0
        self.others: tuple[NodeFacts, ...] = ()
        self.leads = False
        self.salt = b""
        self.lease = NodeLease()
        self.problem: str | None = None

    def begin(self) -> None:
        """See `NodeLink`."""
        try:
            self._session = self._open()
            self._beat(self._session)
        except psycopg.Error as ex:
            raise StoreUnavailable("the registry of the nodes cannot be reached now") from ex

    def publish(self, topic: str, body: bytes) -> None:
        """See `NodeLink`."""
        with self._lock:
            if self._queue_bytes + len(body) > _QUEUE_BYTES:
                metrics.NEWS_DROPPED.inc(len(self._queue) + 1)
                self._queue.clear()
                self._queue_bytes = 0
                self._has_dropped = True
                return
            self._queue.append((topic, body))
            self._queue_bytes += len(body)
            is_first = len(self._queue) == 1
        if is_first:
            self.wake()

    def receive(self, timeout_s: float) -> NodesReport:
        """See `NodeLink`."""
        report = NodesReport([], [], [])
        if self._session is None and self._clock.monotonic_s() >= self._retry_at_s:
            self._reconnect()
        try:
            self._wait(timeout_s, report)
            session = self._session
            if session is not None:
                if self._is_changed:
                    self._register_changes(session)
                if self._clock.monotonic_s() >= self._beat_at_s:
                    self._beat(session)
                self._flush(session)
        except psycopg.Error as ex:
            self._lose(ex)
        report.gone.extend(
            self._reader.silent_since(self._clock.monotonic_s() - DEAD_AFTER_S)
        )
        return report

    def withdraw(self) -> None:
        """See `NodeLink`."""
        roles = tuple(role for role in self.facts.roles if role != SHARDS_ROLE)
        self.facts = msgspec.structs.replace(self.facts, roles=roles)
        self._is_changed = True
        self.wake()

    def wake(self) -> None:
        """See `NodeLink`."""
        with suppress(BlockingIOError, OSError):  # it is awake, or closed
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """See `NodeLink`."""
        session, self._session = self._session, None
        self._stop_leading()
        if session is not None:
            with suppress(psycopg.Error):
                payloads = self._writer.pack([(END_TOPIC, b"null")])
                session.pipeline(
                    [registry.leave(self.facts), *self._notifications(payloads)],
                    timeout_s=_STATEMENT_S,
                )
            session.close()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1

    # --- One turn --------------------------------------------------------------------------

    def _wait(self, timeout_s: float, report: NodesReport) -> None:
        """Wait until there is something to do, and hear the news.

        Raises:
            psycopg.Error: the connection is lost.
        """
        session = self._session
        due_s = self._retry_at_s if session is None else self._beat_at_s
        if session is not None and self._queue:
            due_s = min(due_s, self._flush_at_s)
        wait_s = min(timeout_s, due_s - self._clock.monotonic_s())
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        if session is not None:
            if self._hear(session, report):
                wait_s = 0.0
            poll.register(session.conn.fileno(), select.POLLIN)
        found = dict(poll.poll(max(0.0, wait_s) * 1_000))
        if self._wake_fd in found:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        if session is not None and len(found) > (self._wake_fd in found):
            self._hear(session, report)

    def _hear(self, session: BlockingSession, report: NodesReport) -> bool:
        """Take the payloads that have come; return whether there were any."""
        arrived = session.notifications(0.0)
        now_s = self._clock.monotonic_s()
        for notification in arrived:
            heard = self._reader.take(notification.extra, now_s)
            if heard is None:
                continue
            report.gone.extend(self._reader.predecessors(heard.incarnation, heard.node))
            if heard.is_lost:
                report.lost.append(heard.incarnation)
            for item in heard.items:
                if item.topic == END_TOPIC:
                    self._reader.forget(heard.incarnation)
                    report.news[:] = [n for n in report.news if n.incarnation != heard.incarnation]
                    report.gone.append(heard.incarnation)
                elif item.topic == _CHANGED_TOPIC:
                    self._beat_at_s = now_s  # which reads the registry
                elif item.topic != BEAT_TOPIC:
                    report.news.append(item)
        return bool(arrived)

    def _beat(self, session: BlockingSession) -> None:
        """Renew the row of this node, read the others, and try to lead if it is time.

        Raises:
            psycopg.Error
        """
        now_s = self._clock.monotonic_s()
        statements: list[Statement] = [
            registry.beat(self.facts), registry.holder(self.facts), registry.others(self.facts),
            *self._notifications(self._writer.pack([(BEAT_TOPIC, b"null")])),
        ]
        place = len(statements) + 1
        if self._has_shards:
            statements += [registry.durable(), registry.renew(self.facts, self.lease.id)]
        tries_to_lead = not self.leads and now_s >= self._lead_at_s
        if tries_to_lead:
            statements.append((_TRY_LOCK, (self._lead_key,)))
            self._lead_at_s = now_s + _LEAD_S
        elif self.leads:
            statements.append(registry.tidy())
        asked_s = self._clock.wall_ns() / NS_PER_S
        results = session.pipeline(statements, timeout_s=_STATEMENT_S)
        answered_s = self._clock.wall_ns() / NS_PER_S
        self._beat_at_s = now_s + HEARTBEAT_S
        self.others = registry.read_others(results[2])
        if tries_to_lead and results[-1].get_value(0, 0) == b"t":
            self.leads = True
            _log.info("nodes.leads", node=self.facts.name)
        has_row, has_holder = results[0].ntuples > 0, results[1].ntuples > 0
        problem = self._judge_name(session, has_row=has_row, has_holder=has_holder)
        if problem is None and has_row:
            problem = _clock_problem(asked_s, float(results[0].get_value(0, 0) or 0), answered_s)
        self.problem = problem
        if not self._has_shards:
            return
        if results[place].ntuples:
            self.lease = NodeLease(self.lease.id, now_s + LEASE_S - LEASE_MARGIN_S)
        else:
            self._take_lease(session)

    def _take_lease(self, session: BlockingSession) -> None:
        """Take another lease, unless another incarnation has the row.

        Raises:
            psycopg.Error
        """
        now_s = self._clock.monotonic_s()
        self._leases_taken += 1
        lease = f"{self.facts.incarnation}.{self._leases_taken}"
        results = session.pipeline(
            [registry.durable(), registry.take(self.facts, lease)], timeout_s=_STATEMENT_S
        )
        if results[1].ntuples:
            self.lease = NodeLease(lease, now_s + LEASE_S - LEASE_MARGIN_S)
            _log.info("nodes.lease_taken", node=self.facts.name, lease=lease)

    def _register_changes(self, session: BlockingSession) -> None:
        """Write the facts anew, and have the other nodes read them.

        Raises:
            psycopg.Error
        """
        self._is_changed = False
        payloads = self._writer.pack([(_CHANGED_TOPIC, b"null")])
        session.pipeline(
            [registry.register(self.facts), *self._notifications(payloads)],
            timeout_s=_STATEMENT_S,
        )

    def _stop_leading(self) -> None:
        """Forget the lock of a connection that is gone."""
        self.leads = False

    def _judge_name(
        self, session: BlockingSession, *, has_row: bool, has_holder: bool
    ) -> str | None:
        if not has_row and not has_holder:  # somebody has removed the row, or restored the database
            session.pipeline([registry.register(self.facts)], timeout_s=_STATEMENT_S)
        taken = not has_row and has_holder
        if taken and self.problem is None:
            _log.error("nodes.name_taken", node=self.facts.name,
                       hint="two servers have one name: set another PYLON_NODE for one of them")
        return f"another node has the name {self.facts.name}" if taken else None

    def _flush(self, session: BlockingSession) -> None:
        """Send the queued news, if it is time.

        Raises:
            psycopg.Error
        """
        now_s = self._clock.monotonic_s()
        if not self._queue or now_s < self._flush_at_s:
            return
        with self._lock:
            queue, self._queue, self._queue_bytes = self._queue, [], 0
            if self._has_dropped:
                self._writer.skip()
                self._has_dropped = False
        self._flush_at_s = now_s + NEWS_TICK_S
        payloads = self._writer.pack(queue)
        portion: list[bytes] = []
        for payload in payloads:
            portion.append(payload)
            if sum(map(len, portion)) >= _FLUSH_BYTES:
                session.pipeline(self._notifications(portion), timeout_s=_STATEMENT_S)
                portion = []
        if portion:
            session.pipeline(self._notifications(portion), timeout_s=_STATEMENT_S)
        metrics.NEWS_BYTES.inc(sum(map(len, payloads)))

    def _notifications(self, payloads: Sequence[bytes]) -> list[Statement]:
        return [(_NOTIFY, (self._channel, payload)) for payload in payloads]

    # --- The connection --------------------------------------------------------------------

    def _open(self) -> BlockingSession:
        session = self._connect()
        try:
            session.execute_script("SET synchronous_commit = off", timeout_s=_STATEMENT_S)
            self._channel = channel_name(session, NEWS)
            self._lead_key = lock_key(session, UPKEEP)
            session.execute_script(f'LISTEN "{self._channel}"', timeout_s=_STATEMENT_S)
            session.pipeline([registry.register(self.facts)], timeout_s=_STATEMENT_S)
            lineage = meta.get(session, "lineage") or ""
            self.salt = blake2b(lineage.encode(), digest_size=_SALT_BYTES, person=b"rates").digest()
        except BaseException:
            session.close()
            raise
        self._lead_at_s = 0.0
        return session

    def _reconnect(self) -> None:
        try:
            self._session = self._open()
            self._beat(self._session)
        except (psycopg.Error, PylonError, OSError) as ex:
            self._lose(ex)
            return
        _log.info("nodes.connected", tries=self._failures)
        self._failures = 0

    def _lose(self, error: Exception) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        if self.leads:
            _log.warning("nodes.leads_no_more", node=self.facts.name)
        self._stop_leading()
        if not self._failures:
            _log.warning("nodes.disconnected", error=type(error).__name__,
                         hint="rooms go on with the members of this node; it tries again until the "
                         "database answers")
        pause_s = retry_pause_s(self._failures, self._random.uniform)
        if self._has_shards:  # they stop if the lease is not renewed, and wait for the next one
            pause_s = min(pause_s, LEASE_RETRY_S)
        self._failures += 1
        self._retry_at_s = self._clock.monotonic_s() + pause_s


def _clock_problem(asked_s: float, database_s: float, answered_s: float) -> str | None:
    """Compare the clocks: sessions end by the node's, leases and events have the database's."""
    ahead_s = max(asked_s - database_s, 0.0) or min(answered_s - database_s, 0.0)
    if abs(ahead_s) <= CLOCK_SKEW_S:
        return None
    way = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"the clock of this machine is {abs(ahead_s):.0f} s {way} the database's: let chrony or "
        "systemd-timesyncd keep the time on both machines"
    )
