"""A4: the messages of one socket or one address take a bounded share of a worker.

Work is counted: bytes that are unpacked, frames and messages that are handled in one step or
within a time of the test's own clock.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.clock import ManualClock
from tests.support.examples import count_examples
from tests.support.hub_peer import BY_ENTITY, Peer
from tests.support.rates import NO_RATES
from tests.support.stage import Stage
from tests.support.wait import run_greenlets_until
from tests.support.websocket_client import WebSocketClient, client_frame
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.conversation import Conversation
from workers.ws.deflate import compress
from workers.ws.frames import Parser, Received, Text, Violation
from workers.ws.transport import WebSocketTransport

MIB: Final = 1024 * 1024
PACKED: Final = 0x40
SMALL: Final = client_frame(frames.TEXT, b'{"type":"x"}')
SMALL_COST_BYTES: Final = limits.SOCKET_FRAME_COST_BYTES + 12


def packed(data: bytes, level: int = 9) -> bytes:
    """A text message as clients pack it."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    payload = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    return client_frame(PACKED | frames.TEXT, payload[:-4])


# --- Packed messages -------------------------------------------------------------------------


@pytest.mark.parametrize("step_bytes", [1, 100, 4_096, MIB])
def test_a_kilobyte_that_unpacks_to_a_megabyte_is_refused(step_bytes: int) -> None:
    bomb = packed(b"a" * (MIB - 100))
    assert len(bomb) < 1_100
    parser = Parser(MIB, unpacks=True)
    received: list[Received] = []
    for at in range(0, len(bomb), step_bytes):
        received += parser.feed(bomb[at : at + step_bytes])
    (refusal,) = received
    assert isinstance(refusal, Violation)
    assert refusal.code == frames.TOO_BIG
    allowed_bytes = max(limits.DEFLATE_FREE_BYTES, limits.DEFLATE_RATIO * len(bomb))
    assert parser.size_bytes <= allowed_bytes + limits.DEFLATE_STEP_BYTES


def honest_messages() -> Iterator[str]:
    """What apps send: the most repetitive of it, and large."""
    ids = [f"{number:032x}{number % 7:08x}" for number in range(10_000)]
    yield json.dumps({"type": "subscribe", "filter": {"id": {"$in": ids}}})
    yield json.dumps({"type": "topic", "data": [{"x": 0, "y": 0, "z": 0}] * 4_000})
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs"]
    chance = random.Random(7)
    yield json.dumps({"type": "topic", "data": " ".join(chance.choices(words, k=100_000))})
    grid = [[chance.choice((0, 0, 0, 0, 0, 1)) for _ in range(400)] for _ in range(400)]
    yield json.dumps({"type": "presence", "data": grid})
    yield json.dumps({"type": "topic", "data": [{"x": n, "y": 0, "z": 0} for n in range(30_000)]})
    yield json.dumps({"type": "presence", "data": [0] * 40_000})
    yield json.dumps({"type": "topic", "data": "€" * 5_000})


@pytest.mark.parametrize("message", list(honest_messages()), ids=lambda text: str(len(text)))
def test_what_apps_send_is_unpacked(message: str) -> None:
    assert Parser(MIB, unpacks=True).feed(packed(message.encode())) == [Text(message)]


