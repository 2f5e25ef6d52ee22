"""workers.hub.hub: connections that change their caller, against a model."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.auth_context import Caller
from pylon.changelog.change import Change, encode_for
from tests.support.examples import count_examples
from tests.support.hub_peer import BY_ENTITY, CONTEXTS, EVENT, Peer, event_of, ws_hub
from workers.ws import frames

PEERS = 3
STEP = st.one_of(
    st.tuples(st.just("publish"), st.lists(EVENT, min_size=1, max_size=3)),
    st.tuples(
        st.just("become"),
        st.tuples(
            st.integers(0, PEERS - 1), st.sampled_from(CONTEXTS), st.sampled_from([None, "s", "t"])
        ),
    ),
    st.tuples(st.just("join"), st.integers(0, PEERS - 1)),
    st.tuples(st.just("leave"), st.integers(0, PEERS - 1)),
)


@settings(max_examples=count_examples(120))
@given(st.lists(STEP, max_size=14), st.integers(0, 4))
def test_each_event_is_judged_once_by_the_identity_of_its_time(
    steps: list[tuple[str, Any]], ahead: int
) -> None:
    """Also for one that has not joined yet, or whose replay was `ahead` of the hub."""
    hub = ws_hub()
    peers = [Peer(hub, context) for context in CONTEXTS[:PEERS]]
    peers[0].connection.last_seq = ahead
    expected = [b""] * PEERS
    joined: set[int] = set()
    seq = 0
    for what, value in steps:
        if what == "publish":
            changes = [Change(event_of(seq + n, *event)) for n, event in enumerate(value, 1)]
            seq += len(value)
            for number in joined:
                auth = peers[number].connection.caller.auth
                for change in changes:
                    if number == 0 and change.seq <= ahead:
                        continue
                    rules = BY_ENTITY[change.event.entity]
                    wire = change.wire if auth.is_admin else encode_for(change, rules, auth)
                    if wire is not None:
                        expected[number] += frames.encode(frames.TEXT, wire)
            hub.publish(changes)
        elif what == "become":
            number, auth, session_id = value
            if peers[number].connection.is_open:
                hub.change_caller(peers[number].connection, Caller(auth, session_id, session_id))
        elif what == "join" and value not in joined and peers[value].connection.is_open:
            hub.join(peers[value].connection)
            joined.add(value)
        elif what == "leave" and peers[value].connection.is_open:
            peers[value].connection.close(1000, awaits_peer=False)
            expected[value] += frames.encode_close(1000)
            joined.discard(value)
    for peer, wanted in zip(peers, expected, strict=True):
        assert peer.received() == wanted
    # Every session knows its connections, and none that has gone.
    for session_id in ("s", "t"):
        mine = sum(
            peer.connection.is_open and peer.connection.caller.family == session_id
            for peer in peers
        )
        for peer in peers:
            if not peer.connection.is_open:
                peer.connection.abort()
        assert hub.close_family(session_id, 4401, "") == mine
    for peer in peers:
        peer.connection.abort()
        peer.socket.close()
    assert (len(hub), hub.contexts, hub.families()) == (0, 0, [])
