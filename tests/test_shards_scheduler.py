"""workers.shards.scheduler and alarm: who is due is stepped, and who takes too long is cut."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from pylon.clock import ManualClock
from pylon.realtime.shard import TickOverrun
from pylon.realtime.snapshots import Format
from tests.support.realtime import Client, Counters, Wire, registered, shard_of
from workers.shards.alarm import Alarm, Guard
from workers.shards.scheduler import Scheduler

TICK_S = 0.05


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    before = signal.getsignal(signal.SIGALRM)
    made = Alarm()
    made.install()
    yield made
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_who_is_due_is_stepped_and_the_heap_stays_small() -> None:
    clock = ManualClock()
    stepped: list[Any] = []
    scheduler = Scheduler(clock, lambda shard, step: stepped.append(step.ticked))
    with registered(Counters) as kind:
        shard = shard_of(kind, now_s=clock.monotonic_s())
        client = Client("ada", Wire(Format.JSON))
        for _ in range(1_000):  # comes and goes: each time it is due at another time
            shard.subscribe(client, clock.monotonic_s())
            scheduler.changed(shard)
            clock.advance(0.000_1)
            shard.unsubscribe(client, clock.monotonic_s())
            scheduler.changed(shard)
        assert len(scheduler._heap) < 100
        shard.subscribe(client, clock.monotonic_s())
        scheduler.changed(shard)
        for _ in range(3):
            clock.advance(TICK_S)
            scheduler.step_due()
        assert client.ticks == [1, 2, 3]
        assert stepped.count(True) == 3


def test_what_takes_too_long_is_cut_and_a_stale_alarm_cuts_nothing(alarm: Alarm) -> None:
    guard = Guard(alarm, 0.02)
    with pytest.raises(TickOverrun, match=r"0\.02 s"), guard:
        while True:
            pass
    with guard:
        pass
    alarm._ring(signal.SIGALRM, None)  # late by one
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_waits_in_a_tick_is_cut_itself_and_nobody_else(alarm: Alarm) -> None:
    def waits() -> str:
        try:
            with Guard(alarm, 0.02):
                gevent.sleep(60)
        except TickOverrun:
            return "cut"
        return "not cut"

    waiting = gevent.spawn(waits)
    other = gevent.spawn(gevent.sleep, 0.001)
    waiting.join(10)
    other.join(10)
    assert waiting.value == "cut"
    assert other.successful()
