"""workers.hub: what gathers leaves together, one bad socket ends alone, replays share pages."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import gevent
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import (
    ADMIN,
    ANONYMOUS,
    AuthContext,
    Caller,
)
from pylon.bus.changes import ChangesSubscriber
from pylon.changelog.change import Change
from pylon.changelog.hint_journal import HintReader
from pylon.changelog.hints import CursorHints
from pylon.changelog.marks import MarkReader, marks_path
from pylon.clock import ManualClock
from tests.support.examples import count_examples
from tests.support.stage import Stage
from tests.support.storage import MANIFEST
from tests.support.wait import WAIT_S, run_greenlets_until
from workers.hub.connection import ANSWERING, Connection
from workers.hub.feed import Feed
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.hub.replay import Replay
from workers.hub.sessions import SessionWatch
from workers.hub.start_cursors import StartCursors
from workers.ws import frames
from workers.ws.transport import WebSocketTransport

pytestmark = pytest.mark.stores

ADA, BOB = AuthContext(user_id="ada"), AuthContext(user_id="bob")


class HubStage:
    """The parts of a ws worker that changes go through, in this process, on a real bus."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder)
        app = self.stage.app
        self.pool = self.stage.pool
        self.hub = Hub(
            {name: app.rules.for_entity(name) for name in app.manifest.by_name},
            WebSocketTransport("ws", 1_024), ManualClock(),
        )
        self.subscriber = ChangesSubscriber(self.stage.runtime)
        history = History(self.pool)
        self.feed = Feed(self.subscriber, history, self.hub)
        self.feed.start()
        clock = ManualClock()
        starts = StartCursors(
            HintReader(self.stage.runtime.hints, clock, CursorHints(clock)),
            MarkReader(marks_path(Path(self.stage.config.db_path))), history, clock,
        )
        self.replay = Replay(self.hub, self.feed, history, starts)
        self.turns: list[list[int]] = []
        self.hub.on_published(lambda changes: self.turns.append([c.seq for c in changes]))

    def visit(self, auth: AuthContext) -> tuple[Connection, socket.socket]:
        """A connection that has not joined, and its client's end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        connection = Connection(ours, self.hub.transport, self.hub, Caller(auth), "127.0.0.1")
        self.hub.add(connection)
        connection.start()
        return connection, theirs

    def write(self, count: int) -> list[int]:
        """Commit that many batches of one row, and publish each; their seqs."""
        rows = (self.stage.insert("Public", text=str(n)) for n in range(count))
        return [self.stage.write(row).events[0].seq for row in rows]

    def published(self) -> list[int]:
        """All seqs, in the order of publishing."""
        return [seq for turn in self.turns for seq in turn]

    def close(self) -> None:
        for connection in self.hub.connections:
            connection.abort()
        self.subscriber.close()
        self.stage.close()


@pytest.fixture
def hub_stage(tmp_path: Path) -> Iterator[HubStage]:
    made = HubStage(tmp_path)
    yield made
    made.close()


def settle(hub_stage: HubStage, last_seq: int) -> None:
    """Wait until everything up to `last_seq` is published."""
    run_greenlets_until("all is published", lambda: hub_stage.feed.tail.last_seq >= last_seq)


def replayed(hub_stage: HubStage, auth: AuthContext, cursor: int) -> list[int]:
    """The seqs that a client which comes with `cursor` is sent before it joins."""
    connection, client = hub_stage.visit(auth)
    run = gevent.spawn(hub_stage.replay.run, connection, cursor)
    data = b""
    with gevent.Timeout(WAIT_S):
        while not run.dead:
            gevent.sleep(0)
            data += _received(client)
    run.get()
    return events_in(client, data)


def events_in(client: socket.socket, data: bytes = b"") -> list[int]:
    """The seqs in `data` and in what a client has been sent besides."""
    found = []
    while more := _received(client):
        data += more
    while data:
        payload = frames.payload_of(data)
        size_bytes = data[1] if data[1] < 126 else int.from_bytes(data[2:4], "big")
        found.append(orjson.loads(payload[:size_bytes])["seq"])
        data = payload[size_bytes:]
    return found


# --- Turns -----------------------------------------------------------------------------------


def test_what_has_gathered_is_published_in_few_turns(hub_stage: HubStage) -> None:
    connection, client = hub_stage.visit(ANONYMOUS)
    hub_stage.hub.join(connection)
    runner = gevent.spawn(hub_stage.feed.run)
    watcher = gevent.spawn(hub_stage.feed.watch)  # the first batches may find nobody subscribed
    settle(hub_stage, hub_stage.write(1)[-1])
    count = 300
    seqs = hub_stage.write(count)  # without a switch of greenlets: the hub finds them all
    settle(hub_stage, seqs[-1])
    assert hub_stage.published()[-count:] == seqs
    assert len(hub_stage.turns) < count / 2
    assert max(map(len, hub_stage.turns)) <= limits.TURN_EVENTS
    assert events_in(client)[-count:] == seqs
    gevent.killall([runner, watcher])


@settings(max_examples=count_examples(30))
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12))
def test_batches_of_a_turn_arrive_once_and_in_order_whatever_was_lost(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, bool]]
) -> None:
    """Batches may be lost, or come twice; the last one comes."""
    hub_stage = HubStage(tmp_path_factory.mktemp("turn"))
    try:
        connection, client = hub_stage.visit(ANONYMOUS)
        hub_stage.hub.join(connection)
        wanted, turn = [], []
        for number, (size, lost) in enumerate(batches, 1):
            rows = [hub_stage.stage.insert("Public") for _ in range(size)]
            batch = hub_stage.stage.write(*rows, publish=False)
            wanted += [event.seq for event in batch.events]
            if not lost or number == len(batches):
                turn += [batch] if lost else [batch, batch]
        hub_stage.feed.take(turn)
        assert hub_stage.published() == wanted
        assert events_in(client) == wanted
    finally:
        hub_stage.close()


@settings(max_examples=count_examples(25))
@given(st.lists(st.one_of(
    st.tuples(st.just("write"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("visit"), st.integers(0, 20), st.just(False)),
    st.tuples(st.just("leave"), st.just(0), st.just(False)),
    st.tuples(st.just("idle"), st.just(0), st.just(False)),
), max_size=14), st.sampled_from([1, 3, limits.TAIL_EVENTS]))
def test_who_comes_after_a_time_without_anybody_misses_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, bool]], aside: int
) -> None:
    """Batches that came while nobody was there were set aside unread, or lost, or too many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.hub.feed._IDLE_S", 0.001)
        patch.setattr("workers.hub.feed._MAX_UNDECODED_BATCHES", aside)
        hub_stage = HubStage(tmp_path_factory.mktemp("idle"))
        runner = gevent.spawn(hub_stage.feed.run)
        watcher = gevent.spawn(hub_stage.feed.watch)
        try:
            wanted = []
            with gevent.Timeout(WAIT_S):  # the first batches may find nobody subscribed
                while not hub_stage.feed.received:
                    wanted += hub_stage.write(1)
                    gevent.sleep(0.001)
            hub_stage.feed.check_head()
            visitor: tuple[Connection, socket.socket, int] | None = None
            for what, number, lost in [*steps, ("visit", 20, False), ("write", 1, False)]:
                if what == "write":
                    rows = [hub_stage.stage.insert("Public") for _ in range(number)]
                    batch = hub_stage.stage.write(*rows, publish=not lost)
                    wanted += [event.seq for event in batch.events]
                elif what == "visit" and visitor is None:
                    cursor = wanted[max(0, len(wanted) - 1 - number)]
                    connection, client = hub_stage.visit(ANONYMOUS)
                    rest = hub_stage.replay.run_at_once(connection, cursor)
                    if rest is not None:
                        gevent.spawn(hub_stage.replay.run, connection, rest)
                    visitor = connection, client, cursor
                elif what == "leave" and visitor is not None:
                    connection, client, cursor = visitor
                    connection.abort()
                    told = events_in(client)
                    begin = wanted.index(cursor) + 1
                    assert told == wanted[begin : begin + len(told)]
                    visitor = None
                elif what == "idle":
                    gevent.sleep(0.004)  # a few turns of the feed; nothing depends on how many
            assert visitor is not None
            _, client, cursor = visitor
            told = []
            hub_stage.feed.check_head()
            with gevent.Timeout(WAIT_S):
                while not told or told[-1] != wanted[-1]:
                    gevent.sleep(0.001)
                    told += events_in(client)
            assert told == wanted[wanted.index(cursor) + 1 :]
        finally:
            gevent.killall([runner, watcher])
            hub_stage.close()


