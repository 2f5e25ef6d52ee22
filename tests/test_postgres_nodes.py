"""Nodes: the registry, the leader, and news between real connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.clock import Clock, SeededRandom, SystemClock
from pylon.storage.nodes import (
    HEARTBEAT_S,
    LEASE_MARGIN_S,
    LEASE_S,
    NewsMessage,
    NodeFacts,
    NodeLease,
)
from pylon.storage.postgres.connect import open_session
from pylon.storage.postgres.news import PAYLOAD_BYTES, NewsParcel, NewsReader, NewsWriter
from pylon.storage.postgres.node_link import PostgresNodes
from pylon.storage.postgres.schema.ddl import SYSTEM_TABLES
from pylon.storage.postgres.wire import BlockingSession

_SOON_S = 8.0
_encode = msgspec.json.encode


def connect(url: str) -> BlockingSession:
    return open_session(url, "test", "here", SystemClock())


class Node:
    """A link, and what it has reported."""

    def __init__(
        self, url: str, name: str, incarnation: str, roles: tuple[str, ...] = ("http", "ws"),
        clock: Clock | None = None,
    ) -> None:
        self.sessions: list[BlockingSession] = []
        self.is_away = False

        def reconnect() -> BlockingSession:
            if self.is_away:
                raise psycopg.OperationalError("away")
            self.sessions.append(connect(url))
            return self.sessions[-1]

        self.link = PostgresNodes(
            reconnect, NodeFacts(name, incarnation, roles, "1", workers={"ws": 2}),
            clock or SystemClock(), SeededRandom(1),
        )
        self.link.begin()
        self.gone: list[str] = []
        self.lost: list[str] = []
        self.news: list[NewsMessage] = []

    @property
    def pid(self) -> int:
        return self.sessions[-1].conn.info.backend_pid

    def turn(self, timeout_s: float = 0.05) -> None:
        report = self.link.receive(timeout_s)
        self.gone += report.gone
        self.lost += report.lost
        self.news += report.news

    def bodies(self, topic: str = "t") -> list[bytes]:
        return [item.body for item in self.news if item.topic == topic]

    def kill_backend(self, url: str) -> None:
        session = connect(url)
        session.execute("SELECT pg_terminate_backend($1)", (self.pid,))
        session.close()


def turn_until(condition: Callable[[], object], *nodes: Node) -> None:
    clock = SystemClock()
    until_s = clock.monotonic_s() + _SOON_S
    while not condition() and clock.monotonic_s() < until_s:
        for node in nodes:
            node.turn()
    assert condition()


@pytest.fixture
def url(postgres_url: str) -> str:
    session = connect(postgres_url)
    for statement in SYSTEM_TABLES:
        session.execute_script(statement)
    session.close()
    return postgres_url


@pytest.fixture
def pair(url: str) -> Iterator[tuple[Node, Node]]:
    nodes = Node(url, "a", "a1"), Node(url, "b", "b1")
    yield nodes
    for node in nodes:
        node.link.close()


class ShiftedClock:
    """The machine's clock, as one shows it that is wrong."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def wall_ns(self) -> int:
        return SystemClock().wall_ns() + int(self.ahead_s * 1e9)

    def monotonic_s(self) -> float:
        return SystemClock().monotonic_s()


def test_a_node_whose_clock_is_wrong_is_not_ready(url: str) -> None:
    clock = ShiftedClock()
    node = Node(url, "a", "a1", clock=clock)
    try:
        clock.ahead_s = 20.0
        turn_until(lambda: node.link.leads, node)
        assert node.link.problem is None
        for clock.ahead_s, said in ((45.0, "s ahead of"), (-45.0, "s behind")):
            turn_until(lambda said=said: said in (node.link.problem or ""), node)
        clock.ahead_s = 0.0
        turn_until(lambda: node.link.problem is None, node)
    finally:
        node.link.close()


def test_nodes_find_each_other_and_one_leads(url: str, pair: tuple[Node, Node]) -> None:
    a, b = pair
    assert (a.link.leads, b.link.leads) == (True, False)
    assert a.link.others == ()
    assert b.link.others == (NodeFacts("a", "a1", ("http", "ws"), "1", workers={"ws": 2}),)
    turn_until(lambda: a.link.others, a, b)
    assert [facts.name for facts in a.link.others] == ["b"]
    a.link.close()
    turn_until(lambda: b.gone, b)
    assert b.gone == ["a1"]
    turn_until(lambda: b.link.leads and not b.link.others, b)


