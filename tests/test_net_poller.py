"""workers.net.poller and linger: members of one epoll set, over real socket pairs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import gevent
import pytest

from pylon.runtime.raw_socket import RawSocket, take_over
from tests.support.wait import run_greenlets_until
from workers.net.linger import LingeringClose
from workers.net.poller import EDGE, ENDED, PEER_CLOSED, READ, WRITE, Poller


class Member:
    """Notes its events; `action` runs at each of them."""

    def __init__(self, action: Callable[[], object] = lambda: None) -> None:
        ours, self.peer = socket.socketpair()
        self.raw: RawSocket = take_over(ours)
        self.action = action
        self.events: list[int] = []
        self.aborted = False

    def on_ready(self, events: int) -> None:
        self.events.append(events)
        self.action()

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.raw.close()
        self.peer.close()


@pytest.fixture
def poller() -> Iterator[Poller[Member]]:
    made: Poller[Member] = Poller()
    yield made
    made.close()


@pytest.fixture
def members(poller: Poller[Member]) -> Iterator[Callable[..., Member]]:
    made: list[Member] = []

    def add(events: int = READ, action: Callable[[], object] = lambda: None) -> Member:
        member = Member(action)
        made.append(member)
        poller.add(member.raw.fileno(), member, events)
        return member

    yield add
    for member in made:
        member.close()


def fail() -> None:
    raise ZeroDivisionError


def test_a_member_that_fails_ends_alone(
    poller: Poller[Member], members: Callable[..., Member]
) -> None:
    bad, good = members(action=fail), members()
    bad.action = lambda: (poller.remove(bad.raw.fileno()), fail())
    bad.peer.send(b"x")
    good.peer.send(b"x")
    run_greenlets_until("the failed member is ended", lambda: bad.aborted and good.events)
    assert not good.aborted


def test_a_member_may_end_another_of_the_same_turn(
    poller: Poller[Member], members: Callable[..., Member]
) -> None:
    first, second = members(), members()

    def end_other(me: Member, other: Member) -> None:
        me.raw.recv(1)
        if other.raw.fileno() >= 0:
            poller.forget(other.raw.fileno())
            other.raw.close()

    first.action = lambda: end_other(first, second)
    second.action = lambda: end_other(second, first)
    first.peer.send(b"x")
    second.peer.send(b"x")
    run_greenlets_until("an event", lambda: first.events or second.events)
    gevent.sleep(0)
    assert len(first.events) + len(second.events) == 1


def test_level_reports_again_and_edge_does_not(members: Callable[..., Member]) -> None:
    level, edge = members(READ), members(READ | EDGE)
    level.peer.send(b"x")
    edge.peer.send(b"x")
    run_greenlets_until("three events", lambda: len(level.events) >= 3)
    assert len(edge.events) == 1
    edge.peer.send(b"y")
    run_greenlets_until("an event of the edge", lambda: len(edge.events) == 2)


def test_end_of_the_peer_is_reported(members: Callable[..., Member]) -> None:
    member = members(READ | PEER_CLOSED | EDGE)
    member.peer.close()
    run_greenlets_until("an event", lambda: member.events)
    assert member.events[0] & ENDED


def test_removed_socket_is_silent_though_its_descriptor_has_a_copy(
    poller: Poller[Member], members: Callable[..., Member]
) -> None:
    member, other = members(), members()
    copy = os.dup(member.raw.fileno())
    poller.remove(member.raw.fileno())
    member.raw.close()
    member.peer.send(b"x")
    other.peer.send(b"x")
    run_greenlets_until("three events", lambda: len(other.events) >= 3)
    assert not member.events
    os.close(copy)


def test_change_requests_other_events(
    poller: Poller[Member], members: Callable[..., Member]
) -> None:
    member = members(READ)
    fd = member.raw.fileno()
    poller.change(fd, member, READ, WRITE)
    run_greenlets_until("an event", lambda: member.events)
    assert set(member.events) == {WRITE}
    poller.change(fd, member, WRITE, 0)
    assert fd not in poller.member_by_fd
    poller.change(fd, member, 0, READ)
    member.events.clear()
    member.peer.send(b"x")
    run_greenlets_until("an event", lambda: member.events)
    assert set(member.events) == {READ}


def test_hooks_run_around_each_turn() -> None:
    order: list[str] = []
    poller: Poller[Member] = Poller(
        begin_turn=lambda: order.append("begin"), end_turn=lambda: order.append("end")
    )
    member = Member()
    member.action = lambda: (order.append("event"), member.raw.recv(1))
    poller.add(member.raw.fileno(), member, READ)
    member.peer.send(b"x")
    run_greenlets_until("the end of a turn", lambda: "end" in order)
    assert order == ["begin", "event", "end"]
    poller.close()
    member.close()


def test_linger_ends_our_side_and_discards_until_the_client_ends() -> None:
    ours, client = socket.socketpair()
    linger = LingeringClose(take_over(ours), 1_000, 5.0)
    assert client.recv(1) == b"", "our side has ended"
    assert linger.deadline_s == 5.0
    client.send(b"x" * 400)
    assert linger.discard() is True
    assert linger.discard(16) is False
    client.close()
    with pytest.raises(OSError, match="ended"):
        linger.discard(16)


def test_linger_ends_a_client_that_sends_too_much() -> None:
    ours, client = socket.socketpair()
    linger = LingeringClose(take_over(ours), 1_000, 5.0)
    client.send(b"x" * 1_000)
    assert linger.discard(16) is False
    client.send(b"x")
    with pytest.raises(OSError, match="sends on"):
        linger.discard(16)
    client.close()
