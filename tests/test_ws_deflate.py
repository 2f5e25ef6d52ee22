"""workers.ws.deflate and packed messages in workers.ws.frames (RFC 7692)."""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits, metrics
from pylon.auth_context import ADMIN, AuthContext
from pylon.changelog.change import Change
from pylon.clock import ManualClock
from pylon.errors import BadUpgrade
from pylon.storage.events import ChangeEvent
from tests.support.hub_peer import BY_ENTITY, Peer, row
from tests.support.measured import total
from tests.support.stage import Stage
from tests.support.websocket_client import WebSocketClient, client_frame
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.conversation import send_json
from workers.ws.deflate import WINDOW_BITS, Deflate, Inflater, compress, negotiate
from workers.ws.frames import Binary, Parser, Ping, Received, Text, Violation
from workers.ws.transport import WebSocketTransport

pytestmark = pytest.mark.stores

LIMIT_BYTES = 4_096
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
PACKED = 0x40


def unpack(data: bytes, bits: int = 15) -> bytes:
    """As a client does it, with a window of its own."""
    return zlib.decompressobj(-bits).decompress(data + b"\x00\x00\xff\xff")


def packed_frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    return client_frame(opcode | PACKED, data, fin=fin)


# --- The handshake -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "bits", "answer"),
    [
        ("permessage-deflate", 12, ANSWER),
        ("permessage-deflate; client_max_window_bits", 12, ANSWER),  # Chromium
        ("permessage-deflate;client_max_window_bits=15", 12, ANSWER),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", 12, ANSWER),
        ("permessage-deflate; server_max_window_bits=15", 12,
         f"{ANSWER}; server_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=9", 9, f"{ANSWER}; server_max_window_bits=9"),
        ('permessage-deflate; server_max_window_bits="10"', 10,
         f"{ANSWER}; server_max_window_bits=10"),
        ("x-webkit-deflate-frame, permessage-deflate", 12, ANSWER),
        ("permessage-deflate; unknown=1, permessage-deflate ; client_max_window_bits = 8", 12,
         ANSWER),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", 12, ANSWER),
        (" ,, permessage-deflate ,", 12, ANSWER),
    ],
)
def test_offers_that_are_taken(header: str, bits: int, answer: str) -> None:
    assert negotiate(header) == Deflate(bits, answer)


@pytest.mark.parametrize(
    "header",
    [
        None, "", "  ", ",", "permessage-bzip2", "Permessage-Deflate",
        "permessage-deflate; unknown",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=true",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",  # zlib has no such raw stream
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=012",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=x",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
    ],
)
def test_offers_that_are_declined(header: str | None) -> None:
    assert negotiate(header) is None


@pytest.mark.parametrize(
    "header",
    ["permessage-deflate;", "permessage-deflate; =1", "a b", "permessage-deflate; a=", "a; b=\"",
     'permessage-deflate; server_max_window_bits="1 2"', "é"],
)
def test_a_malformed_header_is_no_handshake(header: str) -> None:
    with pytest.raises(BadUpgrade):
        negotiate(header)


@settings(deadline=None)
@given(st.text("abp;,=\" \t", max_size=60))
def test_no_header_breaks_the_negotiation(header: str) -> None:
    with contextlib.suppress(BadUpgrade):
        assert negotiate(header) is None


