"""workers.ws.frames: the corpus of client frames, in one piece and byte by byte; the encoder."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.ws import frames
from workers.ws.frames import Binary, Close, Parser, Ping, Pong, Received, Text, Violation

CASES = json.loads((Path(__file__).parent / "corpora/ws/frames.json").read_text())
LIMIT_BYTES = 1_024


def shown(item: Received) -> list[Any]:
    match item:
        case Text(text):
            return ["text", text]
        case Binary(data) | Ping(data) | Pong(data):
            return [type(item).__name__.lower(), data.hex()]
        case Close(code, reason):
            return ["close", code, reason]
        case Violation(code, _):
            return ["violation", code]


def masked(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    key = b"\x01\x02\x03\x04"
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += b"\xfe" + struct.pack("!H", size)
    else:
        head += b"\xff" + struct.pack("!Q", size)
    return head + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_corpus_in_one_piece(case: dict[str, Any]) -> None:
    received = Parser(LIMIT_BYTES, unpacks=case.get("unpacks", False)).feed(
        bytes.fromhex(case["hex"])
    )
    assert [shown(item) for item in received] == case["expect"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_corpus_byte_by_byte(case: dict[str, Any]) -> None:
    parser = Parser(LIMIT_BYTES, unpacks=case.get("unpacks", False))
    received = [
        item for byte in bytes.fromhex(case["hex"]) for item in parser.feed(bytes([byte]))
    ]
    assert [shown(item) for item in received] == case["expect"]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["text", "binary", "ping"]), st.binary(max_size=300)),
             max_size=5),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
    st.integers(1, 4),
)
def test_any_chunks_give_the_same_messages(
    messages: list[tuple[str, bytes]], cuts: list[int], fragments: int
) -> None:
    stream = b""
    expected: list[list[Any]] = []
    for kind, payload in messages:
        if kind == "ping":
            stream += masked(frames.PING, payload[:125])
            expected.append(["ping", payload[:125].hex()])
            continue
        if kind == "text":
            payload = payload.hex().encode()
            expected.append(["text", payload.decode()])
        else:
            expected.append(["binary", payload.hex()])
        step = max(1, len(payload) // fragments)
        pieces = [payload[i : i + step] for i in range(0, len(payload), step)] or [b""]
        for i, piece in enumerate(pieces):
            first = frames.TEXT if kind == "text" else frames.BINARY
            stream += masked(first if i == 0 else 0, piece, fin=i == len(pieces) - 1)
    parser = Parser(LIMIT_BYTES)
    received: list[Received] = []
    at = 0
    for cut in cuts:
        received += parser.feed(stream[at : at + cut])
        at += cut
    received += parser.feed(stream[at:])
    assert [shown(item) for item in received] == expected


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(noise: bytes) -> None:
    received = Parser(LIMIT_BYTES).feed(noise)
    ends = [i for i, item in enumerate(received) if isinstance(item, Close | Violation)]
    assert ends in ([], [len(received) - 1])


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_encoder_uses_the_shortest_length(size: int, head: bytes) -> None:
    assert frames.encode(frames.TEXT, b"x" * size) == head + b"x" * size


def test_close_reason_is_cut_at_a_character() -> None:
    frame = frames.encode_close(4404, "é" * 100)
    assert frame[:2] == b"\x88\x7c"  # 2 bytes of code, 61 whole characters
    assert frame[2:] == (4404).to_bytes(2, "big") + "é".encode() * 61


def test_many_small_fragments_do_not_add_up() -> None:
    fragment = masked(frames.CONTINUATION, "€".encode(), fin=False)
    count = LIMIT_BYTES * 64 // 3
    parser = Parser(LIMIT_BYTES * 64)
    parser.feed(masked(frames.TEXT, b"", fin=False))
    for _ in range(1_000):
        assert parser.feed(masked(frames.CONTINUATION, b"", fin=False)) == []
    tracemalloc.start()
    try:
        for _ in range(count):
            assert parser.feed(fragment) == []
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 2 * LIMIT_BYTES * 64  # a list of the pieces: 28 times as much
    assert parser.feed(masked(frames.CONTINUATION, b"")) == [Text("€" * count)]


def test_text_that_is_not_utf8_is_refused_before_its_frame_ends() -> None:
    parser = Parser(LIMIT_BYTES)
    parser.feed(masked(frames.TEXT, b"good", fin=False))
    frame = masked(frames.CONTINUATION, b"good\xf4\x90\x80\x80" + b"x" * 100)
    assert parser.feed(frame[:11]) == []  # F4 90 can only be above U+10FFFF
    assert [shown(item) for item in parser.feed(frame[11:12])] == [["violation", 1007]]
