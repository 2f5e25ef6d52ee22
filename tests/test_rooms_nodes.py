"""Rooms of several nodes: every node shows the union of all members, whatever news are lost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.bus.rooms_messages import (
    Broadcast,
    GetHistory,
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
from pylon.clock import NS_PER_S, ManualClock
from pylon.rooms.node_news import NEWS_BYTES, Raw, RoomNews, decode_news, encode_news
from pylon.rooms.service import RoomService

WORKER = b"r1-w"


class Node:
    """The rooms of one node, and the news that it has sent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clock = ManualClock()
        self.service = RoomService(self.clock, name)
        self.service.shares = True
        self.sent: list[bytes] = []

    def ask(self, *commands: RoomCommand) -> list[RoomReply]:
        return self.service.apply(WORKER, [RoomRequest(n, c) for n, c in enumerate(commands, 1)])

    def texts(self) -> list[Any]:
        """All updates for the subscribers here."""
        return [
            json.loads(text) for updates in self.service.take_updates()
            for tick in updates.ticks for text in tick.texts
        ]

    def tell(self) -> list[bytes]:
        return [encode_news(news) for news in self.service.take_news()]

    def hear(self, other: Node, news: list[bytes]) -> None:
        for each in news:
            self.service.apply_news(other.name, decode_news(each))

    def copy_all(self, other: Node) -> None:
        """Learn all of another node, as after a gap."""
        self.hear(other, [encode_news(news) for news in other.service.state()])

    def history(self, channel: str) -> list[bytes]:
        (reply,) = self.ask(GetHistory(channel, limits.CHANNEL_MESSAGES))
        lines = json.loads(reply.body)["result"]
        return [json.dumps(line, separators=(",", ":")).encode() for line in lines]

    def messages(self, channel: str) -> list[str]:
        return [json.loads(text)["message"] for text in self.history(channel)]

    def room(self, name: str) -> dict[str, Any]:
        (reply,) = self.ask(GetRoom(name, ""))
        return {member["user_id"]: member["data"] for member in json.loads(reply.body)["members"]}


class Pair:
    def __init__(self, count: int = 2) -> None:
        self.nodes = [Node(f"n{number}") for number in range(count)]

    def exchange(self) -> None:
        """Carry all news, until there are none."""
        for _ in range(4):
            told = [(node, node.tell()) for node in self.nodes]
            for sender, news in told:
                for node in self.nodes:
                    if node is not sender:
                        node.hear(sender, news)

    def advance(self, seconds: float) -> None:
        for node in self.nodes:
            node.clock.advance(seconds)
            node.service.expire()
        self.exchange()


@pytest.fixture
def pair() -> Pair:
    return Pair()


def join(room: str, user: str, data: object = None) -> JoinRoom:
    return JoinRoom(room, user, json.dumps(data).encode())