@settings(max_examples=count_examples(50))
@given(
    st.lists(
        st.tuples(st.binary(max_size=50), st.integers(0, 4_000), st.integers(1, 3)), max_size=5
    ),
    st.lists(st.integers(1, 3_000), max_size=10),
)
def test_steps_give_the_same_messages_as_one_piece(
    messages: list[tuple[bytes, int, int]], cuts: list[int]
) -> None:
    """Whatever the steps are: also when one message takes several, and its frame has not ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "DEFLATE_STEP_BYTES", 300)
        patch.setattr(limits, "SOCKET_STEP_FRAMES", 2)
        stream, expected = b"", []
        for piece, repeats, fragments in messages:
            data = piece.hex().encode() * (repeats // 50 + 1)
            payload = compress(data, 12)
            size = -(-len(payload) // fragments)
            parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
            for number, part in enumerate(parts):
                opcode = 0 if number else frames.TEXT | PACKED
                stream += client_frame(opcode, part, fin=number == len(parts) - 1)
                stream += client_frame(frames.PING, b"")
            expected.append(data.decode())
        parser = Parser(MIB, unpacks=True)
        found: list[Received] = []
        for cut in [*cuts, len(stream)]:
            data, stream = stream[:cut], stream[cut:]
            while True:
                before, size_bytes = parser.frames, parser.size_bytes
                found += parser.step(data)
                assert parser.frames - before <= 2
                assert parser.size_bytes - size_bytes <= 3 * 300
                data = b""
                if not parser.has_rest:
                    break
        assert [item.text for item in found if isinstance(item, Text)] == expected


# --- Budgets ---------------------------------------------------------------------------------


class BudgetStage:
    """A hub on the test's clock, and how many messages each connection was heard saying."""

    def __init__(self, *, counts_addresses: bool = True) -> None:
        self.clock = ManualClock()
        transport = WebSocketTransport(
            "ws", MIB, clock=self.clock, counts_addresses=counts_addresses
        )
        self.hub = Hub(BY_ENTITY, transport, self.clock)
        self.heard: Counter[Connection] = Counter()
        self.on_heard: Callable[[Connection], None] = lambda connection: None
        transport.on_text = self._hear

    def _hear(self, connection: Connection, text: str) -> None:
        self.heard[connection] += 1
        self.on_heard(connection)

    def peer(self, address: str = "192.0.2.1", auth: AuthContext = ANONYMOUS) -> Peer:
        peer = Peer(self.hub, auth)
        peer.connection.address = address
        return peer

    def say_all(self, *senders: tuple[Peer, memoryview]) -> list[int]:
        """Send until the hub takes and handles no more; how much it took of each."""
        sent_bytes = [0] * len(senders)
        quiet, handled = 0, 0
        while quiet < 40:
            gevent.sleep(0.001)
            quiet += 1
            for number, (peer, data) in enumerate(senders):
                with contextlib.suppress(BlockingIOError, BrokenPipeError):
                    more = peer.socket.send(data[sent_bytes[number]:][:65_536])
                    sent_bytes[number] += more
                    quiet = 0 if more else quiet
            if (now_handled := self.heard.total()) > handled:
                quiet, handled = 0, now_handled
        return sent_bytes

    def close(self) -> None:
        for connection in self.hub.connections:
            connection.abort()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[BudgetStage]:
    spawn_later = gevent.spawn_later

    def spawn_soon(seconds: float, *called: Any) -> Any:
        return spawn_later(min(seconds, 0.001), *called)

    monkeypatch.setattr(gevent, "spawn_later", spawn_soon)  # the test's clock decides
    made = BudgetStage()
    yield made
    made.close()


def small(count: int) -> memoryview:
    return memoryview(SMALL * count)


def test_a_socket_is_read_as_its_budget_allows_and_loses_nothing(stage: BudgetStage) -> None:
    peer = stage.peer()
    count = 25_000
    stream = small(count)
    at = stage.say_all((peer, stream))[0]
    burst = limits.SOCKET_BURST_BYTES // SMALL_COST_BYTES
    assert burst < stage.heard[peer.connection] <= burst + limits.SOCKET_STEP_FRAMES
    assert at < len(stream), "the rest waits with the client"
    stage.clock.advance(1.0)
    run_greenlets_until(
        "more than the burst is heard",
        lambda: stage.heard[peer.connection] > burst + limits.SOCKET_STEP_FRAMES,
    )
    at += stage.say_all((peer, stream[at:]))[0]
    a_second = limits.SOCKET_BYTES_PER_S // SMALL_COST_BYTES
    assert stage.heard[peer.connection] <= burst + a_second + limits.SOCKET_STEP_FRAMES
    while stage.heard[peer.connection] < count:
        stage.clock.advance(1.0)
        gevent.sleep(0.002)
        with contextlib.suppress(BlockingIOError):
            at += peer.socket.send(stream[at:]) if at < len(stream) else 0
    assert peer.connection.is_open


def test_a_socket_that_always_says_too_much_is_closed_with_1008(stage: BudgetStage) -> None:
    peer = stage.peer()
    stream, at = small(200_000), 0
    before_s = stage.clock.monotonic_s()
    while peer.connection.is_open:
        with contextlib.suppress(BlockingIOError):
            at += peer.socket.send(stream[at : at + 65_536])
        gevent.sleep(0.001)
        inbox = peer.connection.receiver
        if inbox.is_waiting:
            stage.clock.advance(max(0.0, inbox.wait_s(stage.clock.monotonic_s())))
        assert stage.clock.monotonic_s() - before_s < 3 * limits.SOCKET_DEBT_S
    assert stage.clock.monotonic_s() - before_s >= limits.SOCKET_DEBT_S
    code, reason = close_of(peer)
    assert code == 1008
    assert str(limits.SOCKET_BYTES_PER_S) in reason


