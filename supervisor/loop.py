"""The main loop of the supervisor: takes events from a queue and handles them in one thread.

Handlers of signals only put an event into the queue. SIGTERM and SIGINT begin the drain; a second
one cuts it short. SIGHUP reloads (`supervisor.generations`).
SIGCHLD makes the loop reap and restart children at once. Every two seconds, more often
while workers start, and when a state changes, the loop sends a `RolesReport` to all workers and the
status to systemd. The report says for each role how many workers are ready.

Invariant: only the main thread handles events, starts children and reaps them. Called by
`supervisor.main` and `supervisor.drain`.
"""

from __future__ import annotations

import queue
import signal
from types import FrameType
from typing import Final

import pylon
from pylon import log, metrics
from pylon.bus.messages import NodeState, RolesReport, RoleState
from pylon.roles import PORT_BY_ROLE, ROLE_BY_NAME
from pylon.storage.nodes import NodeLease
from supervisor.bus_watch import BusWatch
from supervisor.children import RoleView
from supervisor.components import Components
from supervisor.events import (
    Broken,
    ChangeAsked,
    Event,
    Events,
    RolesChanged,
    SignalArrived,
    StopAsked,
)
from supervisor.log_rotation import LogRotation
from supervisor.memory_guard import MemoryGuard

_log = log.get_logger("supervisor")

_WAIT_S: Final = 1.0  # the loop sleeps no longer than this; an event wakes it
_REPORT_PERIOD_S: Final = 2.0  # `pylon.api.admin.readiness.REPORT_FRESH_S` is longer
_UNSETTLED_PERIOD_S: Final = 0.2  # a worker that starts may miss the first reports: it connects
_WATCHDOG_PERIOD_S: Final = 1.0
_AWAY_S: Final = 1.0  # a connection that is made anew at once is no outage
_EXTEND_S: Final = 15.0
_ENDS: Final = (signal.SIGTERM, signal.SIGINT)