def test_members_of_one_node_are_seen_on_the_other(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann", {"x": "ä"}))
    b.ask(join("r", "bob"))
    pair.exchange()
    assert a.room("r") == b.room("r") == {"ann": {"x": "ä"}, "bob": None}
    (reply,) = b.ask(Subscribe("r", "ann", 1))  # joined over HTTP on `a`, connected to `b`
    assert reply.error is None
    b.texts()
    a.ask(SetPresence("r", "bob", b"7"), Broadcast("r", "bob", "t", b"1"))
    pair.exchange()
    assert [text["action"] for text in b.texts()] == ["presence", "broadcast"]
    a.ask(LeaveRoom("r", "bob"))
    pair.exchange()
    assert [text["action"] for text in b.texts()] == ["leave"]
    assert a.room("r") == b.room("r") == {"ann": {"x": "ä"}}


def test_a_member_whose_socket_is_elsewhere_leaves_with_it(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann"))
    pair.exchange()
    b.ask(Subscribe("r", "ann", 1))
    pair.exchange()
    b.ask(SocketClosed(1))
    pair.exchange()
    assert a.room("r") == b.room("r") == {}


def test_late_news_of_a_socket_end_no_join_that_came_after_it(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann", 1))
    pair.exchange()
    b.ask(Subscribe("r", "ann", 1))
    late = b.tell()
    b.ask(SocketClosed(1))
    late += b.tell()
    a.ask(join("r", "ann", 2))  # its client has come back before `a` heard of the socket
    a.hear(b, late)
    pair.exchange()
    assert a.room("r") == b.room("r") == {"ann": 2}


def test_a_member_that_polls_elsewhere_stays_when_its_socket_closes(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann"), Subscribe("r", "ann", 1))
    pair.exchange()
    b.ask(GetRoom("r", "ann"))
    pair.exchange()
    a.ask(SocketClosed(1))
    pair.exchange()
    assert a.room("r") == b.room("r") == {"ann": None}
    pair.advance(limits.ROOM_IDLE_S)
    assert a.room("r") == b.room("r") == {}


def test_two_tabs_on_two_nodes_are_one_member_until_both_have_closed(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann", 1), Subscribe("r", "ann", 1))
    pair.exchange()
    b.ask(join("r", "ann", 2), Subscribe("r", "ann", 9))
    pair.exchange()
    assert a.room("r") == {"ann": 2}
    a.ask(SocketClosed(1))
    pair.exchange()
    assert a.room("r") == b.room("r") == {"ann": 2}
    b.ask(LeaveRoom("r", "ann"))
    pair.exchange()
    assert a.room("r") == b.room("r") == {}


def test_an_explicit_leave_ends_all_sockets_but_no_later_join(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann"), Subscribe("r", "ann", 1), join("r", "watcher"))
    pair.exchange()
    b.ask(LeaveRoom("r", "ann"))
    a.ask(join("r", "late"))
    a.texts()
    pair.exchange()
    assert a.room("r") == b.room("r") == {"watcher": None, "late": None}
    dropped = [tick.dropped for updates in a.service.take_updates() for tick in updates.ticks]
    assert dropped == [[(WORKER, 1)]]
    b.ask(LeaveRoom("r", "late"))
    a.clock.advance(1.0)
    a.ask(join("r", "late", 2))  # later than the leave, and told before it arrives
    pair.exchange()
    assert a.room("r") == b.room("r") == {"watcher": None, "late": 2}


def test_a_leave_reaches_a_join_of_another_node_that_is_not_known_yet(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann"), join("r", "bob"))
    b.clock.advance(0.01)
    (reply,) = b.ask(LeaveRoom("r", "ann"))  # before the news of the join
    assert json.loads(reply.body) == {"left": "r", "was_present": False}
    pair.exchange()
    assert a.room("r") == b.room("r") == {"bob": None}
    b.ask(LeaveRoom("r", "nobody"))
    pair.exchange()
    assert a.room("r") == b.room("r") == {"bob": None}


def test_the_later_data_win_on_every_node(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann"))
    pair.exchange()
    b.ask(SetPresence("r", "ann", b'"b"'))
    a.clock.advance(-5.0)  # its wall clock is behind
    pair.exchange()
    a.ask(SetPresence("r", "ann", b'"a"'))
    pair.exchange()
    assert a.room("r") == b.room("r") == {"ann": "a"}


def test_data_set_beside_late_news_of_a_socket_stay(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann", 1))
    pair.exchange()
    b.ask(Subscribe("r", "ann", 1))
    late = b.tell()
    a.clock.advance(1.0)
    a.ask(SetPresence("r", "ann", b"9"))
    a.hear(b, late)
    pair.exchange()
    assert a.room("r") == b.room("r") == {"ann": 9}


def test_a_node_that_ends_takes_its_members_along(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(join("r", "ann"), join("r", "both"))
    b.ask(join("r", "bob"), Subscribe("r", "bob", 1), join("r", "both"))
    pair.exchange()
    b.texts()
    b.service.remove_node("n0")
    assert b.room("r") == {"bob": None, "both": None}
    assert [(t["action"], t["member"]["user_id"]) for t in b.texts()] == [("leave", "ann")]


def test_messages_for_all_clients_and_of_channels_reach_every_node(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(Relay(None, "", b'{"type":"presence"}'), Publish("c", "hello"))
    pair.exchange()
    assert b.texts() == [{"type": "presence"}]
    (reply,) = b.ask(GetHistory("c", 10))
    assert [each["message"] for each in json.loads(reply.body)["result"]] == ["hello"]


def test_alone_a_node_gathers_nothing() -> None:
    node = Node("n")
    node.service.shares = False
    node.ask(join("r", "ann"), Broadcast("r", "ann", "t", b"1"), LeaveRoom("r", "ann"))
    assert not node.service.has_news


def test_a_large_state_is_told_in_portions() -> None:
    a, b = Pair().nodes
    for number in range(500):
        a.ask(join(f"r{number % 5}", f"user-{number}", "x" * 2_000))
    portions = [encode_news(news) for news in a.service.state()]
    assert max(map(len, portions)) < NEWS_BYTES * 1.2 and len(portions) > 5
    b.hear(a, portions)
    assert [b.room(f"r{number}") for number in range(5)] == [
        a.room(f"r{number}") for number in range(5)
    ]


def test_news_of_a_later_version_can_be_read() -> None:
    assert decode_news(b'[[],[],[],[],false,false,[],"new"]') == RoomNews([], [], [], [])


def test_a_node_that_starts_learns_the_history_of_channels_once(pair: Pair) -> None:
    a, b = pair.nodes
    a.ask(Publish("c", "one"), Publish("c", "one"))  # within a millisecond
    pair.exchange()
    a.clock.advance(1)
    b.clock.advance(2)
    b.ask(Publish("c", "three"), Publish("d", "other"))
    a.ask(Publish("c", "two"))
    pair.exchange()
    late = Node("late")
    late.copy_all(b)
    late.copy_all(a)
    late.hear(a, [encode_news(RoomNews(published=[("d", Raw(a.history("d")[0]))]))])
    for node in (a, b, late):
        assert node.messages("c") == ["one", "one", "two", "three"]
        assert node.messages("d") == ["other"]


def test_history_is_told_in_parts_and_keeps_its_bounds(pair: Pair) -> None:
    a, b = pair.nodes
    for number in range(limits.CHANNEL_MESSAGES + 5):
        a.clock.advance(1)
        b.clock.advance(1)
        a.ask(Publish("c", f"{number} {'x' * (NEWS_BYTES // 20)}"))
    a.clock.advance(limits.CHANNEL_IDLE_S / 2)
    a.ask(Publish("young", "message"))
    a.tell()  # the news of these messages are lost
    told = [encode_news(news) for news in a.service.state()]
    assert len(told) > 4 and max(map(len, told)) < 1.2 * NEWS_BYTES
    b.clock.advance(limits.CHANNEL_IDLE_S / 2 + 30)
    b.hear(a, told)
    assert b.history("c") == a.history("c") and len(b.history("c")) == limits.CHANNEL_MESSAGES
    pair.advance(limits.CHANNEL_IDLE_S / 2)  # a channel grows no younger by being told
    assert (b.history("c"), b.messages("young")) == ([], ["message"])
    old = Node("old")
    old.clock.advance(3 * limits.CHANNEL_IDLE_S)
    old.hear(a, told)
    assert old.history("c") == old.history("young") == []


USERS = ("u0", "u1", "u2", "u3")
ROOMS = ("r0", "r1")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(5, 60))
@example(seed=3310, steps=60)  # two nodes gave one stamp to different data
def test_all_nodes_converge_after_any_losses(seed: int, steps: int) -> None:
    """News are delayed and lost; whoever has lost some learns the whole state. At the end all
    nodes show the same members with the same data: those that are active somewhere."""
    rng = random.Random(seed)
    pair = Pair(3)
    sockets = 0
    on_the_way: dict[tuple[int, int], list[list[bytes]]] = {
        (i, j): [] for i in range(3) for j in range(3) if i != j
    }
    for _ in range(steps):
        at = rng.randrange(3)
        node, room, user = pair.nodes[at], rng.choice(ROOMS), rng.choice(USERS)
        node.clock.advance(rng.choice((0.0, 0.01, 3.0)))
        match rng.randrange(8):
            case 7:
                node.ask(Publish("c", f"{rng.randrange(3)}"))
            case 0 | 1:
                node.ask(join(room, user, rng.randrange(100)))
            case 2:
                node.ask(SetPresence(room, user, b"%d" % rng.randrange(100)))
            case 3:
                sockets += 1
                node.ask(Subscribe(room, user, sockets))
            case 4 if sockets:
                node.ask(SocketClosed(rng.randrange(1, sockets + 1)))
            case 5:
                node.ask(LeaveRoom(room, user))
            case _:
                node.ask(GetRoom(room, user))
        told = node.tell()
        for other in range(3):
            if other != at and told:
                on_the_way[at, other].append(told)
        sender, receiver = rng.choice(list(on_the_way))
        waiting = on_the_way[sender, receiver]
        if waiting and rng.random() < 0.2:  # a gap: what is on the way is lost
            waiting.clear()
            pair.nodes[receiver].copy_all(pair.nodes[sender])
        while waiting and rng.random() < 0.7:
            pair.nodes[receiver].hear(pair.nodes[sender], waiting.pop(0))
    for (sender, receiver), waiting in on_the_way.items():
        for news in waiting:
            pair.nodes[receiver].hear(pair.nodes[sender], news)
    pair.exchange()
    for receiver in pair.nodes:
        for sender in pair.nodes:
            if sender is not receiver:
                receiver.copy_all(sender)
    pair.exchange()
    shown = [[node.room(room) for room in ROOMS] for node in pair.nodes]
    parts = {
        (part.room, part.user_id) for node in pair.nodes
        for part in node.service._rooms.table.own_parts()
    }
    assert {(room, user) for room, members in zip(ROOMS, shown[0], strict=True)
            for user in members} == parts
    assert shown[0] == shown[1] == shown[2]
    assert pair.nodes[0].clock.wall_ns() > NS_PER_S
    histories = [sorted(node.history("c")) for node in pair.nodes]
    assert histories[0] == histories[1] == histories[2]
