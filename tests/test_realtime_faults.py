"""pylon.realtime.shard and what an app or a client does wrong: nobody else is harmed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest

from pylon.auth_context import AuthContext
from pylon.errors import InputRejected, SubscribeFailed, SubscribeRefused
from pylon.realtime.shard import FAILED
from pylon.realtime.snapshots import Format
from pylon.realtime.state import SimState
from tests.support.realtime import Client, Counters, Wire, registered, shard_of

TICK_S = 0.05


@pytest.fixture
def wire() -> Wire:
    return Wire(Format.JSON)


def test_an_input_that_fails_is_refused_and_the_simulation_goes_on(wire: Wire) -> None:
    class Fragile(Counters):
        def apply_input(self, sid: str, input: Any, received_at_s: float) -> None:  # noqa: A002
            if input.by == 13:
                raise KeyError("no such thing")
            super().apply_input(sid, input, received_at_s)

    with registered(Fragile) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        for seq, by in enumerate((13, 2), 1):
            shard.submit("ada", ada.auth, b'{"by":%d}' % by, 0.0, sink=ada, client_seq=seq)
        step = shard.step(0.0)
        assert shard.running
        assert ada.rejected == [(1, "the input failed")]
        assert ada.last["counters"] == {"sum": 2}
        assert step.failure is not None
        assert "no such thing" in step.failure
        assert shard.step(TICK_S).failure is None


def test_inputs_of_who_has_left_are_not_applied(wire: Wire) -> None:
    with registered(Counters) as kind:
        shard = shard_of(kind)
        ada, bob = Client("ada", wire), Client("bob", wire)
        shard.subscribe(ada, 0.0)
        shard.subscribe(bob, 0.0)
        shard.submit("ada", ada.auth, b'{"by":1}', 0.0, sink=ada)
        shard.submit("bob", bob.auth, b'{"by":2}', 0.0, sink=bob)
        shard.unsubscribe(ada, 0.0)
        assert shard.step(0.0).inputs == 1
        assert bob.last["counters"] == {"sum": 2}


def test_an_idle_shard_waits_for_those_who_may_come_back(wire: Wire) -> None:
    with registered(
        Counters, tick_when_empty=True, idle_ticks_before_shutdown=2, allow_reconnection_s=1
    ) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        shard.step(0.0)
        shard.unsubscribe(ada, 0.0)
        while (due_s := shard.due_s()) is not None:
            shard.step(due_s)
            assert shard.running or due_s >= 1.0
        assert shard.stopped_because == "idle"


@pytest.mark.parametrize("value", [
    float("nan"), float("inf"), msgspec.msgpack.Ext(1, b"x"), {1.5: {"x": float("nan")}},
])
def test_what_json_cannot_say_comes_in_as_no_messagepack_either(wire: Wire, value: Any) -> None:
    class Echo(SimState):
        said: Any = None

        def apply_input(self, sid: str, input: Any, received_at_s: float) -> None:  # noqa: A002
            self.said = input

        def snapshot(self) -> Any:
            return {"said": self.said}

    with registered(Echo) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        raw = msgspec.msgpack.encode({"x": value})
        with suppress(InputRejected):
            shard.submit("ada", ada.auth, raw, 0.0, sink=ada, format=Format.MSGPACK)
        shard.step(0.0)
        assert shard.running
        assert ada.last["said"] in (None, {"x": None}, {"x": {"1.5": {"x": None}}})


@pytest.mark.parametrize("raw", [
    b'{"x":"' + b"a" * 70_000 + b'"}', b'{"x":' + b"[" * 100 + b"]" * 100 + b"}",
])
def test_inputs_are_bounded_in_size_and_depth(wire: Wire, raw: bytes) -> None:
    class Any_(Counters):  # noqa: N801
        Input = dict[str, Any]

    with registered(Any_) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        with pytest.raises(InputRejected, match=r"larger than|deeper than"):
            shard.submit("ada", ada.auth, raw, 0.0, sink=ada)


class Recorder:
    """Asks for the digest that a recording ends with."""

    def __init__(self) -> None:
        self.ended: list[str | None] = []

    def joined(self, tick: int, sid: str, auth: AuthContext) -> None: ...
    def left(self, tick: int, sid: str) -> None: ...
    def ticking(self, tick: int, dt_s: float, inputs: Any) -> None: ...
    def ticked(self, simulation: Any) -> None: ...

    def stopped(self, tick: int, digest: str | None) -> None:
        self.ended.append(digest)


@pytest.mark.parametrize("ends", [True, False])
def test_a_recorded_shard_whose_snapshot_fails_stops_like_any_other(
    wire: Wire, *, ends: bool
) -> None:
    class Blind(Counters):
        blind = False

        def snapshot(self) -> Any:
            if self.blind:
                raise ValueError("nothing to see")
            return super().snapshot()

    with registered(Blind) as kind:
        recorder = Recorder()
        shard = shard_of(kind, recorder=recorder)
        shard.subscribe(Client("ada", wire), 0.0)
        shard.step(0.0)
        shard._simulation.state.blind = True  # type: ignore[union-attr]
        if ends:
            shard.stop(1000, "ended")
        else:
            shard.step(TICK_S)
        assert not shard.running
        assert recorder.ended == [None]
        assert shard.traceback is not None
        assert "nothing to see" in shard.traceback


def test_a_refusal_in_joined_leaves_nobody_behind(wire: Wire) -> None:
    class Picky(Counters):
        def joined(self, sid: str, auth: AuthContext) -> None:
            raise SubscribeRefused("too late")

    with registered(Picky) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        with pytest.raises(SubscribeFailed, match="stopped"):
            shard.subscribe(ada, 0.0)
        assert (shard.running, shard.seats_taken) == (False, 0)
        assert ada.ended == (FAILED, "the simulation failed: SubscribeRefused")


@pytest.mark.parametrize("place", [
    "__init__", "authorize_subscribe", "joined", "authorize_input", "apply_input", "tick",
    "snapshot", "is_finished", "left", "save",
])
def test_every_call_of_the_app_is_guarded(wire: Wire, place: str) -> None:
    depth = 0
    called: list[bool] = []

    class Guard:
        def __enter__(self) -> None:
            nonlocal depth
            depth += 1

        def __exit__(self, *raised: object) -> None:
            nonlocal depth
            depth -= 1

    def watched(self: Any, *args: Any) -> Any:
        called.append(depth == 1)
        return getattr(Counters, place)(self, *args)

    with registered(type("Watched", (Counters,), {place: watched})) as kind:
        shard = shard_of(kind, guard=Guard())
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        shard.submit("ada", ada.auth, b'{"by":1}', 0.0, sink=ada)
        shard.step(0.0)
        shard.subscribe(Client("bob", wire), 0.0)
        shard.save()
        shard.unsubscribe(ada, TICK_S)
    assert called
    assert all(called)
    assert depth == 0