# --- What the server sends -----------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=20_000), st.integers(9, WINDOW_BITS))
def test_packed_payloads_need_the_agreed_window_and_no_context(data: bytes, bits: int) -> None:
    data = data + data[: len(data) // 2]
    assert unpack(compress(data, bits), bits) == data


# --- What clients send ---------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.text(max_size=400), st.integers(1, 4)), max_size=5),
    st.lists(st.integers(1, 60), max_size=20),
    st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH]),
)
def test_packed_and_plain_messages_in_any_chunks(
    messages: list[tuple[bool, str, int]], cuts: list[int], flush: int
) -> None:
    stream = b""
    expected: list[Received] = []
    for packs, text, fragments in messages:
        data = text.encode()
        if packs:
            packer = zlib.compressobj(6, zlib.DEFLATED, -15)
            data = packer.compress(data) + packer.flush(flush)
            data = data + b"\x00" if flush == zlib.Z_FINISH else data[:-4]
        step = max(1, -(-len(data) // fragments))
        pieces = [data[i : i + step] for i in range(0, len(data), step)] or [b""]
        for i, piece in enumerate(pieces):
            first = (frames.TEXT | (PACKED if packs else 0)) if i == 0 else 0
            stream += client_frame(first, piece, fin=i == len(pieces) - 1)
            if i == 0:
                stream += client_frame(frames.PING, b"p")
                expected.append(Ping(b"p"))
        last = expected.pop() if len(pieces) == 1 else None
        expected.append(Text(text))
        expected += [last] if last is not None else []
    parser = Parser(LIMIT_BYTES, unpacks=True)
    received: list[Received] = []
    for cut in cuts:
        received += parser.feed(stream[:cut])
        stream = stream[cut:]
    assert received + parser.feed(stream) == expected


def code_of(received: list[Received]) -> int | None:
    item = received[-1] if received else None
    return item.code if isinstance(item, Violation) else None


def test_packed_frames_that_were_not_agreed_to() -> None:
    frame = packed_frame(frames.TEXT, compress(b"a", 12))
    assert code_of(Parser(LIMIT_BYTES).feed(frame)) == frames.PROTOCOL_ERROR
    assert Parser(LIMIT_BYTES, unpacks=True).feed(frame) == [Text("a")]


@pytest.mark.parametrize(
    "stream",
    [
        packed_frame(frames.PING, b""),
        packed_frame(frames.CLOSE, b""),
        client_frame(frames.TEXT, b"a", fin=False) + packed_frame(frames.CONTINUATION, b""),
        client_frame(frames.TEXT | 0x20, b"a"),
        client_frame(frames.TEXT | 0x10 | PACKED, b"a"),
    ],
)
def test_reserved_bits_where_they_may_not_be(stream: bytes) -> None:
    assert code_of(Parser(LIMIT_BYTES, unpacks=True).feed(stream)) == frames.PROTOCOL_ERROR


@pytest.mark.parametrize("size_bytes", [LIMIT_BYTES, LIMIT_BYTES + 1, 1 << 20])
def test_a_bomb_is_unpacked_to_the_limit_only(size_bytes: int) -> None:
    frame = packed_frame(frames.BINARY, compress(b"\x00" * size_bytes, 12))
    received = Parser(LIMIT_BYTES, unpacks=True).feed(frame)
    if size_bytes > LIMIT_BYTES:
        assert code_of(received) == frames.TOO_BIG
    else:
        assert received == [Binary(b"\x00" * size_bytes)]


def test_a_bomb_in_fragments() -> None:
    data = compress(b"a" * 1_000_000, 12)
    parser = Parser(LIMIT_BYTES, unpacks=True)
    received = parser.feed(packed_frame(frames.TEXT, data[:10], fin=False))
    for at in range(10, len(data), 10):
        received += parser.feed(client_frame(frames.CONTINUATION, data[at : at + 10], fin=False))
    assert [code_of(received), len(received)] == [frames.TOO_BIG, 1]


def test_packed_bytes_count_too() -> None:
    empties = b"\x00\x00\x00\xff\xff" * 1_000  # blocks of nothing
    received = Parser(LIMIT_BYTES, unpacks=True).feed(packed_frame(frames.TEXT, empties))
    assert code_of(received) == frames.TOO_BIG


@pytest.mark.parametrize(
    "data",
    [
        b"\x07",  # a block of the reserved type
        b"\xff" * 20,
        zlib.compress(b"with a zlib header"),
        compress(b"one", 12)[:-1] + b"\x03\x00" + compress(b"two", 12),  # more after the last block
    ],
)
def test_what_is_no_deflate_stream(data: bytes) -> None:
    received = Parser(LIMIT_BYTES, unpacks=True).feed(packed_frame(frames.BINARY, data))
    assert code_of(received) == frames.INVALID_DATA


def test_packed_text_must_be_utf8() -> None:
    frame = packed_frame(frames.TEXT, compress(b"\xff", 12))
    assert code_of(Parser(LIMIT_BYTES, unpacks=True).feed(frame)) == frames.INVALID_DATA


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_inflater_fail_otherwise(noise: bytes) -> None:
    received = Parser(LIMIT_BYTES, unpacks=True).feed(packed_frame(frames.BINARY, noise))
    assert len(received) == 1
    assert isinstance(received[0], Binary) or code_of(received) is not None


def test_an_empty_message_may_be_packed() -> None:
    assert Inflater(10).feed(compress(b"", 12), final=True) == b""
    assert Parser(10, unpacks=True).feed(packed_frame(frames.TEXT, b"\x00")) == [Text("")]


# --- The hub -------------------------------------------------------------------------------


class CountingTransport(WebSocketTransport):
    """Remembers what was packed."""

    def __init__(self) -> None:
        super().__init__("ws", LIMIT_BYTES)
        self.asked: list[tuple[bytes, int]] = []

    def compress(self, frame: bytes, deflate_window: int) -> bytes:
        if deflate_window:
            self.asked.append((frame, deflate_window))
        return super().compress(frame, deflate_window)


def messages_of(data: bytes, bits: int) -> tuple[list[bytes], int]:
    """The payloads of server frames, unpacked, and how many of them were packed."""
    found, packed_count = [], 0
    while data:
        size, at = data[1], 2
        if size >= 126:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at], "big")
        payload = data[at : at + size]
        if data[0] & PACKED:
            packed_count += 1
            payload = unpack(payload, bits)
        found.append(payload)
        data = data[at + size :]
    return found, packed_count


