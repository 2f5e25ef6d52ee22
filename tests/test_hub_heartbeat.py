"""workers.hub.heartbeat: the longest life of a connection."""

from __future__ import annotations

import socket

import pytest

from pylon import limits
from pylon.auth_context import ANONYMOUS, Caller
from pylon.clock import ManualClock, SeededRandom
from workers.hub.connection import Connection
from workers.hub.heartbeat import Heartbeat
from workers.hub.hub import BEAT_S, Hub
from workers.sse.stream import RETRY, EventStreamTransport

LIFE_S = 600.0


class StreamStage:
    """Event streams of one hub, whose time goes as it is told."""

    def __init__(self, max_life_s: float) -> None:
        self.clock = ManualClock()
        self.hub = Hub({}, EventStreamTransport(heartbeat_s=15.0), self.clock)
        self.heartbeat = Heartbeat(self.hub, self.clock, max_life_s, SeededRandom(7))
        self.peers: list[socket.socket] = []

    def come(self, count: int) -> None:
        for _ in range(count):
            ours, peer = socket.socketpair()
            ours.setblocking(False)
            peer.setblocking(False)
            self.hub.add(
                Connection(ours, self.hub.transport, self.hub, Caller(ANONYMOUS), "127.0.0.1")
            )
            self.peers.append(peer)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / BEAT_S)):
            self.clock.advance(BEAT_S)
            self.heartbeat.tick()

    def sent_close_frame(self) -> int:
        """How many have been closed; the next call counts anew. Nobody's buffer fills."""
        count = 0
        for peer in self.peers:
            try:
                count += peer.recv(65_536).endswith(RETRY)
            except BlockingIOError:
                continue
        return count

    def close(self) -> None:
        for connection in self.hub.connections:
            connection.abort()
        for peer in self.peers:
            peer.close()


def test_connections_end_between_three_quarters_of_the_longest_life_and_all_of_it() -> None:
    crowd = StreamStage(LIFE_S)
    crowd.wait(60)  # from here on no connection is the first of a worker
    crowd.come(40)
    crowd.wait(LIFE_S * 0.75 - 1)
    assert crowd.sent_close_frame() == 0
    first = last = 0
    crowd.wait(LIFE_S * 0.125)
    first = crowd.sent_close_frame()
    crowd.come(5)
    crowd.wait(LIFE_S * 0.125 + 20)  # a heartbeat, and what a mark leaves open
    last = crowd.sent_close_frame()
    assert first + last == 40
    assert 10 <= first <= 30, "they do not end at once"
    crowd.wait(LIFE_S * 0.5)
    assert crowd.sent_close_frame() == 0, "the young ones live"
    crowd.wait(LIFE_S)
    assert crowd.sent_close_frame() == 5
    crowd.close()


def test_without_a_longest_life_nobody_is_closed() -> None:
    crowd = StreamStage(0)
    crowd.come(3)
    crowd.wait(1_000)
    assert crowd.sent_close_frame() == 0
    assert len(crowd.hub) == 3
    crowd.close()


def test_a_crowd_has_its_heartbeats_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = StreamStage(0.0)
    slots = crowd.heartbeat.slots
    assert crowd.heartbeat.pause_s() == BEAT_S
    monkeypatch.setattr(limits, "HEARTBEATS_PER_S", 10)
    crowd.come(9 * slots)
    assert crowd.heartbeat.pause_s() == 0.9
    crowd.close()
