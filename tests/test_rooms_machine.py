"""Rooms against a model that keeps everything in plain sets and knows nothing of ticks: what
clients are answered, and what a subscriber makes of snapshots and news, is the same."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pylon import limits
from pylon.bus.messages import encode
from pylon.bus.rooms_messages import (
    Broadcast,
    GetRoom,
    GetRooms,
    JoinRoom,
    LeaveRoom,
    Relay,
    RoomCommand,
    RoomReply,
    RoomRequest,
    SetPresence,
    Snapshots,
    SocketClosed,
    Subscribe,
    Unsubscribe,
    pid_of,
    replies,
    requests,
    routing_id,
    updates,
)
from pylon.clock import ManualClock
from pylon.rooms.service import RoomService
from tests.support.examples import count_examples

ROOMS = st.sampled_from(["r", 'a "quoted" room/ü'])
USERS = st.sampled_from(["ann", "bob", 'c"\\'])
DATA = st.sampled_from([None, 0, {"x": [1]}, 'te"xt', {"name": "n" * 40}])
WORKERS = st.sampled_from([routing_id(11, "aa"), routing_id(12, "bb")])
NETWORKS = st.sampled_from(["", "192.0.2.1", "2001:db8::/64"])
NUMBERS = st.integers(1, 3)


class Membership(NamedTuple):
    """A socket in a room."""

    worker: bytes
    number: int
    room: str


class Watcher:
    """A subscribed socket, and the room as its client knows it."""

    def __init__(self, user: str, counter: int, snapshot: Any) -> None:
        self.user = user
        self.counter = counter
        self.members: dict[str, Any] = {}
        self.said: list[Any] = []
        self.missed = 0  # so much was said in this tick before it came; it may hear that
        self.replace(snapshot)

    def replace(self, snapshot: Any) -> None:
        assert snapshot["type"] == "room-snapshot"
        self.members = {peer["user_id"]: peer["data"] for peer in snapshot["members"]}

    def hear(self, message: Any) -> None:
        if message["type"] == "room-snapshot":
            self.replace(message)
        elif message["type"] != "room-update":
            self.said.append(message)
        elif message["action"] == "leave":
            self.members.pop(message["member"]["user_id"], None)
        elif message["action"] == "broadcast":
            self.said.append(message["data"])
        else:
            self.members[message["member"]["user_id"]] = message.get("data")


class RoomsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.service = RoomService(self.clock, "g")
        self.members: dict[str, dict[str, Any]] = {}
        self.heard_s: dict[tuple[str, str], float] = {}
        self.polled_s: dict[tuple[str, str], float] = {}
        self.sockets: dict[Membership, Watcher] = {}
        self.leaving: dict[Membership, Watcher] = {}  # have left, and hear this tick to its end
        self.said: dict[str, list[Any]] = {}  # in this tick
        self.counter = 0
        self.ids = 0

    # --- Commands ------------------------------------------------------------

    def ask(self, command: RoomCommand, worker: bytes = b"r1-http") -> RoomReply:
        self.ids += 1
        sent = requests.decode(encode([RoomRequest(self.ids, command)]))
        (reply,) = replies.decode(encode(self.service.apply(worker, sent)))
        assert (reply.id, reply.counter) == (self.ids, self.counter)
        return reply

    def answer(self, command: RoomCommand) -> Any:
        reply = self.ask(command)
        assert reply.error is None
        return json.loads(reply.body)

    def is_member(self, room: str, user: str) -> bool:
        return user in self.members.get(room, {})

    def held(self, room: str, user: str) -> bool:
        return any(p.room == room and w.user == user for p, w in self.sockets.items())

    def heard(self, room: str, user: str) -> None:
        self.heard_s[room, user] = self.clock.monotonic_s()

    def gone(self, room: str, user: str) -> None:
        del self.members[room][user]
        self.polled_s.pop((room, user), None)
        if not self.members[room]:
            del self.members[room]
        for place, watcher in list(self.sockets.items()):
            if place.room == room and watcher.user == user:
                self.leaving[place] = self.sockets.pop(place)

    # --- Clients ---------------------------------------------------------------------------

    @rule(room=ROOMS, user=USERS, data=DATA, network=NETWORKS)
    def join(self, room: str, user: str, data: Any, network: str) -> None:
        before = dict(self.members.get(room, {}))
        answer = self.answer(JoinRoom(room, user, json.dumps(data).encode(), network))
        snapshot = answer["snapshot"]
        assert (answer["joined"], snapshot["type"], snapshot["room"]) == (room, "snapshot", room)
        assert {p["user_id"]: p["data"] for p in snapshot["peers"]} == before
        self.members.setdefault(room, {})[user] = data
        self.heard(room, user)

    @rule(room=ROOMS, user=USERS)
    def leave(self, room: str, user: str) -> None:
        was_there = self.is_member(room, user)
        answer = self.answer(LeaveRoom(room, user))
        assert answer == {"left": room, "was_present": was_there}
        if was_there:
            self.gone(room, user)

    @rule(room=ROOMS, user=USERS, data=DATA)
    def presence(self, room: str, user: str, data: Any) -> None:
        answer = self.answer(SetPresence(room, user, json.dumps(data).encode()))
        if self.is_member(room, user):
            assert answer == {"updated": True}
            self.members[room][user] = data
            self.heard(room, user)
        else:
            assert answer == {"updated": False, "reason": "not_in_room"}

    @rule(room=ROOMS, user=USERS, data=DATA)
    def broadcast(self, room: str, user: str, data: Any) -> None:
        answer = self.answer(Broadcast(room, user, 't"', json.dumps(data).encode()))
        if self.is_member(room, user):
            assert answer == {"broadcasted": True}
            self.said.setdefault(room, []).append({"topic": 't"', "payload": data})
            self.heard(room, user)
        else:
            assert answer == {"broadcasted": False, "reason": "not_in_room"}

    @rule(room=ROOMS, user=USERS, worker=WORKERS)
    def relay(self, room: str, user: str, worker: bytes) -> None:
        message = {"type": "topic", "room": room, "from": user}
        self.ask(Relay(room, user, json.dumps(message).encode()), worker)
        if self.is_member(room, user):
            self.said.setdefault(room, []).append(message)
            self.heard(room, user)

    @rule(room=ROOMS, user=USERS)
    def look(self, room: str, user: str) -> None:
        answer = self.answer(GetRoom(room, user))
        assert (answer["room"], answer["count"]) == (room, len(self.members.get(room, {})))
        if self.is_member(room, user):
            self.heard(room, user)
            self.polled_s[room, user] = self.clock.monotonic_s()

    # --- Sockets ---------------------------------------------------------------------------

    @rule(room=ROOMS, user=USERS, data=DATA, worker=WORKERS, number=NUMBERS)
    def join_and_subscribe(
        self, room: str, user: str, data: Any, worker: bytes, number: int
    ) -> None:
        self.join(room, user, data, "192.0.2.1")
        self.subscribe(room, user, worker, number)

    @precondition(lambda self: self.sockets)
    @rule(which=st.integers(0, 100), back=st.booleans())
    def leave_of_a_watcher(self, which: int, back: bool) -> None:
        place = list(self.sockets)[which % len(self.sockets)]
        user = self.sockets[place].user
        self.leave(place.room, user)
        if back:
            self.join_and_subscribe(place.room, user, 1, place.worker, place.number)

    @rule(room=ROOMS, user=USERS, worker=WORKERS, number=NUMBERS)
    def subscribe(self, room: str, user: str, worker: bytes, number: int) -> None:
        place = Membership(worker, number, room)
        known = [w.user for p, w in self.sockets.items() if p[:2] == place[:2]]
        if known:
            user = known[0]  # a socket speaks for one user
        reply = self.ask(Subscribe(room, user, number), worker)
        if not self.is_member(room, user):
            assert reply.error is not None
            assert reply.error.code == "NOT_IN_ROOM"
            return
        watcher = Watcher(user, reply.counter, json.loads(reply.body))
        assert watcher.members == self.members[room], "a snapshot is of now"
        self.leaving.pop(place, None)
        watcher.missed = len(self.said.get(room, ()))
        self.sockets[place] = watcher

    @rule(room=ROOMS, worker=WORKERS, number=NUMBERS)
    def unsubscribe(self, room: str, worker: bytes, number: int) -> None:
        self.ask(Unsubscribe(room, number), worker)
        watcher = self.sockets.pop(Membership(worker, number, room), None)
        if watcher is not None:
            self.heard(room, watcher.user)

    def end(self, places: list[Membership]) -> None:
        for place in places:
            watcher = self.sockets.pop(place, None)
            self.leaving.pop(place, None)
            if watcher is None or self.held(place.room, watcher.user):
                continue
            key = (place.room, watcher.user)
            polled_s = self.polled_s.get(key, float("-inf"))
            if polled_s > self.clock.monotonic_s() - limits.ROOM_POLL_S:
                self.heard(*key)
            else:
                self.gone(*key)

    @rule(worker=WORKERS, number=NUMBERS)
    def close(self, worker: bytes, number: int) -> None:
        self.ask(SocketClosed(number), worker)
        self.end([p for p in [*self.sockets, *self.leaving] if p[:2] == (worker, number)])

    @rule(worker=WORKERS)
    def crash(self, worker: bytes) -> None:
        assert pid_of(worker) in (11, 12)
        self.service.remove_worker(worker)
        self.end([p for p in [*self.sockets, *self.leaving] if p.worker == worker])

    # --- Time ------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, limits.ROOM_POLL_S, limits.ROOM_IDLE_S / 2]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for worker in self.service.workers:
            self.service._heard_s[worker] = self.clock.monotonic_s()  # they say so once a second
        self.service.expire()
        since_s = self.clock.monotonic_s() - limits.ROOM_IDLE_S
        for (room, user), heard_s in list(self.heard_s.items()):
            if heard_s <= since_s and self.is_member(room, user) and not self.held(room, user):
                self.gone(room, user)

    @rule(is_lost=st.booleans())
    def tick(self, is_lost: bool) -> None:
        """The news of a tick reach the subscribers; or are lost, and they get snapshots."""
        heard: dict[Membership, list[Any]] = {place: [] for place in [*self.sockets, *self.leaving]}
        dropped: set[Membership] = set()
        before = {place: len(w.said) for place, w in self.sockets.items()}
        for message in self.service.take_updates():
            self.counter += 1
            decoded = updates.decode(encode(message))
            assert (decoded.generation, decoded.counter) == ("g", self.counter)
            for tick in decoded.ticks:
                assert tick.room is not None
                for place in heard:
                    if place.room == tick.room:
                        heard[place] += [json.loads(text) for text in tick.texts]
                dropped |= {Membership(w, number, tick.room) for w, number in tick.dropped}
        assert not self.service.has_updates
        assert dropped <= set(self.leaving) | dropped - set(self.sockets)
        assert set(self.leaving) <= dropped
        if is_lost:
            self.repair()
        else:
            for place, watcher in [*self.sockets.items(), *self.leaving.items()]:
                for text in heard[place]:
                    watcher.hear(text)
            for place, watcher in self.sockets.items():
                said = watcher.said[before[place]:]
                owed = self.said.get(place.room, [])
                assert len(owed) - watcher.missed <= len(said) <= len(owed)
                assert said == owed[len(owed) - len(said):], "in order, each once"
            for place, watcher in self.leaving.items():
                assert watcher.user not in watcher.members or self.is_member(
                    place.room, watcher.user
                )
        self.leaving = {}
        self.said = {}
        for place, watcher in self.sockets.items():
            assert watcher.members == self.members[place.room]
            watcher.missed = 0

    def repair(self) -> None:
        for worker in {place.worker for place in self.sockets}:
            rooms = sorted({p.room for p in self.sockets if p.worker == worker})
            for snapshot in self.ask(Snapshots(rooms), worker).snapshots:
                mine = {p.number for p in self.sockets if (p.worker, p.room) == (
                    worker, snapshot.room)}
                assert set(snapshot.sockets) == mine
                for number in mine:
                    watcher = self.sockets[Membership(worker, number, snapshot.room)]
                    watcher.replace(json.loads(snapshot.text))

    @invariant()
    def the_rooms_are_those_of_the_model(self) -> None:
        member_counts = {room["name"]: room["members"] for room in self.answer(GetRooms())}
        assert member_counts == {room: len(members) for room, members in self.members.items()}
        rooms = self.service._rooms
        assert rooms.members == sum(member_counts.values())
        assert rooms.table._size_bytes == sum(room.size_bytes for room in rooms._rooms.values())
        held: dict[str, Counter[str]] = {}
        for room in rooms._rooms.values():
            held.setdefault(room.network, Counter())["rooms"] += 1
            for member in room.members.values():
                held.setdefault(member.network, Counter())["members"] += 1
                held[member.network]["size_bytes"] += len(member.peer) + 1
        held.pop("", None)
        names = ("rooms", "members", "size_bytes")
        assert rooms.table._networks._held.keys() == held.keys()
        for network, kept in rooms.table._networks._held.items():
            assert [getattr(kept, name) for name in names] == [held[network][n] for n in names]
        if not self.members:
            assert rooms.table._size_bytes == 0
            assert not rooms._silent
            assert not rooms.table._rooms_of
        if not self.sockets:
            assert not rooms._subscriptions


@pytest.mark.parametrize("updates", [1, limits.ROOM_TICK_UPDATES], ids=["snapshots", "updates"])
def test_rooms(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules and invariants of the machine assert."""
    monkeypatch.setattr(limits, "ROOM_TICK_UPDATES", updates)
    run_state_machine_as_test(
        RoomsMachine, settings=settings(max_examples=count_examples(80), stateful_step_count=40)
    )