def change_of(seq: int, entity: str, text: str, owner: str) -> Change:
    image = row(owner, False, text)
    return Change(ChangeEvent(seq, entity, f"{seq:040x}", "insert", image, None, 1))


def test_a_change_is_packed_once_for_all_who_agreed() -> None:
    transport = CountingTransport()
    hub = Hub(BY_ENTITY, transport, ManualClock())
    contexts = [AuthContext(user_id="ada"), AuthContext(user_id="bob"), ADMIN]
    peers: dict[tuple[AuthContext, int, int], Peer] = {}
    for auth in contexts:
        for deflate_window in (0, 9, 12):
            for number in range(3):
                peer = peers[auth, deflate_window, number] = Peer(hub, auth)
                peer.connection.deflate_window = deflate_window
                hub.join(peer.connection)
    assert hub.contexts == len(contexts)
    long = "all work and no play " * 50
    changes = [
        change_of(1, "Public", long, "ada"),
        change_of(2, "Public", "short", "ada"),
        change_of(3, "Mine", long, "ada"),
    ]
    hub.publish(changes)
    for (auth, deflate_window, _), peer in peers.items():
        sees = changes if auth.user_id != "bob" else changes[:2]
        texts, packed_count = messages_of(peer.received(), deflate_window or 15)
        assert texts == [change.wire for change in sees]
        assert packed_count == (len(sees) - 1 if deflate_window else 0)
    assert len(transport.asked) == len(set(transport.asked)) == 6  # three frames, two windows
    for peer in peers.values():
        peer.connection.abort()
    assert hub.contexts == 0
    assert not len(hub._groups) and not hub._groups.deflate_windows


def test_one_whose_replay_was_ahead_gets_packed_frames() -> None:
    hub = Hub(BY_ENTITY, CountingTransport(), ManualClock())
    peer = Peer(hub, ADMIN)
    peer.connection.deflate_window = 12
    peer.connection.last_seq = 1
    hub.join(peer.connection)
    changes = [change_of(seq, "Public", "x" * 1_000, "ada") for seq in (1, 2)]
    hub.publish(changes[:1])
    hub.publish(changes[1:])
    assert messages_of(peer.received(), 12) == ([changes[1].wire], 1)
    peer.connection.abort()


