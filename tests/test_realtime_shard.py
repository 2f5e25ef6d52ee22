"""pylon.realtime.shard: ticks, subscribers, inputs, seats and faults, without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.errors import InputQueueFull, InputRejected, SubscribeFailed, SubscribeRefused
from pylon.realtime.kinds import Kind
from pylon.realtime.shard import FAILED, FINISHED, Shard, TickOverrun
from pylon.realtime.snapshots import UNCHANGED, Format, delta_between
from pylon.realtime.state import SimState
from tests.support.examples import count_examples
from tests.support.realtime import Client, Counters, Wire, registered, shard_of

TICK_S = 0.05


@pytest.fixture
def kind() -> Iterator[Kind]:
    with registered(Counters, idle_ticks_before_shutdown=10) as found:
        yield found


@pytest.fixture
def wire() -> Wire:
    return Wire(Format.JSON)


def run(shard: Shard, from_s: float, ticks: int) -> float:
    """Step `ticks` times, each when it is due."""
    now_s = from_s
    for _ in range(ticks):
        due_s = shard.due_s()
        assert due_s is not None
        now_s = max(now_s, due_s)
        assert shard.step(now_s).ticked
    return now_s


def say(shard: Shard, client: Client, by: int, seq: int | None = None, now_s: float = 0.0) -> int:
    raw = msgspec.json.encode({"by": by})
    return shard.submit(client.sid, client.auth, raw, now_s, sink=client, client_seq=seq)


def test_ticks_count_from_one_and_the_first_has_no_step(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    assert ada.frames == []
    run(shard, 0.0, 3)
    assert ada.ticks == [1, 2, 3]
    assert shard._simulation.state.steps == [0.0, TICK_S, TICK_S]


def test_a_later_subscriber_gets_the_snapshot_at_once(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada, bob = Client("ada", wire), Client("bob", wire)
    shard.subscribe(ada, 0.0)
    run(shard, 0.0, 2)
    shard.subscribe(bob, 0.06)
    assert bob.frames == [(2, {"counters": {}, "here": ["ada", "bob"]})]


def test_inputs_are_applied_in_order_at_the_next_tick(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire, acks=True)
    shard.subscribe(ada, 0.0)
    assert [say(shard, ada, 2, 1), say(shard, ada, 3, 2)] == [1, 2]
    assert shard.input_queue == 2
    run(shard, 0.0, 1)
    assert ada.last["snapshot"]["counters"] == {"sum": 5}
    assert ada.last["ack"] == {"client_seq": 2, "server_seq": 2, "tick": 1}


def test_an_ack_is_null_before_the_first_input(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire, acks=True)
    shard.subscribe(ada, 0.0)
    run(shard, 0.0, 1)
    assert ada.last["ack"] is None


def test_equal_snapshots_are_framed_once_for_all(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    for number in range(20):
        shard.subscribe(Client(f"u{number}", wire), 0.0)
    wire.made = 0
    run(shard, 0.0, 1)
    assert wire.made == 1


@pytest.mark.parametrize("raw", [b"{", b'{"by":"x"}', b"[]", b"", b'{"to":"x"}', b"[" * 60_000])
def test_inputs_of_another_type_are_refused(kind: Kind, wire: Wire, raw: bytes) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    with pytest.raises(InputRejected, match="invalid input JSON"):
        shard.submit("ada", ada.auth, raw, 0.0)
    assert shard.input_queue == 0


def test_an_input_that_the_simulation_refuses_is_told_and_not_acked(
    kind: Kind, wire: Wire
) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire, acks=True)
    shard.subscribe(ada, 0.0)
    say(shard, ada, 101, 1)
    run(shard, 0.0, 1)
    assert ada.rejected == [(1, "too much")]
    assert ada.last == {"snapshot": {"counters": {}, "here": ["ada"]}, "ack": None}


def test_inputs_need_a_live_subscription(kind: Kind) -> None:
    with pytest.raises(SubscribeRefused, match="not attached"):
        shard_of(kind).submit("ada", AuthContext(user_id="ada"), b'{"by":1}', 0.0)


def test_a_full_queue_refuses_and_still_counts(wire: Wire) -> None:
    with registered(Counters, max_input_queue=2) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        say(shard, ada, 1)
        say(shard, ada, 1)
        with pytest.raises(InputQueueFull):
            say(shard, ada, 1)
        run(shard, 0.0, 1)
        assert say(shard, ada, 1) == 4


@pytest.mark.parametrize(
    ("sid", "auth", "reason"),
    [
        ("ada", ANONYMOUS, "authenticated user required"),
        ("ada", AuthContext(user_id="bob"), 'subscriber id "ada" does not match'),
    ],
)
def test_nobody_is_somebody_else(
    kind: Kind, wire: Wire, sid: str, auth: AuthContext, reason: str
) -> None:
    shard = shard_of(kind)
    with pytest.raises(SubscribeRefused, match=reason):
        shard.subscribe(Client(sid, wire, auth=auth), 0.0)
    assert shard.subscribers == 0
    shard.subscribe(Client(sid, wire, auth=ADMIN), 0.0)
    assert shard.subscribers == 1


def test_a_full_shard_takes_no_other_but_a_second_tab(wire: Wire) -> None:
    with registered(Counters, max_subscribers=1) as kind:
        shard = shard_of(kind)
        shard.subscribe(Client("ada", wire), 0.0)
        with pytest.raises(SubscribeFailed, match="max subscribers"):
            shard.subscribe(Client("bob", wire), 0.0)
        shard.subscribe(Client("ada", wire), 0.0)
        assert shard.subscribers == 1


def test_one_connection_of_two_goes_and_the_other_stays(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    first, second = Client("ada", wire), Client("ada", wire)
    shard.subscribe(first, 0.0)
    shard.subscribe(second, 0.0)
    shard.unsubscribe(first, 0.0)
    shard.unsubscribe(first, 0.0)
    run(shard, 0.0, 1)
    assert first.frames == []
    assert second.last["here"] == ["ada"]
    shard.unsubscribe(second, 0.0)
    assert shard._simulation.state.here == []


def test_without_anybody_it_sleeps_and_then_stops(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    now_s = run(shard, 0.0, 2)
    shard.unsubscribe(ada, now_s)
    due_s = shard.due_s()
    assert due_s == pytest.approx(now_s + 10 * TICK_S)
    assert not shard.step(now_s + TICK_S).ticked
    assert shard.running
    shard.step(now_s + 10 * TICK_S)
    assert (shard.running, shard.stopped_because) == (False, "idle")


def test_somebody_who_comes_in_time_wakes_it(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    now_s = run(shard, 0.0, 2)
    shard.unsubscribe(ada, now_s)
    shard.subscribe(Client("bob", wire), now_s + 0.3)
    assert shard.due_s() == now_s + 0.3
    step = shard.step(now_s + 0.3)
    assert (step.ticked, step.late_s) == (True, 0.0)


def test_one_that_ticks_when_empty_counts_its_idle_ticks(wire: Wire) -> None:
    with registered(Counters, tick_when_empty=True, idle_ticks_before_shutdown=5) as kind:
        shard = shard_of(kind)
        run(shard, 0.0, 5)
        assert not shard.running
        assert shard.tick == 5


def test_drift_is_corrected_and_a_long_stall_is_skipped(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    shard.subscribe(Client("ada", wire), 0.0)
    shard.step(0.0)
    late = shard.step(0.08)
    assert late.late_s == pytest.approx(0.03)
    assert shard.due_s() == pytest.approx(0.10)
    shard.step(1.0)
    assert shard.due_s() == pytest.approx(1.05)
    assert shard.tick == 3


def test_an_event_driven_one_ticks_for_inputs_only(wire: Wire) -> None:
    with registered(Counters, tick_rate_hz=0) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        run(shard, 0.0, 1)
        assert shard.due_s() is None
        say(shard, ada, 1, now_s=2.0)
        assert shard.due_s() == 2.0
        shard.step(2.0)
        say(shard, ada, 1, now_s=2.001)
        assert shard.due_s() == pytest.approx(2.01)
        assert ada.ticks == [1, 2]
        assert shard._simulation.state.steps == [0.0, 2.0]


def test_a_seat_is_kept_and_then_given_up(wire: Wire) -> None:
    with registered(Counters, allow_reconnection_s=5) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        run(shard, 0.0, 1)
        shard.unsubscribe(ada, 1.0)
        assert shard.has_place("ada")
        assert (shard.subscribers, shard.seats_taken) == (0, 1)
        back = Client("ada", wire)
        shard.subscribe(back, 2.0)
        assert shard._simulation.state.here == ["ada"]
        shard.unsubscribe(back, 3.0)
        assert shard.due_s() == 8.0
        shard.step(8.0)
        assert not shard.has_place("ada")
        assert shard._simulation.state.here == []


def test_a_finished_one_says_good_bye_after_its_last_snapshot(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    shard._simulation.state.last_ticks = 2
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    run(shard, 0.0, 2)
    assert ada.ticks == [1, 2]
    assert ada.ended == (FINISHED, "finished")
    with pytest.raises(SubscribeFailed):
        shard.subscribe(Client("bob", wire), 1.0)


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
        run(shard, 0.0, 1)
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


def test_what_was_saved_goes_on(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    say(shard, ada, 7)
    run(shard, 0.0, 4)
    shard._simulation.state.random.random()
    saved = shard.save()
    assert saved is not None
    expected = shard._simulation.state.random.random()
    coded = msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=type(saved))
    again = shard_of(kind, saved=coded)
    assert again.tick == 4
    bob = Client("bob", wire)
    again.subscribe(bob, 9.0)
    assert bob.frames == [(4, {"counters": {"sum": 7}, "here": ["bob"]})]
    assert again._simulation.state.random.random() == expected


# --- Deltas ------------------------------------------------------------------------------------


def applied(base: Any, delta: Any) -> Any:
    """What a client makes of a delta: keys that are null go."""
    if not isinstance(base, dict) or not isinstance(delta, dict):
        return delta
    out = dict(base)
    for key, value in delta.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = applied(out.get(key), value)
    return out


# Null is what a delta says for "gone", so snapshots with nulls are not told apart from it.
_leaf = st.one_of(st.booleans(), st.integers(-5, 5), st.text(max_size=2), st.floats(-1, 1))
_value = st.recursive(
    _leaf, lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("ab", max_size=1), inner, max_size=3)
    ), max_leaves=12,
)
_object = st.dictionaries(st.text("abc", max_size=1), _value, max_size=4)


def _typed(value: Any) -> Any:
    """With types, for True equals 1 in Python."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (type(value).__name__, value)