def test_the_publisher_knows_whether_anybody_is_there(hub_stage: HubStage) -> None:
    publisher = hub_stage.stage.publisher
    runner = gevent.spawn(hub_stage.feed.run)

    def arrives(has_clients: bool) -> bool:
        hub_stage.write(1)
        return publisher.has_clients() is has_clients

    try:
        assert not publisher.has_clients()
        for _ in range(2):
            connection, _client = hub_stage.visit(ANONYMOUS)
            run_greenlets_until("a client is known", lambda: arrives(True))
            connection.abort()
            run_greenlets_until("its end is known", lambda: arrives(False))
    finally:
        runner.kill()


def test_a_change_that_comes_alone_is_not_waited_for(hub_stage: HubStage) -> None:
    batch = hub_stage.stage.write(hub_stage.stage.insert("Public"), publish=False)
    hub_stage.feed.take([batch])
    assert hub_stage.turns == [[batch.events[0].seq]]


def test_sockets_are_heard_while_many_sessions_end(hub_stage: HubStage) -> None:
    """Who speaks is heard before all sockets of ended sessions are closed."""
    clock = ManualClock()
    watch = SessionWatch(hub_stage.pool, MANIFEST, clock, lambda: None)
    watch.watch(hub_stage.hub)
    clients = []
    for number in range(300):
        connection, client = hub_stage.visit(ADA)
        hub_stage.hub.change_caller(
            connection, Caller(ADA, f"s{number}", family=f"s{number}")
        )
        watch.expires(f"s{number}", clock.monotonic_s())
        clients.append(client)
    _, speaker = hub_stage.visit(BOB)
    open_then: list[int] = []
    transport = hub_stage.hub.transport
    assert isinstance(transport, WebSocketTransport)
    transport.on_text = lambda connection, text: open_then.append(
        sum(each.is_open for each in hub_stage.hub.connections)
    )
    speaker.send(b"\x81\x82\0\0\0\0hi")
    watch.tick()
    assert sum(each.is_open for each in hub_stage.hub.connections) == 1
    assert open_then
    assert open_then[0] > 1


