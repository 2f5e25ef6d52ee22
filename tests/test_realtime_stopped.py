"""Faults of a simulation: which of them stop its shard, and what is kept of it."""

from __future__ import annotations

from typing import Any

import pytest

from pylon.auth_context import AuthContext
from pylon.errors import SubscribeFailed
from pylon.realtime.shard import FAILED, TickOverrun
from pylon.realtime.snapshots import Format
from pylon.realtime.state import SimState
from tests.support.realtime import Client, Counters, Wire, registered, run_ticks, shard_of

TICK_S = 0.05


@pytest.fixture
def wire() -> Wire:
    return Wire(Format.JSON)


class Faulty(Counters):
    """Fails where it is told to."""

    fault: str = ""
    error: BaseException = ValueError("no")

    def tick(self, dt_s: float) -> None:
        self._fail_in("tick")

    def snapshot(self) -> Any:
        self._fail_in("snapshot")
        return super().snapshot()

    def joined(self, sid: str, auth: AuthContext) -> None:
        self._fail_in("joined")
        super().joined(sid, auth)

    def left(self, sid: str) -> None:
        self._fail_in("left")
        super().left(sid)

    def is_finished(self) -> bool:
        self._fail_in("is_finished")
        return False

    def _fail_in(self, place: str) -> None:
        if self.fault == place:
            raise self.error


@pytest.mark.parametrize("place", ["tick", "snapshot", "is_finished"])
@pytest.mark.parametrize("error", [
    ValueError("no"), RecursionError(), TickOverrun("slow"), SystemExit(1),
])
def test_a_fault_stops_the_shard_and_keeps_the_traceback(
    wire: Wire, place: str, error: BaseException
) -> None:
    with registered(Faulty) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        run_ticks(shard, 0.0, 1)
        shard._simulation.state.fault, shard._simulation.state.error = place, error
        shard.step(TICK_S)
        assert not shard.running
        assert ada.ended == (FAILED, f"the simulation failed: {type(error).__name__}")
        assert shard.traceback is not None
        assert "_fail_in" in shard.traceback
        assert shard.save() is None
        assert not shard.step(1.0).ticked


@pytest.mark.parametrize("place", ["joined", "left"])
def test_fault_in_a_subscription_stops_it_too(wire: Wire, place: str) -> None:
    with registered(Faulty) as kind:
        shard = shard_of(kind)
        ada, bob = Client("ada", wire), Client("bob", wire)
        shard.subscribe(ada, 0.0)
        shard.subscribe(bob, 0.0)
        shard._simulation.state.fault = place
        if place == "left":
            shard.unsubscribe(bob, 0.0)
        else:
            with pytest.raises(SubscribeFailed, match="stopped"):
                shard.subscribe(Client("cyd", wire), 0.0)
        assert not shard.running
        assert ada.ended is not None


def test_a_state_that_cannot_be_made_is_a_stopped_shard() -> None:
    class Broken(SimState):
        def __init__(self, context: Any) -> None:
            raise KeyError("x")

    with registered(Broken) as kind:
        shard = shard_of(kind)
        assert not shard.running
        assert shard.traceback is not None
        assert shard.save() is None