def run_sql(url: str, text: str) -> None:
    session = connect(url)
    session.execute(text)
    session.close()


def test_each_node_with_shards_has_a_lease_that_heartbeats_renew(url: str) -> None:
    clock = SystemClock()
    a, b = Node(url, "a", "a1", ("shards",)), Node(url, "b", "b1", ("http", "shards"))
    c = Node(url, "c", "c1", ("http",))
    first_a, first_b = a.link.lease, b.link.lease
    for lease in (first_a, first_b):
        left_s = lease.until_s - clock.monotonic_s()
        assert LEASE_S - LEASE_MARGIN_S - 2 < left_s <= LEASE_S - LEASE_MARGIN_S
    assert first_a.id != first_b.id
    turn_until(
        lambda: a.link.lease.until_s > first_a.until_s and b.link.lease.until_s > first_b.until_s,
        a, b, c,
    )
    assert (a.link.lease.id, b.link.lease.id) == (first_a.id, first_b.id)
    assert c.link.lease == NodeLease()
    for node in (a, b, c):
        node.link.close()


def test_a_lease_that_has_ended_is_not_renewed_but_replaced(url: str) -> None:
    a = Node(url, "a", "a1", ("shards",))
    first = a.link.lease
    run_sql(url, "UPDATE _pylon_nodes SET lease_until = clock_timestamp() - interval '1 ms'")
    turn_until(lambda: a.link.lease.id != first.id, a)
    assert a.link.lease.until_s > first.until_s
    a.link.close()


def test_a_lease_ends_with_the_connection_and_outlasts_a_new_one(url: str) -> None:
    a = Node(url, "a", "a1", ("shards",))
    first = a.link.lease
    a.is_away = True
    a.kill_backend(url)
    turn_until(lambda: a.link.lease == first and a.link._session is None, a)
    a.is_away = False
    turn_until(lambda: a.link.lease.until_s > first.until_s, a)
    assert a.link.lease.id == first.id, "it had not ended meanwhile"
    a.link.close()


def test_a_later_start_with_the_name_ends_the_lease_of_the_earlier_one(url: str) -> None:
    a = Node(url, "a", "a1", ("shards",))
    first = a.link.lease
    later = Node(url, "a", "a2", ("shards",))
    assert later.link.lease.id not in ("", first.id)
    turn_until(lambda: a.link.problem, a, later)
    assert a.link.lease == first
    assert later.link.lease.id.startswith("a2")
    later.link.close()
    a.link.close()


def test_a_node_that_withdraws_keeps_its_lease_and_others_hear_at_once(url: str) -> None:
    a, b = Node(url, "a", "a1", ("http", "shards")), Node(url, "b", "b1", ("shards",))
    turn_until(lambda: a.link.others, a, b)
    first = a.link.lease
    clock = SystemClock()
    begun_s = clock.monotonic_s()
    a.link.withdraw()
    turn_until(lambda: b.link.others[0].roles == ("http",), a, b)
    assert clock.monotonic_s() - begun_s < HEARTBEAT_S / 2
    turn_until(lambda: a.link.lease.until_s > first.until_s, a, b)
    assert a.link.lease.id == first.id
    for node in (a, b):
        node.link.close()


def test_news_reach_the_other_node_whole_and_in_order(pair: tuple[Node, Node]) -> None:
    a, b = pair
    bodies = [_encode("ä" * size) for size in (1, 7_000, 8_000, 300_000)]
    for body in bodies:
        a.link.publish("t", body)
    turn_until(lambda: len(b.bodies()) == 4, a, b)
    a.link.publish("t", b"5")
    b.link.publish("t", b"6")
    turn_until(lambda: len(b.bodies()) == 5 and a.bodies(), a, b)
    assert b.bodies() == [*bodies, b"5"] and a.bodies() == [b"6"]
    assert {item.incarnation for item in b.news} == {"a1"}
    assert b.lost == ["a1"]  # `a` was there before `b`, and may have told something
    assert a.lost == []  # whoever hears the first news of a node has missed nothing


