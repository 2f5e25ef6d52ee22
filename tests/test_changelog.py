"""Changes as callers see them, the tail, the feed, and both kinds of pull."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.changelog.change import Change, View, encode_for, find_view
from pylon.changelog.feed import Feed
from pylon.changelog.pull import build_delta, stream_snapshot
from pylon.changelog.tail import Tail
from pylon.clock import ManualClock
from pylon.errors import InternalError, ResyncRequired
from pylon.storage.events import ChangeBatch, ChangeEvent, Kind
from pylon.storage.records import LogRetention
from tests.support import stores
from tests.support.storage import (
    ADA,
    BOB,
    MANIFEST,
    RULES,
    apply,
    delete,
    insert,
    open_engine,
    open_reader,
    row_id,
    rows_of,
    task,
    update,
)

pytestmark = pytest.mark.stores

TASKS = RULES.for_entity("Task")


class Setup:
    """A store with an engine, a pool and a feed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.engine = open_engine(path, self.clock)
        self.pool = stores.backend_at(path).open_readers(MANIFEST, self.clock)
        self.feed = Feed(self.pool)

    def pull(self, since: int, auth: AuthContext = ADMIN) -> dict[str, Any]:
        pulled = build_delta(self.feed, RULES, auth, since)
        body: dict[str, Any] = orjson.loads(pulled.body)
        assert body["cursor"] == {"last_seq": pulled.cursor}
        return body

    def snapshot(self, auth: AuthContext = ADMIN) -> dict[str, Any]:
        pieces = stream_snapshot(self.pool, MANIFEST, RULES, auth)
        body: dict[str, Any] = orjson.loads(b"".join(pieces))
        return body


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Setup]:
    setup = Setup(tmp_path / "a.db")
    yield setup
    setup.pool.close()
    setup.engine.close()


def image(owner: str | None) -> bytes | None:
    return None if owner is None else orjson.dumps({"id": "x", "ownerId": owner})


def change(kind: Kind, before: str | None, after: str | None) -> Change:
    return Change(ChangeEvent(7, "Task", "x", kind, image(after), image(before), 5))


@pytest.mark.parametrize(
    ("seen", "wanted", "kind", "owner"),
    [
        (change("insert", None, "ada"), View.AS_IS, "insert", "ada"),
        (change("insert", None, "bob"), View.NONE, None, None),
        (change("update", "ada", "ada"), View.AS_IS, "update", "ada"),
        (change("update", "ada", "bob"), View.AS_DELETE, "delete", None),
        (change("update", "bob", "ada"), View.AS_UPDATE, "update", "ada"),
        (change("update", "bob", "bob"), View.NONE, None, None),
        (change("update", None, "ada"), View.AS_UPDATE, "update", "ada"),
        (change("update", None, "bob"), View.NONE, None, None),
        (change("delete", "ada", None), View.AS_IS, "delete", None),
        (change("delete", "bob", None), View.NONE, None, None),
        (change("delete", None, None), View.NONE, None, None),
    ],
)
def test_what_a_caller_sees(
    seen: Change, wanted: View, kind: str | None, owner: str | None
) -> None:
    assert find_view(seen, TASKS, ADA) is wanted
    text = encode_for(seen, TASKS, ADA)
    if text is None:
        assert kind is None
        return
    event = orjson.loads(text)
    assert (event["seq"], event["kind"]) == (7, kind)
    assert event.get("data") == (None if owner is None else {"id": "x", "ownerId": owner})
    assert find_view(seen, TASKS, ADMIN) is View.AS_IS
    assert find_view(seen, TASKS, ANONYMOUS) is View.NONE


def test_wire_texts_are_made_once() -> None:
    seen = change("update", "ada", "bob")
    assert seen.wire is seen.wire_as("update")
    assert seen.wire_as("delete") is seen.wire_as("delete")
    assert orjson.loads(seen.wire_as("insert"))["kind"] == "insert"
    assert seen.row is seen.row and seen.prev_row is seen.prev_row
    assert find_view(seen, RULES.for_entity("User"), ADA) is View.NONE
    assert find_view(seen, RULES.for_entity("Note"), ANONYMOUS) is View.AS_IS


