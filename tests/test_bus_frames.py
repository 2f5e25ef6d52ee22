"""Frames on a real pair of sockets, in parts and in bulk, and the writer's port behind them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.bus import messages
from pylon.bus.frames import FrameStream
from pylon.bus.runtime import Runtime, make_runtime_dir
from pylon.bus.writer_port import LocalWriter, WriterPort
from pylon.config import load
from pylon.storage.ops import DeleteRow, WriteReply, WriteRequest

LARGE_BYTES = 3 * 1024 * 1024  # beyond the buffers of a socket


@pytest.fixture
def ends() -> Iterator[tuple[FrameStream, FrameStream]]:
    one, other = (FrameStream(sock) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def test_frames_arrive_whole_and_in_order(ends: tuple[FrameStream, FrameStream]) -> None:
    one, other = ends
    assert other.receive() == []
    payloads = [b"a", b"", b"x" * 1_000]
    assert all(one.send(payload) for payload in payloads)
    assert other.receive() == payloads


def test_a_frame_that_comes_in_parts_is_kept_until_it_is_complete() -> None:
    sender, receiver = socket.socketpair()
    stream = FrameStream(receiver)
    wire = (3).to_bytes(4, "little") + b"abc" + (2).to_bytes(4, "little") + b"de"
    got: list[bytes] = []
    for position in range(len(wire)):
        sender.send(wire[position : position + 1])
        got += stream.receive()
    assert got == [b"abc", b"de"]
    sender.close()
    with pytest.raises(EOFError):
        stream.receive()
    stream.close()


def test_what_the_kernel_does_not_take_is_sent_later_and_in_order(
    ends: tuple[FrameStream, FrameStream],
) -> None:
    one, other = ends
    assert not one.send(b"x" * LARGE_BYTES)
    assert not one.send(b"behind it")
    got: list[bytes] = []
    while len(got) < 2:
        got += other.receive()
        one.flush()
    assert [len(frame) for frame in got] == [LARGE_BYTES, 9]
    assert one.flush()


def test_who_sends_to_a_closed_end_learns_of_it(ends: tuple[FrameStream, FrameStream]) -> None:
    one, other = ends
    other.close()
    with pytest.raises(EOFError):
        one.send(b"x")


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config)


def test_a_batch_ends_at_its_bound_and_the_next_has_the_rest(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BATCH_REQUESTS", 2)
    port = WriterPort(runtime)
    local = LocalWriter(runtime)
    op = DeleteRow("Todo", "r", ADMIN)
    for first_id in (1, 4, 7):
        local._send([WriteRequest(first_id + n, op) for n in range(3)])
    batches = [port.receive(1.0) for _ in range(3)]
    assert [[r.id for r in requests] for [(_, requests)] in batches] == [
        [1, 2, 3], [4, 5, 6], [7, 8, 9]
    ]
    assert port.receive(0.0) == []
    local.close()
    port.close()


def test_replies_that_a_worker_does_not_read_wait_for_it(runtime: Runtime) -> None:
    port, local = WriterPort(runtime), LocalWriter(runtime)
    local.wake()
    [(peer, _)] = port.receive(1.0)
    text = "x" * 10_000
    for number in range(200):  # 2 MB, more than the kernel takes
        port.reply(peer, [WriteReply(number, row_id=text)])
    got: list[bytes] = []
    while len(got) < 200:
        port.receive(0.0)  # it sends what there is room for
        got += local._stream.receive()
    replies = [reply for frame in got for reply in messages.write_replies.decode(frame)]
    assert [(reply.id, reply.row_id) for reply in replies] == [(n, text) for n in range(200)]
    local.close()
    port.close()


def test_a_reply_to_a_worker_that_has_ended_is_dropped(runtime: Runtime) -> None:
    port, local = WriterPort(runtime), LocalWriter(runtime)
    local.wake()
    [(peer, _)] = port.receive(1.0)
    local.close()
    port.reply(peer, [WriteReply(1)])
    port.reply(peer, [WriteReply(2)])
    successor = LocalWriter(runtime)
    successor.wake()
    [(next_peer, _)] = port.receive(1.0)
    assert next_peer is not peer
    successor.close()
    port.close()
