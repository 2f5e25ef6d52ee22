"""What a tick of rooms costs, its bounds, and what fails alone."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from pylon import limits
from pylon.bus.messages import encode
from pylon.bus.rooms_messages import (
    Alive,
    Broadcast,
    GetRoom,
    JoinRoom,
    LeaveRoom,
    Publish,
    Relay,
    RoomCommand,
    RoomReply,
    RoomRequest,
    SetPresence,
    SocketClosed,
    Subscribe,
)
from pylon.clock import ManualClock
from pylon.rooms.service import RoomService

WS = b"r1-ws"


class Asking:
    """A room service and one worker of it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.service = RoomService(self.clock, "g")

    def ask(self, *commands: RoomCommand) -> list[RoomReply]:
        return self.service.apply(WS, [RoomRequest(n, c) for n, c in enumerate(commands, 1)])

    def join(self, room: str, *users: str, data: bytes = b"null") -> None:
        for reply in self.ask(*(JoinRoom(room, user, data) for user in users)):
            assert reply.error is None, reply.error

    def watched(self, room: str, user: str = "watcher", socket: int = 1) -> None:
        self.join(room, user)
        (reply,) = self.ask(Subscribe(room, user, socket))
        assert reply.error is None
        self.tick()

    def tick(self) -> list[Any]:
        """All texts of a tick, decoded."""
        return [
            json.loads(text)
            for updates in self.service.take_updates() for tick in updates.ticks
            for text in tick.texts
        ]

    def members(self, room: str) -> list[str]:
        (reply,) = self.ask(GetRoom(room, ""))
        return [member["user_id"] for member in json.loads(reply.body)["members"]]


@pytest.fixture
def asking() -> Asking:
    return Asking()


def test_a_service_without_rooms_and_channels_is_empty() -> None:
    asking = Asking()
    asking.ask(Alive())
    assert asking.service.is_empty, "nobody notices that the lease of a worker ends late"
    asking.join("r", "a")
    assert not asking.service.is_empty
    asking.ask(LeaveRoom("r", "a"), Publish("c", "m"))
    assert not asking.service.is_empty
    asking.clock.advance(limits.CHANNEL_IDLE_S)
    asking.service.expire()
    assert asking.service.is_empty


def test_a_thousand_joins_in_a_tick_are_one_snapshot(asking: Asking) -> None:
    asking.watched("r")
    users = [f"user-{n:04}" for n in range(1_000)]
    asking.join("r", *users, data=b'{"name":"Somebody"}')
    updates = list(asking.service.take_updates())
    texts = [text for each in updates for tick in each.ticks for text in tick.texts]
    assert len(texts) == 1
    snapshot = json.loads(texts[0])
    assert snapshot["type"] == "room-snapshot"
    assert [peer["user_id"] for peer in snapshot["members"]] == ["watcher", *users]
    update = b'{"type":"room-update","room":"r","action":"join","member":{"user_id":"user-0000"}'
    assert len(texts[0]) < 1_000 * len(update + b',"data":{"name":"Somebody"}}')


def test_a_few_changes_of_a_large_room_are_updates(asking: Asking) -> None:
    asking.watched("r")
    asking.join("r", *(f"user-{n}" for n in range(1_000)))
    asking.tick()
    users = [f"late-{n}" for n in range(limits.ROOM_TICK_UPDATES * 2)]
    asking.join("r", *users)
    assert [text["type"] for text in asking.tick()] == ["room-update"] * len(users)


def test_changes_of_one_member_are_told_once(asking: Asking) -> None:
    asking.watched("r")
    asking.join("r", "ann")
    asking.tick()
    for n in range(100):
        asking.ask(SetPresence("r", "ann", b"%d" % n))
    asking.join("r", "guest")
    asking.ask(Broadcast("r", "guest", "t", b"1"), LeaveRoom("r", "guest"))
    assert asking.tick() == [
        {"type": "room-update", "room": "r", "action": "presence", "data": 99,
         "member": {"user_id": "ann"}},
        {"type": "room-update", "room": "r", "action": "broadcast",
         "member": {"user_id": "guest"}, "data": {"topic": "t", "payload": 1}},
    ]
    asking.ask(Broadcast("r", "ann", "bye", b"{}"), LeaveRoom("r", "ann"))
    assert [text["action"] for text in asking.tick()] == ["broadcast", "leave"]
    asking.ask(LeaveRoom("r", "ann"))
    assert not asking.service.has_updates