def close_of(peer: Peer) -> tuple[int, str]:
    data = peer.socket.recv(1_000)
    assert data[0] == 0x80 | frames.CLOSE
    return int.from_bytes(data[2:4], "big"), data[4:].decode()


def test_a_client_that_was_too_quick_once_is_not_closed(stage: BudgetStage) -> None:
    peer = stage.peer()
    burst = limits.SOCKET_BURST_BYTES // SMALL_COST_BYTES
    for number in range(1, 31):  # ten minutes of bursts, with breaks
        stage.say_all((peer, small(2 * burst)))
        assert peer.connection.receiver.is_waiting
        for _ in range(10):
            stage.clock.advance(1.0)
            gevent.sleep(0.003)
        run_greenlets_until(
            "all is heard",
            lambda number=number: stage.heard[peer.connection] == number * 2 * burst,
        )
        stage.clock.advance(10.0)
    assert peer.connection.is_open


def test_the_sockets_of_an_address_share_a_budget(stage: BudgetStage) -> None:
    many = [stage.peer("2001:db8::1:1") for _ in range(20)]
    other = stage.peer("2001:db8:0:1::1")
    stage.say_all(*((peer, small(4_000)) for peer in many))
    burst = limits.ADDRESS_BURST_BYTES // SMALL_COST_BYTES
    heard = sum(stage.heard[peer.connection] for peer in many)
    assert burst < heard <= burst + len(many) * limits.SOCKET_STEP_FRAMES
    stage.say_all((other, small(1_000)))
    assert stage.heard[other.connection] == 1_000
    again = stage.peer("2001:db8::1:2")  # a new socket of the /64 begins with its debt
    stage.say_all((again, small(1_000)))
    assert stage.heard[again.connection] <= limits.SOCKET_STEP_FRAMES
    assert all(peer.connection.is_open for peer in (*many, again))


def test_people_behind_one_router_are_not_held_up(stage: BudgetStage) -> None:
    office = [stage.peer("198.51.100.7") for _ in range(200)]
    for _ in range(10):  # seconds
        for peer in office:
            for _ in range(20):
                peer.socket.send(client_frame(frames.TEXT, b"x" * 300))
        stage.clock.advance(1.0)
        gevent.sleep(0.01)
    run_greenlets_until("all is heard", lambda: sum(stage.heard.values()) == 200 * 10 * 20)
    assert all(peer.connection.receiver.debt_since_s is None for peer in office)


