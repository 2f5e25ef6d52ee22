"""workers.hub: the hub against a model, outbox and heartbeat, over socket pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits, metrics
from pylon.auth_context import (
    ADMIN,
    ANONYMOUS,
)
from pylon.changelog.change import Change, encode_for
from pylon.clock import ManualClock
from pylon.metrics import snapshot
from pylon.storage.events import ChangeBatch, ChangeEvent
from tests.support.examples import count_examples
from tests.support.hub_peer import BY_ENTITY, CONTEXTS, EVENT, Peer, event_of, row, ws_hub
from tests.support.measured import total
from tests.support.wait import run_greenlets_until
from workers.hub.heartbeat import Heartbeat
from workers.hub.hub import Hub
from workers.sse.stream import EventStreamTransport
from workers.ws import frames


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = ws_hub()
    yield made
    for connection in made.connections:
        connection.abort()


@settings(max_examples=count_examples(60))
@given(st.lists(EVENT, min_size=1, max_size=12), st.integers(0, 12), st.integers(1, 12))
def test_fan_out_equals_asking_each_connection(
    events: list[tuple[str, Any, Any]], ahead: int, cut: int
) -> None:
    """Whatever the routing plan, each connection gets exactly what `encode_for` says, in order,
    and nothing up to its `last_seq`."""
    hub = ws_hub()
    peers = [Peer(hub, auth) for auth in CONTEXTS]
    late = Peer(hub, ADMIN)
    late.connection.last_seq = ahead
    for peer in [*peers, late]:
        hub.join(peer.connection)
    changes = [Change(event_of(seq, *event)) for seq, event in enumerate(events, 1)]
    hub.publish(changes[:cut])
    hub.publish(changes[cut:])
    for peer in peers:
        auth = peer.connection.caller.auth
        wires = [
            change.wire if auth.is_admin
            else encode_for(change, BY_ENTITY[change.event.entity], auth)
            for change in changes
        ]
        expected = b"".join(frames.encode(frames.TEXT, w) for w in wires if w is not None)
        assert peer.received() == expected, auth
    assert late.received() == b"".join(
        frames.encode(frames.TEXT, change.wire) for change in changes if change.seq > ahead
    )
    for peer in [*peers, late]:
        peer.connection.abort()
        peer.socket.close()
    assert len(hub) == 0
    assert hub.contexts == 0


def test_an_entity_that_the_manifest_lost_is_for_admins(hub: Hub) -> None:
    admin, anonymous = Peer(hub, ADMIN), Peer(hub, ANONYMOUS)
    for peer in (admin, anonymous):
        hub.join(peer.connection)
    change = Change(event_of(1, "Gone", None, (None, True)))
    hub.publish([change])
    assert admin.received() == frames.encode(frames.TEXT, change.wire)
    assert anonymous.received() == b""
    assert hub.fan_out.view(change, ANONYMOUS) is None


def test_one_event_above_the_outbox_is_delivered(hub: Hub) -> None:
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    big = ChangeEvent(
        1, "Public", "r", "insert", row(None, True, "x" * (3 * limits.OUTBOX_BYTES)), None, 1
    )
    hub.publish([Change(big)])
    assert peer.connection.outbox_bytes > limits.OUTBOX_BYTES
    assert peer.received() == frames.encode(frames.TEXT, big.wire())
    assert peer.connection.is_open


@pytest.mark.parametrize(
    "sizes_bytes",
    [
        [5_000_000, 100, 100],
        [300_000, 100, 5_000_000, 100],  # the large one comes while something waits
        [5_000_000, 100, 5_000_000, 100, 5_000_000],
        [400_000, 4 * limits.OUTBOX_BYTES],
    ],
    ids=str,
)
def test_large_events_never_close_a_reader_that_reads(hub: Hub, sizes_bytes: list[int]) -> None:
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    events = [
        ChangeEvent(seq, "Public", "r", "insert", row(None, True, "x" * size_bytes), None, 1)
        for seq, size_bytes in enumerate(sizes_bytes, 1)
    ]
    for event in events:  # all before the reader had its turn
        hub.publish(ws_changes(event))
    assert peer.connection.outbox_bytes > 0
    assert peer.received() == b"".join(frames.encode(frames.TEXT, e.wire()) for e in events)
    assert peer.connection.is_open


def test_what_waits_behind_a_large_event_is_bounded(hub: Hub) -> None:
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    seq = 0
    while peer.connection.is_open:
        seq += 1
        assert seq < 100
        event = ChangeEvent(seq, "Public", "r", "insert", row(None, True, "x" * 5_000_000), None, 1)
        hub.publish(ws_changes(event))
    # The write under way, and what counts as OUTBOX_BYTES behind it.
    assert seq == 1 + limits.OUTBOX_BYTES // limits.OUTBOX_WRITE_BYTES + 1


def test_overflow_keeps_the_frame_that_has_begun_and_says_1013(hub: Hub) -> None:
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    events = [
        ChangeEvent(seq, "Public", "r", "insert", row(None, True, "x" * 400_000), None, 1)
        for seq in range(1, 8)
    ]
    for event in events:
        hub.publish(ws_changes(event))
    assert not peer.connection.is_open
    whole = frames.encode(frames.TEXT, events[0].wire())
    assert peer.received() == whole + frames.encode_close(1013, "too slow")
    assert hub.contexts == 0


def test_a_session_that_ended_closes_before_what_its_slow_client_has_not_read(hub: Hub) -> None:
    """The close frame came behind the outbox, and the socket was cut before a slow client read it.
    The client then connected again with the token that had ended."""
    peer = Peer(hub, ANONYMOUS, "family")
    hub.join(peer.connection)
    events = [
        ChangeEvent(seq, "Public", "r", "insert", row(None, True, "x" * 300_000), None, 1)
        for seq in (1, 2, 3)
    ]
    for event in events:
        hub.publish(ws_changes(event))
    assert peer.connection.is_open and peer.connection.outbox_bytes > 600_000
    assert hub.close_family("family", 4401, "session revoked") == 1
    whole = frames.encode(frames.TEXT, events[0].wire())
    assert peer.received() == whole + frames.encode_close(4401, "session revoked")


def test_many_small_frames_overflow_by_count(hub: Hub) -> None:
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    big = ChangeEvent(1, "Public", "r", "insert", row(None, True, "x" * 1_000_000), None, 1)
    hub.publish(ws_changes(big))
    seq = 1
    while peer.connection.is_open:
        seq += 1
        hub.publish(ws_changes(event_of(seq, "Public", None, (None, True))))
    assert seq == 1 + limits.OUTBOX_FRAMES + 1  # the one under way, and those behind it


def ws_changes(*events: ChangeEvent) -> list[Change]:
    return [Change(event) for event in ChangeBatch(0, list(events)).events]


def test_close_family_takes_that_family_s_sockets(hub: Hub) -> None:
    mine = [Peer(hub, ANONYMOUS, "s1") for _ in range(2)]
    other = Peer(hub, ANONYMOUS, "s2")
    assert hub.close_family("s1", 4401, "session revoked") == 2
    assert hub.close_family("nobody", 4401, "") == 0
    for peer in mine:
        assert peer.received() == frames.encode_close(4401, "session revoked")
    assert other.connection.is_open


def test_farewells_are_cut_after_their_time() -> None:
    clock = ManualClock()
    hub = ws_hub(clock)
    peer = Peer(hub, ANONYMOUS)
    peer.connection.close(1001, "bye")
    clock.advance(limits.SOCKET_CLOSE_S - 0.1)
    hub.end_overdue()
    assert len(hub) == 1
    clock.advance(0.1)
    hub.end_overdue()
    assert len(hub) == 0


def test_heartbeat_pings_everyone_once_in_a_round_and_drops_the_silent(hub: Hub) -> None:
    peers = [Peer(hub, ANONYMOUS) for _ in range(5)]
    silent, *answering = peers
    beat = Heartbeat(hub, ManualClock())
    ping = frames.encode(frames.PING, b"")
    for _ in range(3):
        for _ in range(beat.slots):
            beat.tick()
        for peer in answering:
            assert peer.received() == ping
            peer.socket.send(b"\x8a\x80\0\0\0\0")  # a masked pong
            connection = peer.connection
            run_greenlets_until("a pong", lambda c=connection: not c.heartbeats_unanswered)
    assert silent.received() == ping * 2 + frames.encode_close(1011, "no answer to pings")
    assert all(peer.connection.is_open for peer in answering)


def test_heartbeat_of_a_stream_cuts_what_does_not_move() -> None:
    hub = Hub(BY_ENTITY, EventStreamTransport(), ManualClock())
    stuck, reading = Peer(hub, ANONYMOUS), Peer(hub, ANONYMOUS)
    stuck.connection.send(b"x" * 4_000_000)
    beat = Heartbeat(hub, ManualClock())
    for _ in range(3):
        for _ in range(beat.slots):
            beat.tick()
        assert reading.received() == b": keepalive\n\n"
    assert not stuck.connection.is_open
    assert reading.connection.is_open
    reading.connection.abort()


def test_a_dead_peer_is_noticed_at_once(hub: Hub) -> None:
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    peer.socket.close()
    run_greenlets_until("no socket is left", lambda: len(hub) == 0)
    assert hub.contexts == 0
    assert not peer.connection.send(b"late")


def test_the_gauge_counts_the_connections_of_all_hubs_of_a_worker() -> None:
    before = metrics.CONNECTIONS._value.get()
    first, second = ws_hub(), ws_hub()
    peers = [Peer(first, ANONYMOUS), Peer(first, ANONYMOUS), Peer(second, ANONYMOUS)]
    assert metrics.CONNECTIONS._value.get() == before + 3
    peers[2].connection.abort()
    peers[2].connection.abort()
    assert metrics.CONNECTIONS._value.get() == before + 2
    for peer in peers[:2]:
        peer.connection.abort()
    assert metrics.CONNECTIONS._value.get() == before


def test_delivery_is_measured_from_the_commit() -> None:
    clock = ManualClock()
    hub = ws_hub(clock)
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    sums = [value for (name, value) in _sums() if name.startswith("pylon_sync_delivery")]
    before = total(metrics.SYNC_DELIVERY)
    clock.advance(1.0)
    committed_s = clock.monotonic_s()
    clock.advance(0.5)
    hub.publish([Change(event_of(1, "Public", None, (None, True)))], committed_s)
    hub.publish([Change(event_of(2, "Public", None, (None, True)))])  # of the log: it may be old
    assert total(metrics.SYNC_DELIVERY) == before + 1
    (after,) = [value for (name, value) in _sums() if name.startswith("pylon_sync_delivery")]
    assert after == pytest.approx(sum(sums) + 0.5)
    peer.connection.abort()


def _sums() -> list[tuple[str, float]]:
    return [(sample.name, sample.value) for family in snapshot() for sample in family.samples
            if sample.name.endswith("_sum")]