# --- Tail ----------------------------------------------------------------------------------


def event(seq: int, size_bytes: int = 2) -> ChangeEvent:
    return ChangeEvent(seq, "Note", "x", "insert", b"{}".ljust(size_bytes), None, 0)


def seqs(changes: list[Change] | None) -> list[int] | None:
    return None if changes is None else [c.seq for c in changes]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=60), st.integers(1, 12))
def test_the_tail_has_the_newest_without_a_hole(gaps: list[int], size: int) -> None:
    tail = Tail(10, max_events=size)
    everything: list[int] = []
    last = 10
    for gap in gaps:
        seq = last + gap
        tail.append(ChangeBatch(last, [event(seq)]))
        everything.append(seq)
        last = seq
        assert len(tail) <= size and tail.last_seq == seq
        for cursor in range(5, seq + 2):
            got = seqs(tail.changes_after(cursor))
            if cursor < tail.first_covered:
                assert got is None
            else:
                assert got == [s for s in everything if s > cursor]


def test_the_tail_is_bounded_in_bytes_and_refuses_gaps() -> None:
    tail = Tail(0, max_bytes=10_000)
    for seq in range(1, 20):
        tail.append(ChangeBatch(seq - 1, [event(seq, 1_000)]))
    assert 0 < len(tail) < 5 and tail.first_covered == 19 - len(tail)
    assert seqs(tail.append(ChangeBatch(17, [event(18), event(19), event(20)]))) == [20]
    with pytest.raises(InternalError):
        tail.append(ChangeBatch(21, [event(22)]))
    tail.append(ChangeBatch(20, [event(21, 50_000)]))
    assert len(tail) == 0 and tail.first_covered == tail.last_seq == 21
    assert seqs(tail.changes_after(20)) is None and tail.changes_after(21) == []
    assert seqs(Tail(0).changes_after(0, 5)) == []


# --- Delta ---------------------------------------------------------------------------------


def test_a_pull_reflects_what_is_committed(store: Setup) -> None:
    assert store.pull(0) == {"changes": [], "cursor": {"last_seq": 0}, "has_more": False}
    apply(store.engine, task(1), task(2, ownerId="bob"))
    body = store.pull(0, ADA)
    assert [c["row_id"] for c in body["changes"]] == [row_id(1)]
    assert body["cursor"] == {"last_seq": 2} and body["has_more"] is False
    assert store.pull(2, ADA)["changes"] == []
    apply(store.engine, update("Task", 1, {"ownerId": "bob"}), delete("Task", 2))
    assert [(c["seq"], c["kind"]) for c in store.pull(2, ADA)["changes"]] == [(3, "delete")]
    assert [(c["seq"], c["kind"]) for c in store.pull(2, BOB)["changes"]] == [
        (3, "update"), (4, "delete")]
    assert len(store.pull(0, ADMIN)["changes"]) == 4
    assert store.feed.head() == 4