class DeltaMachine(RuleBasedStateMachine):
    """Clients with and without deltas see the same, whenever they came."""

    @initialize(snapshot=_object, every=st.integers(0, 4))
    def begin(self, snapshot: Any, every: int) -> None:
        machine = self
        machine.now_s = 0.0
        machine.snapshot = snapshot

        class Told(SimState):
            def tick(self, dt_s: float) -> None: ...

            def snapshot(self) -> Any:
                return machine.snapshot

        with registered(Told, delta_full_every=every) as kind:
            self.shard = shard_of(kind)
        self.wires = {form: Wire(form) for form in Format}
        self.clients: list[Client] = []
        self.views: dict[Client, Any] = {}

    @rule(delta=st.booleans(), form=st.sampled_from(Format), acks=st.booleans())
    def join(self, delta: bool, form: Format, acks: bool) -> None:
        client = Client(
            f"u{len(self.clients)}", self.wires[form], delta=delta, acks=acks
        )
        self.clients.append(client)
        self.shard.subscribe(client, self.now_s)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.clients:
            client = data.draw(st.sampled_from(self.clients))
            self.clients.remove(client)
            self.shard.unsubscribe(client, self.now_s)

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        if self.clients:
            client = data.draw(st.sampled_from(self.clients))
            self.shard.submit(client.sid, client.auth, b"{}", self.now_s, sink=client)

    @rule(snapshot=_object)
    def tick(self, snapshot: Any) -> None:
        self.snapshot = snapshot
        self.now_s += TICK_S
        self.shard.step(self.now_s)
        if self.shard.tick:
            for client in self.clients:
                assert _typed(self.view_of(client)) == _typed(snapshot)

    def view_of(self, client: Client) -> Any:
        for tick, frame in client.frames:
            body = frame
            is_delta = client.delta and "delta" in body and "tick" in body
            if is_delta:
                assert body["tick"] == tick
                self.views[client] = applied(self.views[client], body["delta"])
            else:
                self.views[client] = body["snapshot"] if client.acks else body
        client.frames.clear()
        return self.views[client]

    @invariant()
    def runs(self) -> None:
        assert self.shard.traceback is None


