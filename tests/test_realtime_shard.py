"""pylon.realtime.shard: ticks, subscribers, inputs and reserved places, without waiting."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.errors import InputQueueFull, InputRejected, SubscribeFailed, SubscribeRefused
from pylon.realtime.kinds import Kind
from pylon.realtime.shard import FINISHED
from pylon.realtime.snapshots import Format
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


@pytest.fixture
def kind() -> Iterator[Kind]:
    with registered(Counters, idle_ticks_before_shutdown=10) as found:
        yield found


@pytest.fixture
def wire() -> Wire:
    return Wire(Format.JSON)


def test_ticks_count_from_one_and_the_first_has_no_step(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    assert ada.frames == []
    run_ticks(shard, 0.0, 3)
    assert ada.ticks == [1, 2, 3]
    assert shard._simulation.state.steps == [0.0, TICK_S, TICK_S]


def test_a_later_subscriber_gets_the_snapshot_at_once(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada, bob = Client("ada", wire), Client("bob", wire)
    shard.subscribe(ada, 0.0)
    run_ticks(shard, 0.0, 2)
    shard.subscribe(bob, 0.06)
    assert bob.frames == [(2, {"counters": {}, "here": ["ada", "bob"]})]


def test_inputs_are_applied_in_order_at_the_next_tick(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire, acks=True)
    shard.subscribe(ada, 0.0)
    assert [send_input(shard, ada, 2, 1), send_input(shard, ada, 3, 2)] == [1, 2]
    assert shard.input_queue == 2
    run_ticks(shard, 0.0, 1)
    assert ada.last["snapshot"]["counters"] == {"sum": 5}
    assert ada.last["ack"] == {"client_seq": 2, "server_seq": 2, "tick": 1}


def test_an_ack_is_null_before_the_first_input(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire, acks=True)
    shard.subscribe(ada, 0.0)
    run_ticks(shard, 0.0, 1)
    assert ada.last["ack"] is None


def test_equal_snapshots_are_framed_once_for_all(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    for number in range(20):
        shard.subscribe(Client(f"u{number}", wire), 0.0)
    wire.made = 0
    run_ticks(shard, 0.0, 1)
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
    send_input(shard, ada, 101, 1)
    run_ticks(shard, 0.0, 1)
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
        send_input(shard, ada, 1)
        send_input(shard, ada, 1)
        with pytest.raises(InputQueueFull):
            send_input(shard, ada, 1)
        run_ticks(shard, 0.0, 1)
        assert send_input(shard, ada, 1) == 4


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
    run_ticks(shard, 0.0, 1)
    assert first.frames == []
    assert second.last["here"] == ["ada"]
    shard.unsubscribe(second, 0.0)
    assert shard._simulation.state.here == []


def test_without_anybody_it_sleeps_and_then_stops(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    now_s = run_ticks(shard, 0.0, 2)
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
    now_s = run_ticks(shard, 0.0, 2)
    shard.unsubscribe(ada, now_s)
    shard.subscribe(Client("bob", wire), now_s + 0.3)
    assert shard.due_s() == now_s + 0.3
    step = shard.step(now_s + 0.3)
    assert (step.ticked, step.late_s) == (True, 0.0)


def test_one_that_ticks_when_empty_counts_its_idle_ticks(wire: Wire) -> None:
    with registered(Counters, tick_when_empty=True, idle_ticks_before_shutdown=5) as kind:
        shard = shard_of(kind)
        run_ticks(shard, 0.0, 5)
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
        run_ticks(shard, 0.0, 1)
        assert shard.due_s() is None
        send_input(shard, ada, 1, now_s=2.0)
        assert shard.due_s() == 2.0
        shard.step(2.0)
        send_input(shard, ada, 1, now_s=2.001)
        assert shard.due_s() == pytest.approx(2.01)
        assert ada.ticks == [1, 2]
        assert shard._simulation.state.steps == [0.0, 2.0]


def test_a_place_is_reserved_and_then_given_up(wire: Wire) -> None:
    with registered(Counters, allow_reconnection_s=5) as kind:
        shard = shard_of(kind)
        ada = Client("ada", wire)
        shard.subscribe(ada, 0.0)
        run_ticks(shard, 0.0, 1)
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
    run_ticks(shard, 0.0, 2)
    assert ada.ticks == [1, 2]
    assert ada.ended == (FINISHED, "finished")
    with pytest.raises(SubscribeFailed):
        shard.subscribe(Client("bob", wire), 1.0)


def test_what_was_saved_goes_on(kind: Kind, wire: Wire) -> None:
    shard = shard_of(kind)
    ada = Client("ada", wire)
    shard.subscribe(ada, 0.0)
    send_input(shard, ada, 7)
    run_ticks(shard, 0.0, 4)
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