@pytest.mark.parametrize("deflate_window", [0, 12])
def test_answers_count_against_the_budget_of_who_asked(
    stage: BudgetStage, deflate_window: int
) -> None:
    """A message of 50 bytes may ask for a megabyte, which is read, packed and sent for it."""
    greedy, other = stage.peer(), stage.peer()
    greedy.connection.deflate_window = deflate_window
    transport = stage.hub.transport
    stage.on_heard = lambda connection: transport.charge(connection, MIB)
    stage.say_all((greedy, small(2_000)), (other, small(1)))
    each_bytes = SMALL_COST_BYTES + (MIB if deflate_window else MIB // limits.SOCKET_ANSWER_SHARE)
    answered = limits.SOCKET_BURST_BYTES // each_bytes
    assert answered <= stage.heard[greedy.connection] <= answered + limits.SOCKET_STEP_FRAMES
    assert stage.heard[other.connection] == 1


def test_a_message_that_has_the_store_asked_counts_more(stage: BudgetStage) -> None:
    class Feature:
        message_types = ("subscribe", "unsubscribe")

        def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
            stage.heard[connection] += 1

        def drop_connection(self, connection: Connection) -> None:
            stage.heard.pop(connection, None)

    transport = stage.hub.transport
    assert isinstance(transport, WebSocketTransport)
    transport.on_text = Conversation(stage.hub, (Feature(),), NO_RATES).on_text
    asking, other = stage.peer(), stage.peer()
    question = client_frame(frames.TEXT, b'{"type":"subscribe"}')
    stage.say_all((asking, memoryview(question * 1_500)))
    cost_bytes = limits.SOCKET_READ_COST_BYTES + limits.SOCKET_FRAME_COST_BYTES + 20
    answered = limits.SOCKET_BURST_BYTES // cost_bytes
    assert answered >= 300, "a client that comes back asks for all of its live queries"
    assert answered < stage.heard[asking.connection] <= answered + 3 * limits.SOCKET_STEP_FRAMES
    stage.say_all((other, memoryview(client_frame(frames.TEXT, b'{"type":"unsubscribe"}') * 1_500)))
    assert stage.heard[other.connection] == 1_500


def test_administrators_and_addresses_that_mean_nothing_have_no_budget() -> None:
    stage = BudgetStage(counts_addresses=False)
    admin = stage.peer(auth=ADMIN)
    stage.say_all((admin, small(6_000)))
    assert stage.heard[admin.connection] == 6_000
    crowd = [stage.peer() for _ in range(12)]
    stage.say_all(*((peer, small(1_500)) for peer in crowd))
    assert 12 * 1_500 * SMALL_COST_BYTES > limits.ADDRESS_BURST_BYTES
    assert sum(stage.heard[peer.connection] for peer in crowd) == 12 * 1_500
    stage.close()


# --- Turns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flood",
    [
        SMALL * 2_000,
        client_frame(frames.PING, b"") * 6_000,
        client_frame(frames.TEXT, b"", fin=False)
        + client_frame(frames.CONTINUATION, b"", fin=False) * 8_000,
        packed(b"a" * limits.DEFLATE_FREE_BYTES) * 40,
        client_frame(frames.TEXT, b"x" * 60_000),
    ],
    ids=["messages", "pings", "fragments", "bombs", "a large one"],
)
def test_others_have_their_turn_after_one_step_of_a_flood(stage: BudgetStage, flood: bytes) -> None:
    flooder, other = stage.peer(), stage.peer()
    flooder.connection.deflate_window = 12
    assert flooder.socket.send(flood) == len(flood)
    done: list[tuple[int, int]] = []

    def note(connection: Connection) -> None:
        inbox = flooder.connection.receiver
        if connection is other.connection and inbox is not None:
            done.append((inbox.parser.frames, inbox.parser.size_bytes))

    stage.on_heard = note
    other.socket.send(SMALL)
    run_greenlets_until("the other is heard", lambda: stage.heard[other.connection] == 1)
    for step_frames, step_bytes in done:
        assert step_frames <= limits.SOCKET_STEP_FRAMES
        assert step_bytes <= max(limits.DEFLATE_STEP_BYTES, 65_536)


def test_many_addresses_take_little_memory(
    stage: BudgetStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOCKET_ADDRESSES", 10)
    transport = stage.hub.transport
    assert isinstance(transport, WebSocketTransport)
    addresses = transport._addresses
    for number in range(100):
        budget = addresses.budget_of(f"192.0.2.{number}")
        assert budget is not None
        budget.spend(MIB, 0.0)
    assert len(addresses._by_network) == 10
    assert addresses.budget_of("192.0.2.99") is addresses.budget_of("192.0.2.99")


# --- A worker --------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_changes_are_delivered_while_an_anonymous_socket_sends_bombs(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    try:
        worker = stage.start("ws")
        victim = WebSocketClient(worker.port)
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        bombers = [WebSocketClient(worker.port, headers=offer) for _ in range(5)]
        bomb = packed(b" " * limits.DEFLATE_FREE_BYTES)  # as large as passes with its ratio
        threads = [
            threading.Thread(target=send_bombs, args=(bomber, bomb * 5_000), daemon=True)
            for bomber in bombers
        ]
        for thread in threads:
            thread.start()
        for number in range(50):
            stage.write(stage.insert("Public", text=str(number)))
            assert victim.read_events(1) == [("insert", str(number))]
        heard = stage.metric(worker, "pylon_messages_received_total", type="ignored")
        size_bytes = limits.DEFLATE_FREE_BYTES + limits.SOCKET_FRAME_COST_BYTES
        # A burst and ten seconds of each, of 25,000 that would have gone through otherwise.
        a_budget = limits.SOCKET_BURST_BYTES + 10 * limits.SOCKET_BYTES_PER_S
        assert heard <= len(bombers) * a_budget / size_bytes
        for bomber in bombers:
            bomber.close()
        for thread in threads:
            thread.join()
    finally:
        stage.close()


def send_bombs(client: WebSocketClient, stream: bytes) -> None:
    with contextlib.suppress(OSError):  # it is closed when the test is over
        client.send(stream)
