"""pylon.clock: the system's clock runs, the work clock counts the processor's time."""

from __future__ import annotations

import threading

from pylon.clock import CpuTimeClock, SystemClock


def test_the_system_clock_runs() -> None:
    clock = SystemClock()
    before = clock.monotonic_s()
    assert clock.monotonic_s() >= before
    assert clock.wall_ns() > 1_700_000_000 * 10**9


def test_the_work_clock_counts_work_and_hardly_waiting() -> None:
    clock, wall = CpuTimeClock(), SystemClock()
    started_s, wall_started_s = clock.monotonic_s(), wall.monotonic_s()
    threading.Event().wait(0.1)
    waited_s = clock.monotonic_s() - started_s
    assert 0 < waited_s < (wall.monotonic_s() - wall_started_s) / 2
    while clock.monotonic_s() - started_s < waited_s + 0.01:
        assert wall.monotonic_s() - wall_started_s < 10