def test_who_is_in_a_snapshot_and_leaves_is_told_of(asking: Asking) -> None:
    asking.watched("r")
    asking.join("r", "ann")
    (reply,) = asking.ask(Subscribe("r", "watcher", 2))
    assert b'"ann"' in reply.body
    asking.ask(LeaveRoom("r", "ann"))
    assert [(text["action"], text["member"]["user_id"]) for text in asking.tick()] == [
        ("leave", "ann"),
    ]


def test_rooms_without_subscribers_make_no_news(asking: Asking) -> None:
    asking.join("r", "ann", "bob")
    asking.ask(
        SetPresence("r", "ann", b"1"), Broadcast("r", "ann", "t", b"1"), Relay("r", "ann", b"{}"),
        LeaveRoom("r", "ann"),
    )
    assert not asking.service.has_updates


def test_what_is_said_in_a_tick_is_bounded(asking: Asking) -> None:
    asking.watched("r")
    data = b'"%s"' % (b"x" * (limits.ROOM_DATA_BYTES - 2))
    count = limits.ROOM_TICK_BYTES // limits.ROOM_DATA_BYTES + 1
    replies = asking.ask(*(Broadcast("r", "watcher", "t", data) for _ in range(count)))
    refused = Counter(reply.error.code if reply.error else "" for reply in replies)
    assert refused["ROOM_LIMIT_REACHED"] in (1, 2)
    assert len(asking.tick()) == refused[""]
    asking.watched("s")
    replies = asking.ask(*(Relay(None, "", data) for _ in range(count)))
    assert replies[0].error is None
    assert replies[-1].error is not None
    asking.tick()
    assert asking.ask(Broadcast("r", "watcher", "t", data))[0].error is None


def test_news_are_cut_into_messages_of_a_bounded_size(asking: Asking) -> None:
    data = b'"%s"' % (b"x" * (limits.ROOM_DATA_BYTES - 2))
    for room in range(40):
        asking.watched(f"room-{room}", f"user-{room}", room)
    for room in range(40):
        asking.ask(*(Broadcast(f"room-{room}", f"user-{room}", "t", data) for _ in range(10)))
    messages = list(asking.service.take_updates())
    counters = [updates.counter for updates in messages]
    assert counters == list(range(counters[0], counters[0] + len(messages)))
    assert len(messages) > 2
    assert sum(len(tick.texts) for updates in messages for tick in updates.ticks) == 400
    for updates in messages:
        assert len(encode(updates)) < limits.BUS_ROOM_UPDATES_BYTES + limits.ROOM_TICK_BYTES


def test_a_silent_worker_loses_its_sockets(asking: Asking) -> None:
    asking.watched("r")
    asking.clock.advance(limits.ROOM_LEASE_S - 1)
    asking.ask(Alive())
    asking.clock.advance(limits.ROOM_LEASE_S - 1)
    asking.service.expire()
    assert asking.members("r") == ["watcher"]
    asking.clock.advance(1)
    asking.service.expire()
    assert asking.members("r") == []
    assert asking.service.workers == []
    ((tick,),) = [updates.ticks for updates in asking.service.take_updates()]
    assert json.loads(tick.texts[0])["action"] == "leave"
    assert tick.dropped == [(WS, 1)], "a worker that only slept learns what it has lost"


def test_a_command_that_fails_fails_alone(asking: Asking) -> None:
    broken: Any = SetPresence("r", "ann", None)  # type: ignore[arg-type]
    first, second, third = asking.ask(
        JoinRoom("r", "ann", b"1"), broken, SetPresence("r", "ann", b"2")
    )
    assert (first.error, third.error) == (None, None)
    assert second.error is not None
    assert second.error.code == "INTERNAL"


def test_what_wants_no_reply_gets_none(asking: Asking) -> None:
    asking.watched("r")
    requests = [RoomRequest(0, SocketClosed(1)), RoomRequest(7, GetRoom("r", ""))]
    (reply,) = asking.service.apply(WS, requests)
    assert reply.id == 7
    assert json.loads(reply.body)["count"] == 0
