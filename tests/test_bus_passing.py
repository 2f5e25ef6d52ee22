"""pylon.bus.passing: a connection goes to another process, with what was read of it, or stays."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon import limits
from pylon.bus.passing import SocketReceiver, SocketSender
from pylon.bus.runtime import Runtime
from tests.support.wait import WAIT_S, run_greenlets_until


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end, and the end that is passed on."""
    client, passed = socket.socketpair()
    client.settimeout(WAIT_S)
    yield client, passed
    client.close()
    passed.close()


class Worker:
    """The receiving side; says what it got into each connection."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.taken: list[bytes] = []
        self.receiver = SocketReceiver(Runtime(folder), "ws", name, self._take)
        self.receiver.start()

    def _take(self, sock: object, data: bytes) -> None:
        assert hasattr(sock, "send")
        sock.send(b"%b has %d bytes" % (self.name.encode(), len(data)))
        sock.close()
        self.taken.append(data)


def test_the_connection_and_its_bytes_arrive(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    client, passed = pair
    worker, sender = Worker(tmp_path, "1"), SocketSender(Runtime(tmp_path), "ws")
    data = b"x" * limits.PASSED_BYTES
    assert sender.pass_on(passed, data)
    passed.close()
    run_greenlets_until("the socket came", lambda: worker.taken == [data])
    assert client.recv(100) == b"1 has %d bytes" % len(data)
    assert client.recv(100) == b"", "nobody else has it open"
    sender.close()
    worker.receiver.close()
    assert not list(tmp_path.iterdir())


def test_workers_take_turns_and_a_certain_one_can_be_named(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    workers = [Worker(tmp_path, str(number)) for number in range(1, 4)]
    sender = SocketSender(Runtime(tmp_path), "ws")
    assert all(sender.pass_on(pair[1], b"any") for _ in range(6))
    assert sender.pass_to("2", pair[1], b"named")
    run_greenlets_until("all came", lambda: sum(len(worker.taken) for worker in workers) == 7)
    assert [len(worker.taken) for worker in workers] == [2, 3, 2]
    assert workers[1].taken[-1] == b"named"
    sender.close()
    for worker in workers:
        worker.receiver.close()


def test_who_is_not_there_is_passed_over_and_found_again(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    sender = SocketSender(Runtime(tmp_path), "ws")
    assert not sender.pass_on(pair[1], b"nobody")
    first = Worker(tmp_path, "1")
    assert all(sender.pass_on(pair[1], b"one") for _ in range(4))
    run_greenlets_until("four came", lambda: len(first.taken) == 4)
    first.receiver.close()
    assert not sender.pass_on(pair[1], b"gone")
    again = Worker(tmp_path, "1")
    (tmp_path / "passing-ws-2").touch()  # what a killed worker leaves is no socket that answers
    assert sender.pass_on(pair[1], b"two")
    run_greenlets_until("the next came", lambda: again.taken == [b"two"])
    sender.close()
    again.receiver.close()


def test_a_worker_that_does_not_read_fills_up_and_the_next_is_asked(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    slow, quick = Worker(tmp_path, "1"), Worker(tmp_path, "2")
    sender = SocketSender(Runtime(tmp_path), "ws")
    data = b"x" * 4_096
    sent = 0
    while sender.pass_to("1", pair[1], data):
        sent += 1
        assert sent < 10_000, "the queue has a bound"
    assert sender.pass_on(pair[1], data)
    assert sender.pass_on(pair[1], data), "the full one is passed over"
    assert not sender.pass_to("2", pair[1], b"x" * (limits.PASSED_BYTES + 1))
    run_greenlets_until(
        "all came", lambda: len(slow.taken) == sent and len(quick.taken) == 2
    )
    assert sender.pass_to("1", pair[1], b"room again")
    slow.receiver.close()  # takes what is on its way
    assert slow.taken[-1] == b"room again"
    sender.close()
    quick.receiver.close()