def test_a_hidden_page_still_moves_the_cursor(
    store: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PULL_PAGE_EVENTS", 10)
    apply(store.engine, *[insert("User", n, {"email": f"{n}"}) for n in range(1, 26)])
    cursors, more = [1], True
    while more:
        body = store.pull(cursors[-1], ADA)
        assert body["changes"] == []
        more = body["has_more"]
        cursors.append(body["cursor"]["last_seq"])
    assert cursors == [1, 11, 21, 25]


def test_memory_and_store_answer_alike(store: Setup) -> None:
    apply(store.engine, *[task(n) for n in range(1, 301)])
    fresh = Feed(store.pool)
    for since in (1, 150, 299, 300):
        assert build_delta(fresh, RULES, ADA, since) == build_delta(store.feed, RULES, ADA, since)
    # A feed whose tail begins late reads the older part from the store.
    late = Feed(store.pool)
    late._tail = Tail(300)
    assert build_delta(late, RULES, ADA, 120) == build_delta(store.feed, RULES, ADA, 120)


def test_a_feed_that_missed_much_begins_anew(
    store: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(store.engine, task(1))
    assert store.feed.head() == 1
    monkeypatch.setattr(limits, "PULL_PAGE_EVENTS", 20)
    apply(store.engine, *[task(n) for n in range(2, 101)])
    seen, cursor = [], 1
    while True:
        body = store.pull(cursor)
        seen += [c["seq"] for c in body["changes"]]
        cursor = body["cursor"]["last_seq"]
        if not body["has_more"]:
            break
    assert seen == list(range(2, 101))


def test_answers_are_bounded_in_bytes(store: Setup) -> None:
    size = 1_500_000
    apply(store.engine, *[insert("Note", n, {"text": "x" * size}) for n in range(1, 7)])
    for feed in (store.feed, Feed(store.pool)):
        body = orjson.loads(build_delta(feed, RULES, ADMIN, 0).body)
        assert 1 <= len(body["changes"]) < 6 and body["has_more"] is True
        assert body["cursor"]["last_seq"] == len(body["changes"])


@pytest.mark.sqlite
def test_pulls_do_not_touch_the_store_when_nothing_was_committed(store: Setup) -> None:
    apply(store.engine, *[task(n) for n in range(1, 50)])
    store.pull(1)
    asked: list[str] = []
    store.pool._inline._conn.exec_trace = lambda _, sql, __: asked.append(sql) or True
    store.pull(10)
    store.pool._inline._conn.exec_trace = None
    assert asked == ["PRAGMA data_version"]


def test_an_entity_that_only_the_log_knows_is_the_admins(store: Setup) -> None:
    apply(store.engine, task(1))
    stores.run_sql(store.path, "UPDATE _pylon_change_log SET entity = 'Old'")
    fresh = Feed(store.pool)
    assert orjson.loads(build_delta(fresh, RULES, ADA, 0).body)["changes"] == []
    assert len(orjson.loads(build_delta(fresh, RULES, ADMIN, 0).body)["changes"]) == 1


# --- Cursors that do not reach --------------------------------------------------------------


def refused(store: Setup, since: int) -> dict[str, Any]:
    with pytest.raises(ResyncRequired) as caught:
        store.pull(since)
    oldest = caught.value.details["oldest_seq"]
    assert caught.value.message == (
        f"cursor last_seq={since} is older than the oldest retained seq={oldest}; "
        "client must re-sync")
    return caught.value.details


def test_a_cursor_of_the_future(store: Setup) -> None:
    apply(store.engine, task(1))
    assert refused(store, 999_999) == {"oldest_seq": 2}
    assert store.pull(1)["changes"] == []


def test_a_cursor_older_than_the_log(tmp_path: Path) -> None:
    store = Setup(tmp_path / "a.db")
    apply(store.engine, *[task(n) for n in range(1, 31)])
    store.clock.advance(10)
    now_s = store.clock.wall_ns() // 10**9
    store.engine.maintenance.prune_log(LogRetention(10, now_s, 1_000))
    store.feed = Feed(store.pool)
    assert refused(store, 19) == {"oldest_seq": 21}
    assert [c["seq"] for c in store.pull(20)["changes"]] == list(range(21, 31))


def test_void_cursors(tmp_path: Path) -> None:
    store = Setup(tmp_path / "a.db")
    apply(store.engine, task(1), task(2))
    assert store.feed.head() == 2
    store.engine.close()
    first_seq = stores.open_epoch(tmp_path / "a.db", "restore", store.clock, void_from=1)
    store.engine = open_engine(tmp_path / "a.db", store.clock)
    for feed in (store.feed, Feed(store.pool)):
        store.feed = feed
        assert [c["seq"] for c in store.pull(1)["changes"]] == [2]
        for since in (2, 3, first_seq - 1):
            assert refused(store, since) == {"oldest_seq": first_seq + 1}
        assert store.pull(first_seq) == {
            "changes": [], "cursor": {"last_seq": first_seq}, "has_more": False}
    assert apply(store.engine, task(3))[0].seq == first_seq + 1
    assert [c["seq"] for c in store.pull(first_seq)["changes"]] == [first_seq + 1]


# --- Snapshot ------------------------------------------------------------------------------


def test_an_empty_database(store: Setup) -> None:
    assert store.snapshot() == {
        "changes": [], "cursor": {"last_seq": 0}, "has_more": False, "snapshot_after": None}


def test_a_snapshot_is_every_readable_row(
    store: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_PAGE_ROWS", 3)
    apply(store.engine, *[task(n, ownerId="ada" if n % 3 else "bob") for n in range(1, 15)],
          *[insert("Note", n, {"text": f'"id":{n}'}) for n in range(1, 7)],
          insert("User", 1, {"email": "e"}))
    apply(store.engine, delete("Task", 4))
    rows = rows_of(open_reader(store.path), "Task")
    body = store.snapshot(ADA)
    assert body["cursor"] == {"last_seq": 22} and body["snapshot_after"] is None
    tasks = [c for c in body["changes"] if c["entity"] == "Task"]
    assert [c["data"] for c in tasks] == [r for r in rows.values() if r["ownerId"] == "ada"]
    assert {c["entity"] for c in body["changes"]} == {"Task", "Note"}
    for shown in body["changes"]:
        assert (shown["kind"], shown["seq"], shown["timestamp"]) == ("insert", 22, "")
        assert shown["row_id"] == shown["data"]["id"]
    assert len(store.snapshot(ADMIN)["changes"]) == 13 + 6 + 1
    assert len(store.snapshot(ANONYMOUS)["changes"]) == 6


def test_a_small_snapshot_is_of_one_commit(store: Setup) -> None:
    apply(store.engine, task(1))

    class Interrupted:
        """The real pool, with a write between the head and the rows."""

        def point(self, read: Any) -> Any:
            return store.pool.point(read)

        def scan(self, read: Any, inline: bool = True, caller: str = "") -> Any:
            reader = open_reader(store.path)
            rows_within = reader.rows_within

            class Meddling:
                at_one_commit = reader.at_one_commit
                head_seq = reader.head_seq

                def rows_within(
                    self, entity: str, query: Any, size_bytes: int
                ) -> tuple[list[bytes], bool]:
                    number = int(store.clock.monotonic_s()) + 2
                    store.clock.advance(1)
                    apply(store.engine, task(number), delete("Task", 1))
                    return rows_within(entity, query, size_bytes)

            return read(Meddling())

    body = orjson.loads(b"".join(stream_snapshot(Interrupted(), MANIFEST, RULES, ADA)))
    assert [c["row_id"] for c in body["changes"]] == [row_id(1)]
    assert body["cursor"] == {"last_seq": 1} and body["has_more"] is True


def test_ids_from_elsewhere_survive_a_snapshot(store: Setup) -> None:
    odd = 'a"b\\c'
    apply(store.engine, task(1))
    row = orjson.dumps({"id": odd, "text": "x"}).decode()
    stores.run_sql(
        store.path, f"""INSERT INTO "Note" (id, text, _json) VALUES ('{odd}', 'x', '{row}')"""
    )
    notes = [c for c in store.snapshot()["changes"] if c["entity"] == "Note"]
    assert [c["row_id"] for c in notes] == [odd]


def test_changes_during_a_snapshot_come_after_its_cursor(
    store: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_PAGE_ROWS", 2)
    apply(store.engine, *[task(n) for n in range(1, 8)])
    pieces = stream_snapshot(store.pool, MANIFEST, RULES, ADA)
    monkeypatch.setattr("pylon.changelog.pull._PIECE_BYTES", 1)
    text = next(pieces)
    apply(store.engine, delete("Task", 1), update("Task", 6, {"ownerId": "bob"}),
          update("Task", 7, {"title": "new"}), task(8))
    body = orjson.loads(text + b"".join(pieces))
    assert body["has_more"] is True and body["cursor"] == {"last_seq": 7}
    replica = {c["row_id"]: c["data"] for c in body["changes"]}
    for seen in store.pull(7, ADA)["changes"]:
        if seen["kind"] == "delete":
            replica.pop(seen["row_id"], None)
        else:
            replica[seen["row_id"]] = seen["data"]
    rows = rows_of(open_reader(store.path), "Task")
    assert replica == {k: r for k, r in rows.items() if r["ownerId"] == "ada"}