# --- The poller ------------------------------------------------------------------------------


def test_a_socket_whose_handling_fails_ends_alone(hub_stage: HubStage) -> None:
    bad, its_client = hub_stage.visit(ANONYMOUS)
    good, client = hub_stage.visit(ANONYMOUS)

    def fail(connection: Connection, text: str) -> None:
        raise RuntimeError(f"cannot take {text}")

    transport = hub_stage.hub.transport
    assert isinstance(transport, WebSocketTransport)
    transport.on_text = fail
    its_client.send(b"\x81\x82\0\0\0\0hi")
    client.send(b"\x89\x80\0\0\0\0")  # a ping, in the same turn
    run_greenlets_until("one socket has ended", lambda: len(hub_stage.hub) == 1)
    assert not bad.is_open
    assert good.is_open
    pong = run_greenlets_until("a pong", lambda: _received(client))
    assert pong == frames.encode(frames.PONG, b"")


def test_a_paused_connection_is_heard_after_it_resumes(hub_stage: HubStage) -> None:
    connection, client = hub_stage.visit(ANONYMOUS)
    connection.pause(ANSWERING)
    client.send(b"\x89\x80\0\0\0\0")
    for _ in range(20):
        gevent.sleep(0)
    assert _received(client) == b""
    connection.send(b"still written to")
    assert _received(client) == b"still written to"
    connection.resume(ANSWERING)
    pong = run_greenlets_until("a pong", lambda: _received(client))
    assert pong == frames.encode(frames.PONG, b"")