TestDeltas = DeltaMachine.TestCase
TestDeltas.settings = settings(max_examples=count_examples(40), stateful_step_count=30)


def test_an_unchanged_snapshot_sends_no_delta(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire, delta=True)
    shard.subscribe(ada, 0.0)
    now_s = run(shard, 0.0, 3)
    assert ada.ticks == [1]
    say(shard, ada, 1, now_s=now_s)
    run(shard, now_s, 1)
    assert ada.frames[1:] == [(4, {"delta": {"counters": {"sum": 1}}, "tick": 4})]


def test_true_and_one_are_not_the_same() -> None:
    assert delta_between({"a": True}, {"a": 1}) == {"a": 1}
    assert delta_between({"a": [1]}, {"a": [1.0]}) == {"a": [1.0]}
    assert delta_between({"a": [1]}, {"a": [1]}) is UNCHANGED


def test_each_sees_its_own_where_the_simulation_says_so(wire: Wire) -> None:
    class Own(Counters):
        def snapshot_for(self, sid: str) -> Any:
            return {"you": sid}

    with registered(Own) as kind:
        shard = shard_of(kind)
        ada, bob = Client("ada", wire), Client("bob", wire)
        shard.subscribe(ada, 0.0)
        shard.subscribe(bob, 0.0)
        run(shard, 0.0, 1)
        assert (ada.last, bob.last) == ({"you": "ada"}, {"you": "bob"})
