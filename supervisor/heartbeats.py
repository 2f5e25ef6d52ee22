"""Heartbeats: the newest status of each worker, and the merged metrics of all workers.

A thread takes heartbeats from the bus. The main loop and the threads of control connections read
them. A worker counts as ready while its newest heartbeat is fresh and says that it is ready.

Invariant: one lock guards all state, and no method waits for anything else while it holds the lock.
Made by `supervisor.main`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

import msgspec

from pylon import limits
from pylon.bus.messages import WorkerStatus
from pylon.bus.status import StatusReceiver
from pylon.clock import Clock
from pylon.metrics import Merged
from pylon.metrics.wire import Family

_POLL_S: Final = 5.0


class Beat(msgspec.Struct, frozen=True):
    """The newest heartbeat of one process; `at_s` is the monotonic time of its arrival."""

    role: str
    worker: str
    pid: int
    ready: bool
    connections: int
    at_s: float


class Heartbeats:
    """The heartbeats of all workers."""

    def __init__(
        self, clock: Clock, changed: Callable[[], None],
        used_sessions: Callable[[list[str]], None] = lambda _: None,
        spent_rates: Callable[[list[tuple[int, float]]], None] = lambda _: None,
    ) -> None:
        """
        Args:
            changed: the thread calls it when the readiness or the pid of a worker changes.
            used_sessions: the thread calls it with the sessions that a heartbeat names.
            spent_rates: the thread calls it with what clients have spent of their rates.
        """
        self._clock = clock
        self._changed = changed
        self._used_sessions = used_sessions
        self._spent_rates = spent_rates
        self._lock = threading.Lock()
        self._beats: dict[tuple[str, str], Beat] = {}
        self._merged = Merged()
        self._replaced: list[Beat] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._receiver: StatusReceiver | None = None

    def start(self, receiver: StatusReceiver) -> None:
        """Take heartbeats from `receiver` in a thread, which then owns it."""
        self._receiver = receiver
        self._thread = threading.Thread(
            target=self._run, args=(receiver,), name="heartbeats", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None and self._receiver is not None:
            self._receiver.interrupt()
            self._thread.join()

    def take(self, status: WorkerStatus) -> None:
        """Note a heartbeat."""
        key = (status.role, status.worker)
        beat = Beat(
            status.role, status.worker, status.pid, status.ready, status.connections,
            self._clock.monotonic_s(),
        )
        with self._lock:
            before = self._beats.get(key)
            self._beats[key] = beat
            if before is not None and before.pid != beat.pid:
                self._replaced.append(before)  # its successor was quicker than `forget_dead`
            self._merged.update(status)
        if status.used_sessions:
            self._used_sessions(status.used_sessions)
        if status.spent_rates:
            self._spent_rates(status.spent_rates)
        if before is None or (before.ready, before.pid) != (beat.ready, beat.pid):
            self._changed()

    def list_beats(self, role: str) -> list[Beat]:
        """Return the newest heartbeat of each worker of the role, however old."""
        with self._lock:
            return [beat for beat in self._beats.values() if beat.role == role]

    def ready_pids(self, role: str) -> list[int]:
        """Return the pids of the workers of the role that are ready now."""
        fresh_s = self._clock.monotonic_s() - limits.HEARTBEAT_FRESH_S
        return sorted(b.pid for b in self.list_beats(role) if b.ready and b.at_s >= fresh_s)

    def forget(self, role: str, worker: str) -> None:
        """Forget the heartbeat and the metrics of a worker whose process has ended."""
        with self._lock:
            self._beats.pop((role, worker), None)
            self._merged.forget(role, worker)

    def forget_dead(self) -> list[Beat]:
        """Forget every process that no longer exists.

        The workers of the HTTP role are children of the arbiter, so the supervisor does not reap
        them.

        Returns:
            The last heartbeats of these processes, and of those that a successor of the same name
            has replaced since the last call.
        """
        with self._lock:
            beats = list(self._beats.values())
            replaced, self._replaced = self._replaced, []
        dead = [beat for beat in beats if not _exists(beat.pid)]
        for beat in dead:
            self.forget(beat.role, beat.worker)
        return replaced + dead

    def families(self, own: list[Family]) -> list[Family]:
        """Return the merged metrics of all workers and of the supervisor (`own`)."""
        with self._lock:
            return self._merged.families(own)

    def _run(self, receiver: StatusReceiver) -> None:
        while not self._ended.is_set():
            status = receiver.receive(_POLL_S)
            if status is not None:
                self.take(status)
        receiver.close()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
