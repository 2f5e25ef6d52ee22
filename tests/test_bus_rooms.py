"""The rooms' part of the bus: one message for a turn, bounds, errors, silence."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from pylon import limits
from pylon.bus.rooms_client import RoomsClient
from pylon.bus.rooms_messages import (
    GetRoom,
    GetRooms,
    LeaveRoom,
    RoomReply,
    RoomRequest,
    pid_of,
)
from pylon.bus.rooms_port import RoomsPort
from pylon.bus.runtime import Runtime, make_runtime_dir
from pylon.config import load
from pylon.errors import NotInRoom, Unavailable
from pylon.errors.wire import WireError
from tests.support.wait import WAIT_S

Answer = Callable[[bytes, list[RoomRequest]], list[RoomReply]]


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config)


@pytest.fixture
def client(runtime: Runtime) -> Iterator[RoomsClient]:
    made = RoomsClient(runtime)
    yield made
    made.close()


@pytest.fixture
def serve(runtime: Runtime) -> Iterator[Callable[[Answer], list[list[RoomRequest]]]]:
    """Starts the other end, in a thread; gives the list of messages that it gets."""
    ended = threading.Event()
    threads = []

    def run(answer: Answer, seen: list[list[RoomRequest]]) -> None:
        port = RoomsPort(runtime)
        while not ended.is_set():
            for peer, requests in port.receive(0.01):
                seen.append(requests)
                port.reply(peer, answer(peer, requests))
        port.close()

    def start(answer: Answer) -> list[list[RoomRequest]]:
        seen: list[list[RoomRequest]] = []
        threads.append(threading.Thread(target=run, args=(answer, seen)))
        threads[-1].start()
        return seen

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def test_commands_of_one_turn_travel_in_one_message(client: RoomsClient, serve: Any) -> None:
    big = b"x" * (limits.BUS_ROOM_UPDATES_BYTES // 10)

    def answer(peer: bytes, requests: list[RoomRequest]) -> list[RoomReply]:
        assert pid_of(peer) == os.getpid()
        replies = [RoomReply(r.id, 5, big + r.command.room.encode()) for r in requests  # type: ignore[union-attr]
                   if r.id]
        return replies[::-1]

    seen = serve(answer)
    client.submit(GetRoom("first", "ann"))  # then there is a connection
    gevent.spawn(client.send, LeaveRoom("told", "ann"))
    asked = [gevent.spawn(client.submit, GetRoom(f"r{n}", "ann")) for n in range(50)]
    gevent.joinall(asked, timeout=WAIT_S)
    assert [g.value.body for g in asked] == [big + b"r%d" % n for n in range(50)]
    assert {g.value.counter for g in asked} == {5}
    _, message = seen
    assert [request.id for request in message] == [0, *range(2, 52)]


def test_a_refusal_comes_back_as_itself(client: RoomsClient, serve: Any) -> None:
    refusal = WireError.from_error(NotInRoom("no", hint="join"))
    serve(lambda peer, requests: [RoomReply(r.id, 0, error=refusal) for r in requests])
    with pytest.raises(NotInRoom) as caught:
        client.submit(GetRooms())
    assert (caught.value.message, caught.value.hint) == ("no", "join")


def test_silence_ends_and_too_much_is_refused(
    runtime: Runtime, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROOM_TIMEOUT_S", 0.2)
    monkeypatch.setattr(limits, "ROOM_COMMANDS_IN_FLIGHT", 3)
    serve(lambda peer, requests: [])
    client = RoomsClient(runtime)
    asked = [gevent.spawn(client.submit, GetRooms()) for _ in range(4)]
    gevent.joinall(asked, timeout=WAIT_S)
    whys = [str(g.exception) for g in asked]
    assert [type(g.exception) for g in asked] == [Unavailable] * 4
    assert [("in flight" in why, "No answer" in why) for why in whys] == [
        (False, True), (False, True), (False, True), (True, False),
    ]
    client.close()


def test_a_command_without_a_connection_ends_soon(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket of the rooms may have vanished: a worker that starts then never connects."""
    monkeypatch.setattr(limits, "ROOM_CONNECT_S", 0.05)
    client = RoomsClient(runtime)
    with pytest.raises(Unavailable, match="No connection to the rooms"):
        client.submit(GetRooms())
    client.close()


def test_who_waits_hears_of_the_end(client: RoomsClient) -> None:
    waiting = gevent.spawn(client.submit, GetRooms())
    gevent.sleep(0)
    client.close()
    waiting.join(20)
    assert isinstance(waiting.exception, Unavailable)
    with pytest.raises(Unavailable):
        client.submit(GetRooms())
