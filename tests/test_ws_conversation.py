"""workers.ws.conversation: what clients say reaches the features, over socket pairs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from pylon import limits, metrics
from pylon.app_rates import AppRates
from pylon.auth_context import ADMIN, AuthContext
from pylon.clock import ManualClock
from pylon.errors import InvalidData
from pylon.limiter import RateLimiter, RateTable
from pylon.manifest.model import RateLimit
from tests.support.hub_peer import BY_ENTITY, Peer
from tests.support.measured import total
from tests.support.rates import NO_RATES
from tests.support.wait import run_greenlets_until
from tests.support.websocket_client import client_frame
from workers.hub.close_codes import INTERNAL
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.conversation import Conversation, send_json
from workers.ws.deflate import compress
from workers.ws.transport import WebSocketTransport

LIMIT_BYTES = 1024 * 1024


class Recorder:
    """A feature that remembers; what it does besides is up to the test."""

    def __init__(self, *message_types: str) -> None:
        self.message_types = message_types
        self.taken: list[tuple[Connection, dict[str, Any]]] = []
        self.left: list[Connection] = []
        self.does: Callable[[Connection, dict[str, Any]], None] = lambda connection, message: None

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        self.taken.append((connection, message))
        self.does(connection, message)

    def drop_connection(self, connection: Connection) -> None:
        self.left.append(connection)

    def numbers(self, peer: Peer) -> list[Any]:
        """The `n` of what a client said."""
        return [message.get("n") for c, message in self.taken if c is peer.connection]


class Room:
    """A hub with two features in conversation."""

    def __init__(self, rates: AppRates = NO_RATES) -> None:
        transport = WebSocketTransport("ws", LIMIT_BYTES)
        self.hub = Hub(BY_ENTITY, transport, ManualClock())
        self.first = Recorder("a", "b")
        self.second = Recorder("c")
        self.conversation = Conversation(
            self.hub, (self.first, self.second), rates, dict.fromkeys("abc")
        )
        transport.on_text = self.conversation.on_text

    def peer(self) -> Peer:
        return Peer(self.hub, ADMIN)

    def waiting(self, peer: Peer) -> int | None:
        """How many messages of a client wait; None when none is being answered either."""
        found = self.conversation._waiting.get(peer.connection)
        return None if found is None else len(found)


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    yield made
    for connection in made.hub.connections:
        connection.abort()


def text(message: Any) -> bytes:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return client_frame(frames.TEXT, payload)


def numbered(count: int, kind: str = "a") -> bytes:
    return b"".join(text({"type": kind, "n": n}) for n in range(count))


def sent_to(peer: Peer) -> list[Any]:
    """The JSON that has come; a close frame as its code."""
    data, found = peer.received(), []
    while data:
        size, at = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4], "big"), 4)
        payload = data[at : at + size]
        is_close = data[0] == 0x80 | frames.CLOSE
        found.append(int.from_bytes(payload[:2], "big") if is_close else json.loads(payload))
        data = data[at + size :]
    return found


def ignored() -> float:
    return total(metrics.MESSAGES_RECEIVED, type="ignored")


def test_messages_go_to_the_feature_that_names_their_type(room: Room) -> None:
    peer = room.peer()
    peer.socket.send(text({"type": "c", "n": 1}) + text({"type": "b"}) + text({"type": "a"}))
    run_greenlets_until("two are taken", lambda: len(room.first.taken) == 2)
    assert [message["type"] for _, message in room.first.taken] == ["b", "a"]
    assert [message for _, message in room.second.taken] == [{"type": "c", "n": 1}]


def test_messages_of_a_client_are_taken_in_order_and_one_after_the_other(room: Room) -> None:
    under_way: list[int] = []

    def does(connection: Connection, message: dict[str, Any]) -> None:
        under_way.append(message["n"])
        gevent.sleep(0.001 if message["n"] % 7 == 0 else 0)
        assert under_way == [message["n"]]
        under_way.clear()

    room.first.does = room.second.does = does
    peer = room.peer()
    for n in range(100):
        peer.socket.send(text({"type": "ac"[n % 2], "n": n}))
        if n % 10 == 0:
            gevent.sleep(0.001)
    run_greenlets_until(
        "all are taken", lambda: len(room.first.taken) + len(room.second.taken) == 100
    )
    assert room.first.numbers(peer) == list(range(0, 100, 2))
    assert room.second.numbers(peer) == list(range(1, 100, 2))


@pytest.mark.parametrize(
    "message",
    [
        b"", b"no json", b"{", b"[]", b"null", b'"a"', b"{}", b'{"type":null}', b'{"type":1}',
        b'{"type":["a"]}', b'{"type":{"a":1}}', b'{"type":"unknown"}', b'{"type":"A"}',
        b"[" * 200_000, b'{"type":"a","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"type":"a"} {}', b'{"type":"\\ud800"}',
    ],
    ids=lambda message: message[:12].decode() + f" {len(message)}",
)
def test_what_makes_no_sense_is_counted_and_ignored(room: Room, message: bytes) -> None:
    peer = room.peer()
    before = ignored()
    gevent.spawn(peer.connection._transport.received, peer.connection, text(message)).join()
    peer.socket.send(text({"type": "a", "n": 1}))
    run_greenlets_until("one is taken", lambda: bool(room.first.taken))
    assert [said for _, said in room.first.taken] == [{"type": "a", "n": 1}]
    assert ignored() - before == 1
    assert sent_to(peer) == []
    assert peer.connection.is_open


def test_binary_messages_are_counted_and_ignored(room: Room) -> None:
    peer = room.peer()
    before = ignored()
    peer.socket.send(client_frame(frames.BINARY, b'{"type":"a"}'))
    run_greenlets_until("it is ignored", lambda: ignored() - before == 1)
    assert room.first.taken == []
    assert peer.connection.is_open


def test_an_error_is_told_with_what_names_the_message(room: Room) -> None:
    def does(connection: Connection, message: dict[str, Any]) -> None:
        if message["n"] == 1:
            raise InvalidData("no such thing", hint="say something else")
        send_json(connection, {"type": "done"})

    room.first.does = does
    peer = room.peer()
    named = {"sub_id": "s", "room": "r", "entity": "E", "rowId": "x", "row_id": 1, "text": "t"}
    peer.socket.send(text({"type": "a", "n": 1, **named}) + text({"type": "b", "n": 2}))
    run_greenlets_until("two are taken", lambda: len(room.first.taken) == 2)
    error, done = sent_to(peer)
    assert error == {
        "type": "error", "for": "a", "code": InvalidData("").code, "message": "no such thing",
        "hint": "say something else", "sub_id": "s", "room": "r", "entity": "E", "rowId": "x",
    }
    assert done == {"type": "done"}


def test_a_defect_of_a_feature_closes_that_client_only(room: Room) -> None:
    def does(connection: Connection, message: dict[str, Any]) -> None:
        if message["n"] == 1:
            raise ZeroDivisionError("a secret of the server")

    room.first.does = does
    harmed, other = room.peer(), room.peer()
    harmed.socket.send(numbered(3))
    run_greenlets_until("the socket is closed", lambda: not harmed.connection.is_open)
    told, code = sent_to(harmed)
    assert told["code"] == "INTERNAL"
    assert "secret" not in json.dumps(told)
    assert code == INTERNAL
    assert room.first.numbers(harmed) == [0, 1]  # what it said after that is not heard
    other.socket.send(text({"type": "a", "n": 7}))
    run_greenlets_until("the other is heard", lambda: room.first.numbers(other) == [7])
    assert other.connection.is_open


def test_every_feature_hears_of_the_end_of_every_connection(room: Room) -> None:
    silent, talker = room.peer(), room.peer()
    talker.socket.send(numbered(1))
    run_greenlets_until("one is taken", lambda: bool(room.first.taken))
    silent.socket.close()
    talker.socket.send(client_frame(frames.CLOSE, b""))
    run_greenlets_until("the socket is closed", lambda: not talker.connection.is_open)
    talker.socket.close()
    run_greenlets_until("both have left", lambda: len(room.second.left) == 2)
    for feature in (room.first, room.second):
        assert set(feature.left) == {silent.connection, talker.connection}
        assert len(feature.left) == 2


def test_a_connection_that_ends_while_it_is_answered(room: Room) -> None:
    ended = Event()
    room.first.does = lambda connection, message: ended.wait() and None
    peer = room.peer()
    peer.socket.send(numbered(5))
    run_greenlets_until("one is taken", lambda: bool(room.first.taken))
    peer.connection.abort()
    assert room.first.left == [peer.connection]
    ended.set()
    gevent.sleep(0)
    run_greenlets_until("nothing waits", lambda: room.waiting(peer) is None)
    assert room.first.numbers(peer) == [0]  # the rest has nobody who would read the answers


def test_a_client_is_not_read_while_its_messages_wait(room: Room) -> None:
    answered = Event()
    room.first.does = lambda connection, message: answered.wait() and None
    peer = room.peer()
    one = text({"type": "a", "n": 0, "fill": "x" * 1_000})
    stream = memoryview(one * 2_000)
    at = stuck = 0
    while stuck < 50:  # until the kernel takes no more, though the hub had its turns
        try:
            at += peer.socket.send(stream[at:])
            stuck = 0
        except BlockingIOError:
            stuck += 1
            gevent.sleep(0.001)
    waiting = room.waiting(peer)
    assert waiting is not None
    assert 0 < waiting * len(one) <= 2 * 65_536
    assert at < len(stream)  # the rest waits with the client itself
    answered.set()

    def all_taken() -> bool:
        nonlocal at
        with contextlib.suppress(BlockingIOError):
            at += peer.socket.send(stream[at:]) if at < len(stream) else 0
        return len(room.first.taken) == 2_000

    run_greenlets_until("all are taken", all_taken)


def test_a_flood_holds_nobody_else_up(room: Room) -> None:
    flooder, other = room.peer(), room.peer()
    order: list[str] = []

    def does(connection: Connection, message: dict[str, Any]) -> None:
        order.append("flooder" if connection is flooder.connection else "other")
        until = gevent.get_hub().loop.now() + 0.001  # a feature that computes
        gevent.get_hub().loop.update_now()
        while gevent.get_hub().loop.now() < until:
            gevent.get_hub().loop.update_now()

    room.first.does = does
    flooder.socket.send(numbered(400))
    run_greenlets_until("some are handled", lambda: len(order) > 10)
    other.socket.send(numbered(1))
    run_greenlets_until("the other is heard", lambda: "other" in order)
    assert order.index("other") < 200  # long before the flood is over
    run_greenlets_until("all are handled", lambda: len(order) == 401)


def test_messages_that_unpack_to_a_thousand_times_their_size_hold_nobody_up(room: Room) -> None:
    flooder, other = room.peer(), room.peer()
    flooder.connection.deflate_window = 12
    order: list[Connection] = []
    transport = flooder.connection._transport
    assert isinstance(transport, WebSocketTransport)
    transport.on_text = lambda connection, said: order.append(connection)
    bomb = client_frame(0x40 | frames.TEXT, compress(b"a" * limits.DEFLATE_FREE_BYTES, 12))
    flooder.socket.send(bomb * 40)
    other.socket.send(text({"type": "a"}))
    run_greenlets_until("all are handled", lambda: len(order) == 41)
    assert order.index(other.connection) <= 2


@pytest.mark.parametrize(("filter_json", "code", "words"), [
    (rb'{"s":"\ud83d"}', "INVALID_VALUE", "half of a surrogate pair"),
    (rb'{"\udc00":1}', "INVALID_VALUE", "half of a surrogate pair"),
    (b'{"n":1e400}', "INVALID_JSON", "too large"),
    (b"[" * 70 + b"]" * 70, "INVALID_JSON", "deeper than 64 levels"),
    (b"[" + b"[]," * limits.MESSAGE_NODES + b"0]", "LIMIT_EXCEEDED", "50000 values"),
])
def test_message_that_cannot_be_decoded_is_answered_with_an_error_that_names_it(
    room: Room, filter_json: bytes, code: str, words: str
) -> None:
    peer = room.peer()
    peer.socket.send(text(b'{"type":"a","sub_id":"q","filter":%b}' % filter_json))
    peer.socket.send(text({"type": "a", "n": 2}))
    run_greenlets_until("the second is heard", lambda: room.first.numbers(peer) == [2])
    (error,) = sent_to(peer)
    assert (error["type"], error["for"], error["sub_id"]) == ("error", "a", "q")
    assert error["code"] == code and words in error["message"]


def test_error_about_a_message_can_be_written_whatever_names_it(room: Room) -> None:
    peer = room.peer()
    peer.socket.send(text(rb'{"type":"a","sub_id":"q\ud83d"}'))
    run_greenlets_until("somebody has come", lambda: bool(room.hub.connections))
    received: list[Any] = []
    run_greenlets_until("an answer", lambda: bool(received.extend(sent_to(peer)) or received))
    assert received[0]["sub_id"] == "q\ufffd"


@pytest.mark.parametrize("value", ["[" * 60_000, '"[{' * 20_000, "\\[" * 30_000])
def test_long_texts_full_of_brackets_are_taken(room: Room, value: str) -> None:
    peer = room.peer()
    peer.socket.send(text({"type": "a", "n": value}))
    run_greenlets_until("it is heard", lambda: room.first.numbers(peer))
    assert room.first.numbers(peer) == [value]


def test_messages_above_a_rate_of_the_app_are_refused() -> None:
    rule = RateLimit("says", "ws", "message", "user", limit=2, window_s=60, burst=2)
    clock = ManualClock()
    room = Room(AppRates((rule,), RateLimiter(RateTable(), clock)))
    ann, admin = Peer(room.hub, AuthContext(user_id="ann")), room.peer()
    ann.socket.send(numbered(3) + text({"type": "unknown"}))
    admin.socket.send(numbered(4))
    run_greenlets_until("messages", lambda: len(room.first.numbers(admin)) == 4)
    assert room.first.numbers(ann) == [0, 1]
    assert room.first.numbers(admin) == [0, 1, 2, 3]
    (refused,) = sent_to(ann)
    assert (refused["type"], refused["for"], refused["code"]) == ("error", "a", "RATE_LIMITED")
    clock.advance(30)
    ann.socket.send(numbered(1))
    run_greenlets_until("messages", lambda: len(room.first.numbers(ann)) == 3)
    for connection in room.hub.connections:
        connection.abort()