def queue_signals(events: Events) -> None:
    """Turn signals into events from now on. Call it in the main thread only."""

    def handler(number: int, _frame: FrameType | None) -> None:
        events.put(SignalArrived(number))

    for number in (*_ENDS, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


class Loop:
    """The loop of one run. `main` calls `pump` until it must stop, then `drain` calls it."""

    def __init__(self, parts: Components, started_s: float) -> None:
        self._parts = parts
        self._started_s = started_s
        self._report_at_s = 0.0
        self._watchdog_at_s = 0.0
        self._memory_guard = MemoryGuard(
            parts.children, parts.heartbeats, parts.clock, parts.config.worker_memory_mib,
            parts.config.drain_s,
        )
        self._bus_watch = BusWatch(parts.runtime, parts.clock, parts.generations.renew)
        self._log_rotation = LogRotation(parts.config.db_path, parts.config.log_max_bytes)
        self._announced: tuple[object, ...] | None = None
        self._said_ready = False
        self._were_ready: set[str] = set()  # roles that had all their workers once
        self.stop_asked = False
        self.cut_short = False
        self.draining = False
        self.broken: BaseException | None = None

    def pump(self, wait_s: float = _WAIT_S) -> None:
        """Wait for an event, `wait_s` at most. Handle all events, tend the children, report."""
        now_s = self._parts.clock.monotonic_s()
        due_s = self._parts.children.next_due_s()
        due_s = self._report_at_s if due_s is None else min(due_s, self._report_at_s)
        wait_s = min(wait_s, max(0.0, due_s - now_s))
        try:
            event = self._parts.events.get(timeout=min(wait_s, _WAIT_S))
            while True:
                self._handle(event)
                event = self._parts.events.get_nowait()
        except queue.Empty:
            pass
        self._parts.children.count_dead_workers(self._parts.heartbeats.forget_dead())
        self._parts.children.tick()
        if not self.draining:
            self._parts.generations.tick()
            self._bus_watch.look()
        self._memory_guard.look()
        problem = self._parts.children.problem()
        if problem is not None and self.broken is None:
            self.broken = RuntimeError(problem)
        self._parts.marks.record(self._parts.head)
        self.report()

    def report(self) -> None:
        """Send the state of the roles to workers and systemd, if it is due or has changed."""
        parts = self._parts
        now_s = parts.clock.monotonic_s()
        views = parts.children.views()
        problem = (
            parts.writer.find_problem() or parts.flusher.store_problem
            or parts.disk_guard.find_problem()
        )
        checks = self._node_checks()
        failed = frozenset(name for name, text in checks.items() if text is not None)
        nodes = parts.nodes
        living = () if nodes is None else nodes.living
        lease = NodeLease() if nodes is None else nodes.lease
        progress = (views, self.draining, problem, failed, living, lease)
        if progress == self._announced and now_s < self._report_at_s:
            return
        self._announced = progress
        is_settled = parts.generations.phase is None and all(
            view.ready >= view.wanted for view in views.values()
        )
        self._report_at_s = now_s + (_REPORT_PERIOD_S if is_settled else _UNSETTLED_PERIOD_S)
        self._log_rotation.look()
        self._were_ready |= {role for role, view in views.items() if view.ready >= view.wanted}
        states = {
            role: RoleState(view.wanted, view.ready, self._is_needed(role))
            for role, view in views.items()
        }
        parts.signals.send(RolesReport(
            states, self.draining, problem, checks, parts.pending.count
        ))
        if parts.relay is not None:
            is_cut_off = parts.relay.away_s >= parts.config.database_outage_s
            node = "" if nodes is None else living[0].name
            parts.signals.send(NodeState(is_cut_off, node, living, lease.id, lease.until_s))
        for role, view in views.items():
            metrics.WORKERS_READY.labels(role).set(view.ready)
            metrics.WORKERS_WANTED.labels(role).set(view.wanted)
        self._tell_systemd(views, now_s)

    def _node_checks(self) -> dict[str, str | None]:
        """Return the checks of a node whose database is on another machine."""
        relay = self._parts.relay
        if relay is None:
            return {}
        is_away = relay.away_s > _AWAY_S
        nodes = self._parts.nodes
        return {
            "node": None if nodes is None else nodes.find_problem(),
            "database": "the database does not answer" if is_away else None,
            "relay": relay.find_problem(),
        }

    def is_ready(self) -> bool:
        """Return whether every role has all its workers ready."""
        return all(v.ready >= v.wanted for v in self._parts.children.views().values())

    def _is_needed(self, role: str) -> bool:
        """Return whether this node is ready only with all workers of the role.

        A start waits for all roles. Later a role that is not essential may fail: its requests
        answer 503, and the node goes on with all others.
        """
        return ROLE_BY_NAME[role].is_essential or role not in self._were_ready

    def _tell_systemd(self, views: dict[str, RoleView], now_s: float) -> None:
        notifier = self._parts.notifier
        if self.draining:
            notifier.extend_timeout(_EXTEND_S)
            return
        ready = all(
            view.ready >= view.wanted for role, view in views.items() if self._is_needed(role)
        )
        if ready and not self._said_ready:
            self._said_ready = True
            notifier.ready()
            self._log_ready(now_s)
        notifier.status(", ".join(f"{r} {v.ready}/{v.wanted}" for r, v in views.items()))
        period_s = notifier.watchdog_period_s
        if ready and period_s is not None and now_s >= self._watchdog_at_s:
            notifier.watchdog()
            self._watchdog_at_s = now_s + min(period_s, _REPORT_PERIOD_S)

    def _log_ready(self, now_s: float) -> None:
        bind = self._parts.config.bind
        is_any = bind in ("0.0.0.0", "::")  # nosec B104 # it is printed, nothing is bound
        host = "localhost" if is_any else f"[{bind}]" if ":" in bind else bind
        urls = {
            name: f"{PORT_BY_ROLE[name].scheme}://{host}:{port}"
            for name, port in self._parts.listeners.ports.items()
        }
        _log.info("ready", version=pylon.__version__, **urls,
                  took_s=round(now_s - self._started_s, 3))

    def _handle(self, event: Event) -> None:
        match event:
            case SignalArrived(number) if number in _ENDS:
                _log.info("signal", name=signal.Signals(number).name)
                self.cut_short = self.cut_short or self.draining or self.stop_asked
                self.stop_asked = True
            case SignalArrived(signal.SIGHUP):
                self._parts.generations.hang_up()
            case ChangeAsked(change):
                self._parts.generations.begin(change)
            case StopAsked():
                self.stop_asked = True
            case Broken(error):
                self.broken = self.broken or error
            case SignalArrived() | RolesChanged():
                self._report_at_s = 0.0  # `pump` reports, and reaps children
