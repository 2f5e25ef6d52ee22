"""Snapshots as deltas: clients with and without them see the same state."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pylon.realtime.snapshots import UNCHANGED, Format, delta_between
from pylon.realtime.state import SimState
from tests.support.examples import count_examples
from tests.support.realtime import (
    Client,
    Counters,
    Wire,
    registered,
    run_ticks,
    send_input,
    shard_of,
)

TICK_S = 0.05


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


def test_an_unchanged_snapshot_sends_no_delta() -> None:
    with registered(Counters) as kind:
        shard = shard_of(kind)
    ada = Client("ada", Wire(Format.JSON), delta=True)
    shard.subscribe(ada, 0.0)
    now_s = run_ticks(shard, 0.0, 3)
    assert ada.ticks == [1]
    send_input(shard, ada, 1, now_s=now_s)
    run_ticks(shard, now_s, 1)
    assert ada.frames[1:] == [(4, {"delta": {"counters": {"sum": 1}}, "tick": 4})]


def test_true_and_one_are_not_the_same() -> None:
    assert delta_between({"a": True}, {"a": 1}) == {"a": 1}
    assert delta_between({"a": [1]}, {"a": [1.0]}) == {"a": [1.0]}
    assert delta_between({"a": [1]}, {"a": [1]}) is UNCHANGED


def test_each_sees_its_own_where_the_simulation_says_so() -> None:
    class Own(Counters):
        def snapshot_for(self, sid: str) -> Any:
            return {"you": sid}

    with registered(Own) as kind:
        shard = shard_of(kind)
        wire = Wire(Format.JSON)
        ada, bob = Client("ada", wire), Client("bob", wire)
        shard.subscribe(ada, 0.0)
        shard.subscribe(bob, 0.0)
        run_ticks(shard, 0.0, 1)
        assert (ada.last, bob.last) == ({"you": "ada"}, {"you": "bob"})