def test_a_cut_connection_makes_a_gap_and_ends_the_lead(url: str, pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.link.publish("t", b"1")
    turn_until(b.bodies, a, b)
    b.kill_backend(url)
    b.is_away = True
    turn_until(lambda: b.sessions[-1].is_broken, b)
    a.link.publish("t", b"2")
    turn_until(lambda: not a.link._queue, a)
    b.is_away = False
    b.lost.clear()
    turn_until(lambda: len(b.sessions) == 2, b)
    a.link.publish("t", b"3")
    turn_until(lambda: len(b.bodies()) == 2, a, b)
    assert b.bodies() == [b"1", b"3"] and b.lost == ["a1"]
    a.kill_backend(url)
    turn_until(lambda: not a.link.leads, a)
    turn_until(lambda: a.link.leads != b.link.leads, a, b)


def test_a_restart_ends_the_incarnation_before(url: str, pair: tuple[Node, Node]) -> None:
    a, b = pair
    turn_until(lambda: b.lost, a, b)
    a.sessions[-1].close()  # as the kernel does for a killed process
    successor = Node(url, "a", "a2")
    turn_until(lambda: b.gone, b, successor)
    assert b.gone == ["a1"]
    turn_until(lambda: [o.incarnation for o in b.link.others] == ["a2"], b, successor)
    successor.link.close()


def test_two_nodes_of_one_name_are_told_so(url: str, pair: tuple[Node, Node]) -> None:
    a, _ = pair
    double = Node(url, "a", "a2")
    turn_until(lambda: a.link.problem, a, double)
    assert a.link.problem == "another node has the name a" and double.link.problem is None
    double.link.close()
    turn_until(lambda: a.link.problem is None, a)  # its row is free: it registers again


def test_too_many_news_are_dropped_and_that_is_noticed(pair: tuple[Node, Node]) -> None:
    a, b = pair
    turn_until(lambda: b.lost, a, b)
    b.lost.clear()
    for _ in range(10):
        a.link.publish("t", _encode("x" * 1_000_000))
    turn_until(lambda: b.lost, a, b)
    assert b.lost == ["a1"]


# --- Pieces --------------------------------------------------------------------------------


def read_all(reader: NewsReader, payloads: list[bytes]) -> list[NewsParcel]:
    return [heard for payload in payloads if (heard := reader.take(payload, 0.0)) is not None]


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=4_000)), max_size=20))
def test_any_messages_are_put_together_again(messages: list[tuple[str, str]]) -> None:
    writer = NewsWriter("i" * 16, "n" * 63)
    payloads = writer.pack([(topic, _encode(text)) for topic, text in messages])
    assert all(len(payload) <= PAYLOAD_BYTES for payload in payloads)
    assert len(set(payloads)) == len(payloads)
    for payload in payloads:
        payload.decode()  # no character is cut
    heard = read_all(NewsReader("own"), payloads)
    assert not any(each.is_lost for each in heard)
    items = [(item.topic, msgspec.json.decode(item.body)) for each in heard for item in each.items]
    assert items == messages


@given(st.data())
def test_a_missing_piece_is_noticed_and_no_message_comes_torn(data: st.DataObject) -> None:
    writer = NewsWriter("i1", "n")
    sent = [f"{number}" * data.draw(st.sampled_from([1, 9_000, 20_000])) for number in range(6)]
    payloads = [payload for text in sent for payload in writer.pack([("t", _encode(text))])]
    dropped = data.draw(st.sets(st.integers(0, len(payloads) - 2), min_size=1))
    reader = NewsReader("own")
    heard = read_all(reader, [p for n, p in enumerate(payloads) if n not in dropped])
    heard += read_all(reader, writer.pack([("t", b'"end"')]))
    texts = [msgspec.json.decode(item.body) for each in heard for item in each.items]
    assert [text for text in sent if text in texts] == texts[:-1] and texts[-1] == "end"
    assert any(each.is_lost for each in heard) == (len(texts) < 7 or 0 in dropped)


@pytest.mark.parametrize("payload", [
    b"", b"1", b"1 i n 1 0", b"2 i n 1 0 1 []", b"1 i n x 0 1 []", b"1 own n 1 0 1 []",
])
def test_payloads_of_others_are_ignored(payload: bytes) -> None:
    assert NewsReader("own").take(payload, 0.0) is None


def test_a_parcel_that_cannot_be_read_is_lost() -> None:
    heard = NewsReader("own").take(b"1 i n 1 0 1 {", 0.0)
    assert heard is not None and heard.is_lost