def test_nothing_overtakes_what_waits_in_an_outbox(hub_stage: HubStage) -> None:
    """The short cut around an empty outbox is closed while there is something in it."""
    connection, client = hub_stage.visit(ANONYMOUS)
    hub_stage.hub.join(connection)
    connection.send(b"x" * 900_000)
    assert connection.outbox_bytes
    batch = hub_stage.stage.write(hub_stage.stage.insert("Public"), publish=False)
    received = _received(client)  # the kernel has room again, and the poller has not run
    hub_stage.feed.take([batch])
    end = frames.encode(frames.TEXT, Change(batch.events[0]).wire)
    with gevent.Timeout(WAIT_S):
        while len(received) < 900_000 + len(end):
            received += _received(client)
            gevent.sleep(0)
    assert received == b"x" * 900_000 + end
    assert connection.direct_fd >= 0


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(1 << 20)
    except BlockingIOError:
        return b""


# --- Replays that share ----------------------------------------------------------------------


def test_clients_that_come_back_together_each_get_their_own_view(hub_stage: HubStage) -> None:
    """Pages are kept for the next client of the same context, or of any where all see the same;
    never for one who may not see them; and never beyond what is published meanwhile."""
    stage = hub_stage.stage
    first = stage.write(stage.insert("Public")).events[0].seq
    seen: dict[AuthContext, list[int]] = {ANONYMOUS: [], ADA: [], BOB: [], ADMIN: []}

    def commit(entity: str, viewers: Sequence[AuthContext], **body: object) -> None:
        batch = stage.write(stage.insert(entity, **body), publish=False)
        hub_stage.feed.take([batch])
        for viewer in viewers:
            seen[viewer].append(batch.events[0].seq)

    hub_stage.feed.check_head()
    commit("Mine", (ADA, ADMIN), ownerId="ada")
    commit("Note", (BOB, ADMIN), ownerId="bob", shared=False)
    for _ in range(2):
        for auth, seqs in seen.items():
            for _ in range(2):
                assert replayed(hub_stage, auth, first) == seqs
        commit("Public", (ANONYMOUS, ADA, BOB, ADMIN))
        commit("Secret", (ADMIN,))
    for _ in range(limits.REPLAY_PAGE_EVENTS):  # pages that look alike to all but admins
        commit("Public", (ANONYMOUS, ADA, BOB, ADMIN))
    for auth in (BOB, ANONYMOUS, ADMIN, ADA):
        assert replayed(hub_stage, auth, first) == seen[auth]


def test_pages_of_the_log_are_shared_until_something_is_published(hub_stage: HubStage) -> None:
    """A worker that has just started has only the newest events in memory."""
    stage = hub_stage.stage
    rows = [stage.insert("Public") for _ in range(limits.TAIL_PRIMED_EVENTS + 250)]
    seqs = [event.seq for event in stage.write(*rows, publish=False).events]
    hub_stage.feed.start()
    for _ in range(3):
        assert replayed(hub_stage, ANONYMOUS, seqs[0]) == seqs[1:]
    late = hub_stage.stage.write(hub_stage.stage.insert("Public"), publish=False)
    hub_stage.feed.take([late])
    assert replayed(hub_stage, ANONYMOUS, seqs[0]) == [*seqs[1:], late.events[0].seq]


def test_pages_that_all_see_alike_are_read_once_whatever_is_published(
    hub_stage: HubStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients come back to a young hub while writes go on."""
    stage = hub_stage.stage
    rows = [stage.insert("Public") for _ in range(limits.TAIL_PRIMED_EVENTS + 1_000)]
    seqs = [event.seq for event in stage.write(*rows, publish=False).events]
    hub_stage.feed.start()
    read: list[int] = []
    page = History.page

    def counted(self: History, cursor: int, limit: int) -> list[Change]:
        read.append(cursor)
        return page(self, cursor, limit)

    monkeypatch.setattr(History, "page", counted)
    for _ in range(4):
        assert replayed(hub_stage, ANONYMOUS, seqs[0]) == seqs[1:]
        late = hub_stage.stage.write(hub_stage.stage.insert("Public"), publish=False)
        hub_stage.feed.take([late])
        seqs += [event.seq for event in late.events]
    assert len(read) == len(set(read)) == 10
