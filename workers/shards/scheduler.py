"""The clockwork: calls each shard's `step` when it is due, and nobody's before.

One greenlet for all shards of the process, and a heap of due times. A shard that sleeps is not
in the heap, so thousands of them cost nothing; whoever wakes one says so with `changed`. Steps
are run one after the other: a tick holds up the process for as long as it runs, so a tick past
its budget is cut by an alarm (SIGALRM raises `TickOverrun` into it) and its shard stopped.

Metrics: pylon_shard_ticks_total, pylon_shard_tick_seconds, pylon_shard_lateness_seconds,
pylon_shard_inputs_total, pylon_shard_frames_total.

Invariants: `run` ends never; no shard is stepped while another is. The alarm is armed only
while a step runs. Called by `workers.shards.house`.
"""

from __future__ import annotations

import heapq
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

import gevent
from gevent.event import Event

from pylon import metrics
from pylon.clock import Clock
from pylon.realtime.shard import Shard, TickOverrun

_LONGEST_WAIT_S: Final = 3_600.0
_STEPS_A_TURN: Final = 64  # then sockets are looked after


class Scheduler:
    """The clockwork of one process."""

    def __init__(self, clock: Clock, stepped: Callable[[Shard], None]) -> None:
        """Args: `stepped` is told of each shard that has done a tick or has stopped."""
        self._clock = clock
        self._stepped = stepped
        self._due: dict[Shard, float] = {}  # what of the heap is true
        self._heap: list[tuple[float, int, Shard]] = []
        self._pushed = 0
        self._wake = Event()
        self._alarm = _Alarm()

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
        if self._heap[0][0] == due_s:
            self._wake.set()

    def run(self) -> NoReturn:
        """Step what is due, for ever."""
        self._alarm.install()
        while True:
            self.step_due()
            wait_s = _LONGEST_WAIT_S
            if self._heap:
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
            if due_s > now_s:
                break
            heapq.heappop(self._heap)
            del self._due[shard]
            self._step(shard, now_s)
            steps += 1
        return steps

    def _step(self, shard: Shard, now_s: float) -> None:
        self._alarm.budget_s = shard.kind.config.tick_budget_s
        step = shard.step(now_s, self._alarm)
        if step.ticked:
            metrics.SHARD_TICKS.inc()
            metrics.SHARD_LATENESS.observe(step.late_s)
            metrics.SHARD_TICK.observe(self._clock.monotonic_s() - now_s)
            metrics.SHARD_INPUTS.inc(step.inputs)
            metrics.SHARD_FRAMES.inc(step.frames)
        self.changed(shard)
        self._stepped(shard)


class _Alarm:
    """The budget of a tick, as a context manager around the app's code."""

    __slots__ = ("_armed", "budget_s")

    def __init__(self) -> None:
        self.budget_s = 0.0  # 0: any time
        self._armed = False

    def install(self) -> None:
        """Take SIGALRM. Python runs the handler in whatever the main thread is doing."""
        signal.signal(signal.SIGALRM, self._ring)

    def __enter__(self) -> None:
        self._armed = True
        if self.budget_s:
            signal.setitimer(signal.ITIMER_REAL, self.budget_s)

    def __exit__(self, *raised: object) -> None:
        self._armed = False
        if self.budget_s:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            raise TickOverrun(f"the tick took longer than its budget of {self.budget_s:g} s")
