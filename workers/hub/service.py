"""Socket worker service: starts, serves and drains a ws, sse or shard worker.

On SIGUSR1 the worker stops accepting and keeps its connections. On SIGTERM it closes them all with
1001, waits for the close frames at most `limits.SOCKET_CLOSE_S`, and exits 0. The supervisor sends
both, in this order, when the server stops. On SIGUSR2, when others take the worker's place, it does
the same with 1012. It spreads the closes over PYLON_DRAIN_SPREAD_S, so that the clients do not come
back together; a SIGTERM meanwhile ends the spread.

Invariants: the worker reports ready only while it accepts. A greenlet that fails ends the process,
and the supervisor starts another one: a hub without its feed would silently send nothing. Log
events: worker.ready, worker.drained, worker.failed. Called by the servers of ws, sse and shards.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import gevent
from gevent.event import Event

from pylon import limits, log
from pylon.bus.changes import ChangesSubscriber
from pylon.bus.messages import SessionRevoked
from pylon.bus.passing import SocketReceiver
from pylon.bus.signals import SignalReceiver
from pylon.changelog.hint_journal import HintReader
from pylon.changelog.hints import CursorHints
from pylon.changelog.marks import MarkReader, marks_path
from pylon.runtime.interpreter import freeze
from workers.boot import WorkerContext, run_status
from workers.hub.acceptor import Acceptor
from workers.hub.admission import SubscriberAdmission
from workers.hub.close_codes import GOING_AWAY, SERVICE_RESTART
from workers.hub.feed import Feed
from workers.hub.heartbeat import Heartbeat
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.hub.related_replay import RelatedReplay
from workers.hub.replay import Replay
from workers.hub.start_cursors import StartCursors

_EXIT_DEFECT: Final = 70  # EX_SOFTWARE
_SPREAD_STEP_S: Final = 0.05
_HINTS_PERIOD_S: Final = 1.0  # so that the hub reads few records when a client connects
_IDLE_HINTS_PERIOD_S: Final = 5.0  # without a client: a wake-up costs 0.1 ms

_log = log.get_logger("sockets")


class ChangeStream:
    """The parts that deliver changes to the clients of one worker: feed, hints and signals."""

    def __init__(self, booted: WorkerContext, hub: Hub, admission: SubscriberAdmission) -> None:
        node = admission.node
        self._signals = SignalReceiver(booted.runtime, SessionRevoked)
        self._hub = hub
        self._admission = admission
        history = History(booted.reader_pool)
        config = booted.app.config
        self._hints = HintReader(
            booted.runtime.hints, booted.clock,
            CursorHints(booted.clock, limits.HINT_WINDOW_S),
        )
        self.feed = Feed(ChangesSubscriber(booted.runtime), history, hub)
        starts = StartCursors(
            self._hints, MarkReader(marks_path(Path(config.db_path))), history, booted.clock,
            lambda: node.has_others,
        )
        related = RelatedReplay(hub, booted.app.rules, booted.reader_pool, self.feed)
        self.replay = Replay(hub, self.feed, history, starts, related)
        hub.on_behind(lambda connection, cursor: admission.resume(connection, cursor, self.replay))

    def start(self, spawn: Callable[[Callable[[], NoReturn]], None]) -> None:
        """Move the feed to the head of the log, read all cursor hints, and start the greenlets."""
        self.feed.start()
        self._hints.refresh()
        for loop in (self.feed.run, self.feed.watch, self._receive_signals, self._read_hints):
            spawn(loop)

    def _read_hints(self) -> NoReturn:
        while True:
            occupied = self._hub.occupied.is_set()
            gevent.sleep(_HINTS_PERIOD_S if occupied else _IDLE_HINTS_PERIOD_S)
            self._hints.refresh()

    def _receive_signals(self) -> NoReturn:
        while True:
            signal_ = self._signals.receive()
            if isinstance(signal_, SessionRevoked):
                self._admission.callers.forget()
                if signal_.is_certain:
                    self._admission.sessions.end(signal_.family)
                else:
                    self._admission.sessions.recheck(signal_.family)


class Service:
    """Runs one worker from its first accept to its exit."""

    def __init__(
        self, booted: WorkerContext, hubs: Sequence[Hub], acceptor: Acceptor,
        admission: SubscriberAdmission, *,
        passed: Sequence[SocketReceiver] = (), at_drain: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            passed: receive connections that other processes have accepted.
            at_drain: called after the worker stopped accepting, before it closes connections.
        """
        self._booted = booted
        self._hubs = hubs
        self._acceptor = acceptor
        self._passed = passed
        self._admission = admission
        self._at_drain = at_drain
        self._stop = Event()
        self._hurry = Event()  # the rest of the sockets is to be closed at once
        self._close_code = GOING_AWAY
        self._accepting = False

    def spawn(self, loop: Callable[[], NoReturn]) -> None:
        """Run `loop` in a greenlet whose failure ends the process."""
        gevent.spawn(loop).link_exception(_exit_failed)

    def run(self, changes: ChangeStream | None = None) -> NoReturn:
        """Serve until SIGTERM or SIGUSR2, then exit 0."""
        gevent.signal_handler(signal.SIGUSR1, self.stop_accepting)
        gevent.signal_handler(signal.SIGTERM, self._end)
        gevent.signal_handler(signal.SIGUSR2, self._give_way)
        gevent.signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C: the supervisor drains
        self.spawn(self._report)
        max_life_s = self._booted.app.config.socket_max_life_s
        for hub in self._hubs:
            heartbeat = Heartbeat(hub, self._booted.clock, max_life_s, self._booted.app.random)
            self.spawn(heartbeat.run)
        if changes is not None:
            changes.start(self.spawn)
        self.spawn(self._admission.sessions.run)
        self._admission.node.watch(self._booted.runtime, self._hubs, self.spawn)
        self._acceptor.start()
        for receiver in self._passed:
            receiver.start()
        self._accepting = True
        self._booted.status_changed.set()
        freeze()
        _log.info("worker.ready", port=self._acceptor.port)
        self._stop.wait()
        closed = self.drain()
        _log.info("worker.drained", sockets=closed)
        _exit_now(0)

    def _end(self) -> None:
        """SIGTERM."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _give_way(self) -> None:
        """SIGUSR2: other workers take this one's place, and its clients may connect at once."""
        self._close_code = SERVICE_RESTART
        self._stop.set()

    def stop_accepting(self) -> None:
        """Close this worker's descriptor of the listening socket; the supervisor keeps its own."""
        self._admission.draining = True
        self._accepting = False
        self._booted.status_changed.set()
        self._acceptor.close()
        for receiver in self._passed:
            receiver.close()

    def drain(self) -> int:
        """Close every connection with 1001, or 1012. Return how many there were."""
        self.stop_accepting()
        waiting = [(hub, connection) for hub in self._hubs for connection in hub.connections]
        if self._at_drain is not None:
            self._at_drain()
        spread_s = min(
            self._booted.app.config.drain_spread_s, len(waiting) / limits.DRAIN_CLOSES_PER_S
        )
        steps = max(1, round(spread_s / _SPREAD_STEP_S))
        for step in range(steps):
            for hub, connection in waiting[step::steps]:
                connection.close(
                    self._close_code, "server is going away",
                    awaits_peer=hub.transport.expects_replies,
                )
            if step < steps - 1:
                self._hurry.wait(_SPREAD_STEP_S)
        clock = self._booted.clock
        deadline_s = clock.monotonic_s() + limits.SOCKET_CLOSE_S
        while self._sockets() and clock.monotonic_s() < deadline_s:
            gevent.sleep(0.01)
        for hub in self._hubs:
            for connection in hub.connections:
                connection.abort()
        return len(waiting)

    def _sockets(self) -> int:
        return sum(len(hub) for hub in self._hubs)

    def _report(self) -> NoReturn:
        run_status(self._booted, lambda: self._accepting, self._sockets)


def _exit_failed(greenlet: gevent.Greenlet) -> None:
    _log.exception("worker.failed", error=greenlet.exception)
    _exit_now(_EXIT_DEFECT)


def _exit_now(code: int) -> NoReturn:
    """End the process now: a normal exit could wait for threads of ZeroMQ and gevent."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
