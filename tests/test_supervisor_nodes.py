"""What a node takes over from others: hints, and the marks of a store that others write to."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from pylon import limits
from pylon.bus.rooms_messages import JoinRoom, RoomRequest
from pylon.bus.runtime import Runtime
from pylon.changelog.hint_journal import HintReader, HintWriter, make_journal
from pylon.changelog.hints import CursorHints
from pylon.changelog.marks import MarkReader, marks_path, window_cursor
from pylon.clock import ManualClock, SeededRandom
from pylon.rooms.node_news import NEWS_BYTES, RoomNews, decode_news
from pylon.storage.nodes import NewsMessage, NodeFacts, NodeLease, NodesReport
from pylon.storage.ops import InsertRow, WriteRequest
from pylon.storage.sqlite.engine import SqliteEngine
from supervisor.hints import PreviousRun
from supervisor.node_hints import NodeHints
from supervisor.nodes import Nodes
from supervisor.rooms import RoomsThread
from tests.support.storage import open_engine, open_reader

INSERTS = 400
PERIOD_S = 1.0


def fill(engine: SqliteEngine, clock: ManualClock) -> None:
    """Insert a row each second."""
    for number in range(INSERTS):
        op = InsertRow("Note", f"{number:040x}", {"title": "t"}, b'{"title":"t"}')
        engine.apply([WriteRequest(number + 1, op)])
        clock.advance(PERIOD_S)


@pytest.mark.parametrize("has_marks", [False, True])
def test_a_node_that_was_away_replays_the_window_and_not_all_that_it_has_missed(
    tmp_path: Path, has_marks: bool
) -> None:
    clock = ManualClock()
    path = tmp_path / "app.db"
    engine = open_engine(path, clock=clock)
    if has_marks:  # of its run before, long ago
        PreviousRun(path, {}, "boot", clock).marks.begin(0, 0)
    fill(engine, clock)
    runtime = Runtime(tmp_path)
    reader = open_reader(path)
    head = reader.head_seq()
    PreviousRun(path, {}, "boot", clock).begin(reader, runtime, is_shared=True)
    marks = MarkReader(marks_path(path)).read()
    cursor = window_cursor(marks, clock.monotonic_s() - limits.HINT_WINDOW_S).seq
    window = int(limits.LOG_MIN_AGE_S / PERIOD_S)
    assert window <= head - cursor <= window + 2
    reader.close()
    engine.close()


class Link:
    """A link without a database: what is published waits in a list."""

    def __init__(self) -> None:
        self.others: tuple[NodeFacts, ...] = (NodeFacts("o", "i", ("ws",), "1"),)
        self.leads = False
        self.salt = b""
        self.problem = None
        self.facts = NodeFacts("own", "own", ("ws",), "1")
        self.lease = NodeLease()
        self.published: list[tuple[str, bytes]] = []

    def begin(self) -> None: ...

    def receive(self, timeout_s: float) -> NodesReport:
        return NodesReport([], [], [])

    def publish(self, topic: str, body: bytes) -> None:
        self.published.append((topic, body))

    def withdraw(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Here:
    """The hints of one node."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        folder.mkdir()
        self.link = Link()
        self.nodes = Nodes(self.link, "own", clock, lambda _: None)
        path = folder / "hints"
        make_journal(path, "boot", [], clock)
        self.worker = HintWriter(path, clock)
        self.hints = NodeHints(path, 1, self.nodes, clock)
        self.hub = HintReader(path, clock, CursorHints(clock, limits.HINT_WINDOW_S))

    def tell(self) -> list[NewsMessage]:
        self.nodes._run_tasks(at_end=True)
        told = [NewsMessage("i", topic, body) for topic, body in self.link.published]
        self.link.published.clear()
        return told

    def take(self, *, lost: list[str] | None = None, news: list[NewsMessage] | None = None) -> None:
        self.nodes._take(NodesReport([], lost or [], news or []))
        self.hub.refresh()