def test_what_packing_would_not_make_smaller_goes_as_it_is() -> None:
    transport = WebSocketTransport("ws", LIMIT_BYTES)
    noise = random.Random(1).randbytes(2_000)
    small = frames.encode(frames.TEXT, b"a" * (limits.DEFLATE_MIN_BYTES - 10))
    for frame in (frames.encode(frames.BINARY, noise), small):
        assert transport.compress(frame, 12) is frame
    for size in (limits.DEFLATE_MIN_BYTES, 70_000):
        frame = frames.encode(frames.BINARY, b"a" * size)
        packed = transport.compress(frame, 12)
        assert packed[0] == 0x80 | PACKED | frames.BINARY
        assert messages_of(packed, 12) == ([b"a" * size], 1)


def saved_bytes() -> float:
    """The metric's value."""
    return total(metrics.DEFLATE_SAVED)


def test_answers_are_packed_for_those_who_agreed() -> None:
    hub = Hub(BY_ENTITY, WebSocketTransport("ws", LIMIT_BYTES), ManualClock())
    long, short = {"type": "rows", "text": "x" * 1_000}, {"type": "ok"}
    for deflate_window, wanted in ((0, 0), (12, 1)):
        peer = Peer(hub, ADMIN)
        peer.connection.deflate_window = deflate_window
        before = saved_bytes()
        assert send_json(peer.connection, long)
        assert send_json(peer.connection, short)
        texts, packed_count = messages_of(peer.received(), 12)
        assert [json.loads(text) for text in texts] == [long, short]
        assert packed_count == wanted
        assert (saved_bytes() > before) == bool(wanted)
        peer.connection.abort()


# --- The ws worker -------------------------------------------------------------------------


class DeflateClient(WebSocketClient):
    """Unpacks what comes, and counts it."""

    packed_count = 0

    def read_frame(self) -> tuple[int, bytes]:
        first, size = self.read_exactly(2)
        if size == 126:
            size = int.from_bytes(self.read_exactly(2), "big")
        elif size == 127:
            size = int.from_bytes(self.read_exactly(8), "big")
        payload = self.read_exactly(size)
        if first & PACKED:
            self.packed_count += 1
            payload = unpack(payload, WINDOW_BITS)
        return first & 0x0F, payload


OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}


@pytest.mark.usefixtures("processes")
def test_replayed_and_live_changes_are_packed_for_those_who_offer_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    try:
        ws = stage.start("ws")
        long = "all work and no play " * 50
        before = stage.write(stage.insert("Public", text=long)).prev_seq
        clients = [
            DeflateClient(ws.port, path=f"/?since={before}", headers=headers)
            for headers in (OFFER, {}, OFFER)
        ]
        assert [c.headers.get("sec-websocket-extensions") for c in clients] == [
            ANSWER, None, ANSWER
        ]
        for client in clients:
            assert client.read_events(1) == [("insert", long)]
        stage.write(stage.insert("Public", text=long[1:]), stage.insert("Public", text="short"))
        for client in clients:
            assert client.read_events(2) == [("insert", long[1:]), ("insert", "short")]
        assert [c.packed_count for c in clients] == [2, 0, 2]
        clients[0].send(packed_frame(frames.TEXT, compress(b'{"type":"unknown"}', 15)))
        clients[0].send_frame(frames.PING, b"still there?")
        assert clients[0].read_control() == (frames.PONG, b"still there?")
        clients[1].send(packed_frame(frames.TEXT, compress(b"not agreed", 15)))
        assert clients[1].read_close()[0] == frames.PROTOCOL_ERROR
        for client in clients:
            client.close()
    finally:
        stage.close()


@pytest.mark.usefixtures("processes")
def test_the_setting_turns_it_off(tmp_path: Path) -> None:
    stage = Stage(tmp_path, PYLON_WS_DEFLATE="false")
    try:
        client = DeflateClient(stage.start("ws").port, headers=OFFER)
        assert "sec-websocket-extensions" not in client.headers
        client.close()
    finally:
        stage.close()
