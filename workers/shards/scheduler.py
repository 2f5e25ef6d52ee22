"""The clockwork: calls each shard's `step` when it is due, and nobody's before.

One greenlet for all shards of the process, and a heap of due times. A shard that sleeps is not
in the heap, so thousands of them cost nothing; whoever wakes one says so with `changed`. Steps
are run one after the other: a tick holds up the process for as long as it runs, so one past its
budget is cut by an alarm (`workers.shards.alarm`) and its shard stopped.

Metrics: pylon_shard_ticks_total, pylon_shard_tick_duration_seconds,
pylon_shard_tick_lateness_seconds, pylon_shard_inputs_total, pylon_shard_snapshots_sent_total.

Invariants: `run` ends never; no shard is stepped while another is; the heap is at most twice as
long as there are shards in it. Called by `workers.shards.registry`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, NoReturn

import gevent
from gevent.event import Event

from pylon import metrics
from pylon.clock import Clock
from pylon.realtime.kinds import Kind
from pylon.realtime.shard import Shard, Step
from workers.shards.alarm import Alarm, Guard

_LONGEST_WAIT_S: Final = 3_600.0
_MAY_NOT_S: Final = 0.25  # until it is asked again whether shards may tick
_STALE_ABOVE: Final = 64
_STEPS_A_TURN: Final = 64  # then sockets are looked after


class Scheduler:
    """The clockwork of one process."""

    def __init__(
        self, clock: Clock, stepped: Callable[[Shard, Step], None],
        may_step: Callable[[], bool] | None = None,
    ) -> None:
        """
        Args:
            stepped: is called with each shard that has done a tick or has stopped.
            may_step: whether shards may tick now; None: always.
        """
        self._may_step = may_step
        self._clock = clock
        self._stepped = stepped
        self._due: dict[Shard, float] = {}  # what of the heap is true
        self._heap: list[tuple[float, int, Shard]] = []
        self._pushed = 0
        self._wake = Event()
        self._alarm = Alarm()

    def guard(self, kind: Kind) -> Guard:
        """Return the context manager that a shard of this kind enters around the app's code."""
        return Guard(self._alarm, kind.config.tick_budget_s)

    def changed(self, shard: Shard) -> None:
        """Its next due time may be another one now: somebody came, went, or sent something."""
        due_s = shard.due_s()
        if due_s is None:
            self._due.pop(shard, None)
            return
        if self._due.get(shard) == due_s:
            return
        self._due[shard] = due_s
        self._pushed += 1
        heapq.heappush(self._heap, (due_s, self._pushed, shard))
        if len(self._heap) > 2 * len(self._due) + _STALE_ABOVE:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        if self._heap[0][0] == due_s:
            self._wake.set()

    def install(self) -> None:
        """Have the alarm, for this process. Once, before any shard is made."""
        self._alarm.install()

    def run(self) -> NoReturn:
        """Step what is due, for ever."""
        while True:
            self.step_due()
            wait_s = _LONGEST_WAIT_S
            if self._may_step is not None and not self._may_step():
                wait_s = _MAY_NOT_S
            elif self._heap:
                wait_s = self._heap[0][0] - self._clock.monotonic_s()
            if wait_s > 0:
                self._wake.wait(wait_s)
                self._wake.clear()
            else:
                gevent.sleep(0)

    def step_due(self) -> int:
        """Step the shards whose time has come, a bounded number; how many there were."""
        steps = 0
        while self._heap and steps < _STEPS_A_TURN:
            due_s, _, shard = self._heap[0]
            if self._due.get(shard) != due_s:  # it was moved
                heapq.heappop(self._heap)
                continue
            now_s = self._clock.monotonic_s()
            if due_s > now_s or (self._may_step is not None and not self._may_step()):
                break
            heapq.heappop(self._heap)
            del self._due[shard]
            self._step(shard, now_s)
            steps += 1
        return steps

    def _step(self, shard: Shard, now_s: float) -> None:
        step = shard.step(now_s)
        if step.ticked:
            metrics.SHARD_TICKS.inc()
            metrics.SHARD_LATENESS.observe(step.late_s)
            metrics.SHARD_TICK.observe(self._clock.monotonic_s() - now_s)
            metrics.SHARD_INPUTS.inc(step.inputs)
            metrics.SHARD_FRAMES.inc(step.frames)
        self.changed(shard)
        self._stepped(shard, step)
