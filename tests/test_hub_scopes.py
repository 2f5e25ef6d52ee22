"""Scopes in the hub: policy, filter and transition of a row together say what each socket gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.changelog.change import Change, encode_for
from pylon.changelog.scope import Scope, parse_entities, parse_scope
from pylon.errors import InvalidColumn, InvalidQuery, InvalidValue, LimitExceeded
from tests.support.examples import count_examples
from tests.support.hub_peer import APP, CONTEXTS, EVENT, RULES, Peer, event_of, ws_hub
from tests.support.rates import NO_RATES
from tests.support.wait import run_greenlets_until
from tests.support.websocket_client import client_frame
from workers.ws import frames
from workers.ws.conversation import Conversation
from workers.ws.stream_scope import StreamScope

NAMES = sorted(APP.by_name)
FILTERS: list[dict[str, Any]] = [
    {"ownerId": "ada"},
    {"ownerId": {"$in": ["ada", "bob"]}},
    {"ownerId": {"$in": ["bob", None]}, "shared": True},
    {"shared": {"$ne": True}},
    {"$or": [{"ownerId": "bob"}, {"shared": True}]},
    {"id": {"$in": []}},
]
SCOPES = st.one_of(
    st.none(),
    st.builds(
        lambda entities, filters: (entities, {
            name: body for name, body in filters.items() if entities is None or name in entities
        }),
        st.none() | st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from(FILTERS), max_size=3),
    ),
)


def scope_of(value: tuple[list[str] | None, dict[str, Any]] | None) -> Scope | None:
    return None if value is None else parse_scope(RULES, APP, value[0], value[1] or None)


def meets(body: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """The filters above, by hand."""
    for key, operand in body.items():
        if key == "$or":
            if not any(meets(part, row) for part in operand):
                return False
        elif isinstance(operand, dict):
            value = row[key]
            if "$in" in operand and value not in operand["$in"]:
                return False
            if "$ne" in operand and (value is None or value == operand["$ne"]):
                return False
        elif row[key] != operand:
            return False
    return True


def expected(
    change: Change, auth: AuthContext, value: tuple[list[str] | None, dict[str, Any]] | None
) -> bytes | None:
    """What a socket gets for a change, from the images alone."""
    entity = change.event.entity
    entities, filters = value or (None, {})
    if entities is not None and entity not in entities:
        return None
    rules, body = RULES.for_entity(entity), filters.get(entity, {})

    def sees(image: dict[str, Any] | None) -> bool:
        return image is not None and rules.may_read(auth, image) and meets(body, image)

    saw, now = sees(change.prev_row), sees(change.row)
    if now:
        return change.wire
    if saw:
        return change.wire_as("delete")
    if auth.is_admin and not body:
        return change.wire
    return None


def texts(data: bytes) -> list[bytes]:
    """The texts of unmasked frames."""
    found = []
    while data:
        size, start = data[1] & 127, 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        found.append(data[start : start + size])
        data = data[start + size :]
    return found


@settings(max_examples=count_examples(150))
@given(
    st.lists(EVENT, min_size=1, max_size=8), st.lists(SCOPES, min_size=1, max_size=4),
    st.integers(1, 7),
)
def test_each_socket_gets_the_part_of_its_scope(
    events: list[tuple[str, Any, Any]],
    values: list[tuple[list[str] | None, dict[str, Any]] | None], cut: int,
) -> None:
    hub = ws_hub()
    peers = []
    for auth in CONTEXTS:
        for value in values:
            peer = Peer(hub, auth)
            peer.connection.scope = scope_of(value)
            hub.join(peer.connection)
            peers.append((peer, auth, value))
    changes = [Change(event_of(seq, *event)) for seq, event in enumerate(events, 1)]
    hub.publish(changes[:cut])
    hub.publish(changes[cut:])
    for peer, auth, value in peers:
        wires = [w for change in changes if (w := expected(change, auth, value)) is not None]
        assert texts(peer.received()) == wires, (auth, value)
    for peer, _, _ in peers:
        peer.connection.abort()
        peer.socket.close()
    assert len(hub) == 0 and hub.contexts == 0
    assert not hub._groups._scoped


def test_equal_scopes_of_equal_callers_are_one_group() -> None:
    hub = ws_hub()
    for names in ("Public,Own", "Own, Public"):
        peer = Peer(hub, ANONYMOUS)
        peer.connection.scope = parse_entities(RULES, APP, names.replace("Own", NAMES[0]))
        hub.join(peer.connection)
    assert len(hub._groups) == 1


def test_a_scope_that_changes_holds_for_later_changes_only() -> None:
    hub = ws_hub()
    peer = Peer(hub, ANONYMOUS)
    hub.join(peer.connection)
    feature = StreamScope(hub, hub.change_scope, RULES, APP)
    hub.transport.on_text = Conversation(hub, (feature,), NO_RATES).on_text
    images = (None, (None, True))
    hub.publish([Change(event_of(1, "Public", *images))])
    say(peer, {"type": "scope", "entities": [name for name in NAMES if name != "Public"][:1]})
    assert [m.get("type", m.get("seq")) for m in messages(peer, 2)] == [1, "scoped"]
    hub.publish([Change(event_of(2, "Public", *images))])
    say(peer, {"type": "scope", "filters": {"Public": {"shared": True}}})
    assert messages(peer) == [
        {"type": "scoped", "entities": None, "filters": ["Public"], "seq": 2}
    ]
    hub.publish([Change(event_of(3, "Public", *images))])
    hub.publish([Change(event_of(4, "Public", (None, True), (None, False)))])
    assert [(m["seq"], m["kind"]) for m in messages(peer, 2)] == [(3, "insert"), (4, "delete")]
    say(peer, {"type": "scope"})
    say(peer, {"type": "ping", "id": "p1"})
    assert messages(peer, 2) == [
        {"type": "scoped", "entities": None, "filters": [], "seq": 4},
        {"type": "pong", "id": "p1", "seq": 4},
    ]
    say(peer, {"type": "scope", "entities": ["Pubic"]})
    (refusal,) = messages(peer)
    assert refusal["code"] == "INVALID_QUERY" and 'did you mean "Public"' in refusal["message"]
    say(peer, {"type": "ping", "id": {}})
    assert [m["code"] for m in messages(peer)] == ["INVALID_DATA"]
    peer.connection.abort()


def say(peer: Peer, message: dict[str, Any]) -> None:
    peer.socket.send(client_frame(frames.TEXT, orjson.dumps(message)))


def messages(peer: Peer, count: int = 1) -> list[Any]:
    """The next messages of a socket; fails unless there are exactly so many."""
    data = bytearray()

    def has_all() -> bool:
        data.extend(peer.received())
        return len(texts(bytes(data))) >= count

    run_greenlets_until("messages", has_all)
    found = [orjson.loads(text) for text in texts(bytes(data))]
    assert len(found) == count, found
    return found


@pytest.mark.parametrize(("entities", "filters", "error", "text"), [
    ("Public", None, InvalidQuery, "takes a list"),
    (["Public", 1], None, InvalidQuery, "takes a list"),
    ([], None, InvalidQuery, "is empty"),
    (["public"], None, InvalidQuery, 'did you mean "Public"'),
    (None, [], InvalidQuery, "takes an object"),
    (None, {"Nope": {}}, InvalidQuery, 'Unknown entity "Nope"'),
    (["Public"], {NAMES[0]: {}}, InvalidQuery, "does not name"),
    (None, {"Public": {"nope": 1}}, InvalidColumn, "nope"),
    (None, {"Public": {"shared": "x"}}, InvalidValue, "shared"),
    (None, {"Public": {"$order": {"id": "asc"}}}, InvalidQuery, r"\$order"),
    (None, {"Public": {"$search": "x"}}, InvalidQuery, r"\$search"),
    (None, {"Public": {"text": {"$like": "x"}}}, InvalidQuery, r"\$like"),
    (None, {"Public": {"id": {"$in": ["x"] * (limits.SCOPE_VALUES + 1)}}}, LimitExceeded, "500"),
])
def test_a_scope_that_means_nothing_is_refused(
    entities: Any, filters: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        parse_scope(RULES, APP, entities, filters)


def test_a_parameter_names_entities() -> None:
    assert parse_entities(RULES, APP, None) is None
    found = parse_entities(RULES, APP, "Public")
    assert found is not None and found.names == ["Public"]
    for text in ("", "Public,", "Publik"):
        with pytest.raises(InvalidQuery, match="known entities"):
            parse_entities(RULES, APP, text)


def test_filters_that_no_value_finds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCOPES_SCANNED", 1)
    hub = ws_hub()
    peers = [Peer(hub, ANONYMOUS) for _ in range(3)]
    for peer in peers:
        hub.join(peer.connection)
    scanned = [
        parse_scope(RULES, APP, None, {"Public": {"text": {"$gt": text}}}) for text in "ab"
    ]
    hub.change_scope(peers[0].connection, scanned[0])
    with pytest.raises(LimitExceeded, match="without an equality"):
        hub.change_scope(peers[1].connection, scanned[1])
    assert peers[1].connection.scope is None
    hub.change_scope(peers[2].connection, scope_of((None, {"Public": {"ownerId": "ada"}})))
    hub.change_scope(peers[0].connection, scanned[0])  # the same again
    hub.change_scope(peers[0].connection, None)
    hub.change_scope(peers[1].connection, scanned[1])
    for peer in peers:
        peer.connection.abort()


def test_an_entity_that_the_manifest_lost_is_in_no_scope() -> None:
    hub = ws_hub()
    peer = Peer(hub, ADMIN)
    peer.connection.scope = parse_entities(RULES, APP, "Public")
    hub.join(peer.connection)
    hub.publish([Change(event_of(1, "Gone", None, (None, True)))])
    assert peer.received() == b""
    peer.connection.abort()


def test_a_change_is_judged_once_for_each_group_that_it_may_concern(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = ws_hub()
    judged: list[AuthContext] = []

    def count(change: Change, rules: Any, auth: AuthContext, *more: Any) -> bytes | None:
        judged.append(auth)
        return encode_for(change, rules, auth, *more)

    monkeypatch.setattr("workers.hub.fan_out.encode_for", count)
    peers = []
    for n in range(20):
        for filters in ({"Public": {"ownerId": f"u{n}"}}, {"Note": {"ownerId": f"u{n}"}}):
            peers.append(Peer(hub, ANONYMOUS))
            peers[-1].connection.scope = parse_scope(RULES, APP, list(filters), filters)
        peers.append(Peer(hub, ANONYMOUS))
        peers[-1].connection.scope = parse_entities(RULES, APP, "Public")
    for peer in peers:
        hub.join(peer.connection)
    hub.publish([Change(event_of(1, "Public", None, ("u7", True)))])
    assert len(judged) == 2  # the group of the filter with u7, and that without a filter
    assert sum(peer.received() != b"" for peer in peers) == 21
    judged.clear()
    hub.publish([Change(event_of(2, "Note", ("u3", True), ("u4", True)))])
    assert len(judged) == 2
    judged.clear()
    hub.publish([Change(event_of(3, "Member", None, ("u3", True)))])
    assert judged == []
    for peer in peers:
        peer.connection.abort()
