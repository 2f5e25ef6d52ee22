"""The relay: every commit of every node once and in order, whatever happens to its connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from pylon.clock import ManualClock, SeededRandom, SystemClock
from pylon.storage.events import ChangeBatch, ChangeEvent
from pylon.storage.postgres.channels import CHANGES, channel_name, payload, read_payload
from pylon.storage.postgres.connect import open_session
from pylon.storage.postgres.relay import PAGE, PostgresChanges
from pylon.storage.postgres.schema.ddl import SYSTEM_TABLES
from pylon.storage.postgres.wire import BlockingSession

_SOON_S = 5.0


def connect(url: str) -> BlockingSession:
    return open_session(url, "test", "here", SystemClock())


class OtherNode:
    """Commits as the writer of another node does."""

    def __init__(self, url: str, name: str = "other") -> None:
        self.session = connect(url)
        self.channel = channel_name(self.session, CHANGES)
        self.name = name

    def commit(
        self, *seqs: int, data: str = '{"a":1}', notify: bool = True, documents: bool = False,
        ended: str | None = None,
    ) -> ChangeBatch:
        """Commit one event for each seq; return what a writer would hand over."""
        self.session.execute("BEGIN")
        for seq in seqs:
            self.session.execute(
                "INSERT INTO _pylon_change_log VALUES ($1, 'A', $2, 'insert', $3, NULL, 7)",
                (seq, f"r{seq}", data),
            )
        if documents:
            self.session.execute(
                "INSERT INTO _pylon_crdt_updates SELECT coalesce(max(number), 0) + 1, 'A', 'r', 0, "
                "0, '' FROM _pylon_crdt_updates"
            )
        if ended is not None:
            self.session.execute(
                "INSERT INTO _pylon_marks SELECT coalesce(max(number), 0) + 1, 'session_ended', "
                "$1, 0 FROM _pylon_marks", (ended,),
            )
        if notify:
            text = payload(
                max(seqs, default=0), self.name, documents=documents, sessions=ended is not None
            )
            self.session.execute("SELECT pg_notify($1, $2)", (self.channel, text))
        self.session.execute("COMMIT")
        return ChangeBatch(min(seqs, default=1) - 1, [
            ChangeEvent(seq, "A", f"r{seq}", "insert", data.encode(), None, 7) for seq in seqs
        ])


class Follower:
    """A relay, and what it has given."""

    def __init__(self, url: str, poll_s: float = 60.0) -> None:
        self.sessions: list[BlockingSession] = []
        self.is_away = False

        def reconnect() -> BlockingSession:
            if self.is_away:
                raise psycopg.OperationalError("away")
            self.sessions.append(connect(url))
            return self.sessions[-1]

        self.source = PostgresChanges(reconnect, "own", SystemClock(), SeededRandom(1), poll_s)
        self.batches: list[ChangeBatch] = []
        self.ended: list[str] = []
        self.documents = 0
        self.source.begin()

    @property
    def seqs(self) -> list[int]:
        return [event.seq for batch in self.batches for event in batch.events]

    def turn(self, timeout_s: float = 0.0) -> None:
        report = self.source.receive(timeout_s)
        self.batches += report.batches
        self.ended += report.ended_families
        self.documents += report.has_documents

    def follow_to(self, seq: int) -> None:
        clock = SystemClock()
        until_s = clock.monotonic_s() + _SOON_S
        while self.source.head < seq and clock.monotonic_s() < until_s:
            self.turn(0.2)
        assert self.source.head == seq

    def settle(self) -> None:
        """Take what has arrived."""
        for _ in range(5):
            self.turn(0.05)


@pytest.fixture
def url(postgres_url: str) -> str:
    session = connect(postgres_url)
    for statement in SYSTEM_TABLES:
        session.execute_script(statement)
    session.close()
    return postgres_url


@pytest.fixture
def node(url: str) -> OtherNode:
    return OtherNode(url)


@pytest.fixture
def follower(url: str, node: OtherNode) -> Iterator[Follower]:
    node.commit(1, 2)
    made = Follower(url)
    yield made
    made.source.close()


def test_the_log_is_read_by_its_key_whatever_the_server_knows_of_it(url: str) -> None:
    """With a plan of the time when it was empty, each wake-up would read the whole log."""
    follower = Follower(url)
    (session,) = follower.sessions
    session.execute(f"PREPARE page (bigint) AS {PAGE}")
    found = session.execute("EXPLAIN EXECUTE page (0)")
    plan = b"\n".join([found.get_value(row, 0) or b"" for row in range(found.ntuples)]).decode()
    assert "Index Scan using _pylon_change_log_pkey" in plan, plan
    assert "$1" in plan, "one plan for all values"
    assert "Seq Scan" not in plan and "Sort" not in plan, plan
    follower.source.close()


def test_it_begins_at_the_head_and_gives_what_others_commit(
    follower: Follower, node: OtherNode
) -> None:
    assert follower.source.head == 2
    node.commit(5, 6)
    node.commit(9)
    follower.follow_to(9)
    assert follower.seqs == [5, 6, 9]
    assert [batch.prev_seq for batch in follower.batches] == [2, *(
        first.events[-1].seq for first in follower.batches[:-1]
    )]
    event = follower.batches[0].events[0]
    assert event == ChangeEvent(5, "A", "r5", "insert", b'{"a":1}', None, 7)


def test_own_batches_are_given_without_reading_and_in_order_with_those_of_others(
    follower: Follower, url: str, node: OtherNode
) -> None:
    own = OtherNode(url, "own")
    follower.source.hand_over(own.commit(3))
    follower.turn()
    assert follower.seqs == [3]
    node.commit(4, 5, notify=False)
    late = own.commit(6, notify=False)
    follower.source.hand_over(late)
    follower.source.hand_over(own.commit(7, notify=False))
    follower.follow_to(7)
    assert follower.seqs == [3, 4, 5, 6, 7]
    follower.source.hand_over(late)  # the log had it: given once
    follower.settle()
    assert follower.seqs == [3, 4, 5, 6, 7]


def test_an_own_batch_that_a_page_has_in_part_is_completed(
    follower: Follower, url: str
) -> None:
    node = OtherNode(url)
    large = "x" * 600_000
    batch = node.commit(3, 4, 5, data=f'"{large}"')
    follower.turn(0.5)
    assert follower.seqs == [3, 4]  # a page has 1 MiB, and the event that passes it
    follower.source.hand_over(ChangeBatch(2, batch.events))
    follower.follow_to(5)
    assert follower.seqs == [3, 4, 5]


def test_many_events_come_in_pages(follower: Follower, node: OtherNode) -> None:
    node.commit(*range(3, 1_303))
    follower.follow_to(1_302)
    assert follower.seqs == list(range(3, 1_303))
    assert max(len(batch.events) for batch in follower.batches) <= 500


def test_a_lost_notification_is_made_good_by_the_poll(url: str, node: OtherNode) -> None:
    follower = Follower(url, poll_s=0.1)
    node.commit(1, notify=False, documents=True, ended="s1")
    follower.follow_to(1)
    assert (follower.seqs, follower.ended, follower.documents) == ([1], ["s1"], 1)
    follower.source.close()


def test_commits_without_a_row_are_heard_of(follower: Follower, node: OtherNode) -> None:
    node.commit(documents=True)
    node.commit(ended="s1")
    node.commit(ended="s2")
    follower.settle()
    assert (follower.seqs, follower.ended, follower.documents) == ([], ["s1", "s2"], 1)


def test_a_connection_that_is_cut_delays_and_loses_nothing(
    follower: Follower, node: OtherNode
) -> None:
    pid = follower.sessions[-1].conn.info.backend_pid
    follower.is_away = True
    node.session.execute("SELECT pg_terminate_backend($1)", (pid,))
    node.commit(3, ended="s1")
    follower.settle()
    assert follower.seqs == [] and follower.source.behind_s > 0
    own = ChangeBatch(2, [])  # the own writer may still have its connection
    follower.source.hand_over(own)
    follower.is_away = False
    follower.follow_to(3)
    follower.settle()
    assert (follower.seqs, follower.ended) == ([3], ["s1"])
    assert follower.source.behind_s == 0 and follower.source.lag_seqs == 0


def test_a_new_epoch_makes_a_gap_before_its_first_event(
    follower: Follower, node: OtherNode
) -> None:
    node.commit(3)
    follower.follow_to(3)
    node.session.execute("INSERT INTO _pylon_epochs VALUES (1000, 2, 'test', 0)")
    node.commit(1_001)
    follower.follow_to(1_001)
    assert [(batch.prev_seq, len(batch.events)) for batch in follower.batches] == [
        (2, 1), (1_000, 0), (1_000, 1)
    ]


def test_behind_the_retained_log_it_makes_a_gap(url: str, node: OtherNode) -> None:
    clock = ManualClock()
    source = PostgresChanges(lambda: connect(url), "own", clock, SeededRandom(1), 1.0)
    node.commit(1, 2)
    source.begin()
    node.commit(3, 4, 5)
    node.session.execute("DELETE FROM _pylon_change_log WHERE seq < 5")
    clock.advance(60.0)
    report = source.receive(0.0)
    assert [(batch.prev_seq, len(batch.events)) for batch in report.batches] == [(5, 0)]
    assert source.head == 5
    source.close()


def test_too_many_handed_batches_are_read_from_the_log(
    follower: Follower, node: OtherNode
) -> None:
    batches = [node.commit(*range(first, first + 300), notify=False)
               for first in range(3, 21_003, 300)]
    for batch in batches:
        follower.source.hand_over(batch)
    follower.follow_to(21_002)
    assert follower.seqs == list(range(3, 21_003))


def test_another_thread_ends_its_wait(follower: Follower) -> None:
    timer = threading.Timer(0.1, follower.source.wake)
    timer.start()
    clock = SystemClock()
    began_s = clock.monotonic_s()
    follower.turn(30.0)
    assert clock.monotonic_s() - began_s < _SOON_S
    timer.join()


@pytest.mark.parametrize(("head", "documents", "sessions"), [
    (0, True, False), (7, False, False), (2**62, True, True),
])
def test_payloads_can_be_read_back(head: int, documents: bool, sessions: bool) -> None:
    text = payload(head, "ab12", documents=documents, sessions=sessions).encode()
    assert read_payload(text) == (head, "ab12", documents, sessions)


@pytest.mark.parametrize("text", [b"", b"x", b"1:2", b"-1:a:", b"1:a:d:new"])
def test_a_payload_of_a_later_version_counts_as_everything(text: bytes) -> None:
    signal = read_payload(text)
    assert signal.head == 0 and signal.has_documents and signal.has_sessions