def test_a_hint_of_one_node_is_found_on_another_with_its_age(tmp_path: Path) -> None:
    clock = ManualClock()
    a, b = Here(tmp_path / "a", clock), Here(tmp_path / "b", clock)
    a.worker.put(7, 100)
    a.worker.put(7, 90)
    a.worker.put(8, 2**53)
    clock.advance(2.0)
    told = a.tell()
    b.take(news=told)
    assert (b.hub.hints.get(7), b.hub.hints.get(8)) == (90, 2**53)
    assert b.hub.hints.is_complete
    assert b.tell() == [], "what comes from another node is not told again"
    assert a.tell() == []
    clock.advance(limits.HINT_WINDOW_S * 1.25 - 1.0)
    assert b.hub.hints.get(7) is None, "it is as old as it was on its own node"


def test_lost_news_are_recorded_as_missing_hints(tmp_path: Path) -> None:
    clock = ManualClock()
    here = Here(tmp_path / "a", clock)
    here.take(news=[NewsMessage("i", "hints", msgspec.json.encode([[[7, 5, 0]], False]))])
    assert here.hub.hints.is_complete
    here.take(lost=["i"])
    assert not here.hub.hints.is_complete
    clock.advance(limits.HINT_WINDOW_S * 1.26)
    assert here.hub.hints.is_complete
    here.take(news=[NewsMessage("i", "hints", msgspec.json.encode([[], True]))])
    assert not here.hub.hints.is_complete


def test_news_of_other_builds_are_dropped_or_read_as_far_as_they_are_known(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock()
    make_journal(tmp_path / "hints", "boot", [], clock)
    nodes = Nodes(Link(), "own", clock, lambda _: None)
    hints = NodeHints(tmp_path / "hints", 1, nodes, clock)
    found = CursorHints(clock, limits.HINT_WINDOW_S)
    known = HintReader(tmp_path / "hints", clock, found)
    take = nodes._take
    take(NodesReport([], [], [
        NewsMessage("i", "of tomorrow", b'{"a": 1}'),  # a topic that nobody handles here
        NewsMessage("i", "hints", b'{"not": "a list"}'),
        NewsMessage("i", "hints", b'[[[7,9,0]],false,"a later member"]'),
    ]))
    known.refresh()
    assert found.get(7) == 9
    logged = capfd.readouterr().err
    assert logged.count("nodes.unreadable") == 1 and "of tomorrow" not in logged
    known.close()
    hints.close()


def test_rooms_are_told_in_parts_and_again_to_a_node_that_missed_the_beginning(
    tmp_path: Path
) -> None:
    clock, link = ManualClock(), Link()
    nodes = Nodes(link, "own", clock, lambda _: None)
    runtime = Runtime(tmp_path / "run")
    runtime.dir.mkdir(mode=0o700)
    rooms = RoomsThread(runtime, clock, SeededRandom(1), nodes)
    data = json.dumps("x" * 50_000).encode()
    rooms._service.apply(b"r1-w", [
        RoomRequest(0, JoinRoom(f"r{number}", f"u{number}", data)) for number in range(20)
    ])

    def tell() -> list[RoomNews]:
        """What leaves in the next tick."""
        clock.advance(limits.ROOM_TICK_S)
        rooms._tell()
        rooms._tell_state()
        told = [body for _, body in link.published]
        link.published.clear()
        assert sum(map(len, told)) < 2 * NEWS_BYTES
        return [decode_news(body) for body in told]

    rooms._tell_all()
    first = tell()
    assert first[0].begins and not first[-1].ends
    rooms._tell_all()  # another node asks, which missed the beginning
    told = [*first, *(news for _ in range(12) for news in tell())]
    assert [news.begins for news in told].count(True) == 2
    assert [news.ends for news in told].count(True) == 2 and told[-1].ends
    members = [part.user_id for news in told for part in news.members]
    assert members[:20] == members[20:] == [f"u{number}" for number in range(20)]
    assert tell() == []
    rooms._port.close()
