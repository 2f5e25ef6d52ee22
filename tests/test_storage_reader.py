"""Readers and the pool: look-ups, pages, time limits, and reads that do not stop the hub."""

from __future__ import annotations

from pathlib import Path

import apsw
import gevent
import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon import limits
from pylon.clock import ManualClock
from pylon.errors import (
    EntityNotFound,
    InvalidColumn,
    LimitExceeded,
    QueryTimeout,
    StoreUnavailable,
)
from pylon.query.conditions import and_, compare, equal, like, or_
from pylon.query.graph import GraphNode
from pylon.query.predicate import FALSE, TRUE, Column, Literal
from pylon.query.rows import Query
from pylon.storage.interface import Reader
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.pool import ReaderPool
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.raw_sql import raw_sql
from tests.support.storage import (
    MANIFEST,
    apply,
    insert,
    open_engine,
    open_reader,
    row_id,
    task,
    update,
)
from tests.support.wait import run_greenlets_until

# Counts so far that no machine is done within the tests' limits.
ENDLESS = raw_sql(
    "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e12) "
    "SELECT count(*) FROM n) = 0"
)

SLOW = raw_sql(
    "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
    "SELECT count(*) FROM n) > 0"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def engine(path: Path) -> SqliteEngine:
    return open_engine(path)


def ids(rows: list[bytes]) -> list[int]:
    return [int(orjson.loads(r)["id"], 16) for r in rows]


def test_lookups(engine: SqliteEngine, path: Path) -> None:
    reader = open_reader(path)
    apply(engine, task(2, rank=5, done=True, slug="s"), task(1, rank=5, ownerId=None))
    first = reader.get("Task", row_id(1))
    assert reader.lookup("Task", "rank", 5) == reader.lookup("Task", "rank", "5") == first
    assert reader.lookup("Task", "done", "false") == first
    second = reader.get("Task", row_id(2))
    assert reader.lookup("Task", "done", True) == reader.lookup("Task", "slug", "s") == second
    assert reader.lookup("Task", "id", row_id(2)) == second
    assert reader.lookup("Task", "slug", "none") is None
    assert reader.lookup("Task", "ownerId", None) is None
    with pytest.raises(InvalidColumn):
        reader.lookup("Task", "_json", "x")
    with pytest.raises(EntityNotFound):
        reader.get("sqlite_schema", "x")


def test_pages_and_orders(engine: SqliteEngine, path: Path) -> None:
    reader = open_reader(path)
    apply(engine, *[task(n, title="same" if n % 2 else "other") for n in range(1, 8)])
    assert ids(reader.rows("Task", Query(TRUE, limit=3, after_id=row_id(2)))) == [3, 4, 5]
    by_title = (("title", True),)
    assert ids(reader.rows("Task", Query(TRUE, limit=9, order=by_title))) == [1, 3, 5, 7, 2, 4, 6]
    assert ids(reader.rows("Task", Query(TRUE, limit=2, offset=5))) == [6, 7]
    assert reader.rows("Task", Query(FALSE, limit=9)) == []
    same = or_(equal("title", "same"), equal("title", "x"))
    some = and_(same, TRUE, compare(">", Column("id"), Literal(row_id(3))))
    assert ids(reader.rows("Task", Query(some, limit=9))) == [5, 7]
    assert and_() is TRUE and and_(some, FALSE) is FALSE and and_(TRUE, some) == some


CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])


@given(st.lists(st.text(CHARACTERS), max_size=5))
def test_any_text_comes_back_in_lists(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("texts") / "a.db"
    engine = open_engine(path)
    apply(engine, *[insert("Note", n, {"text": t}) for n, t in enumerate(texts)])
    reader = open_reader(path)
    rows = reader.rows("Note", Query(TRUE, limit=9))
    assert [orjson.loads(r)["text"] for r in rows] == texts
    engine.close()
    reader.close()


def test_readers_cannot_write_and_notice_commits(engine: SqliteEngine, path: Path) -> None:
    reader = open_reader(path)
    with pytest.raises(apsw.ReadOnlyError):
        reader._conn.execute("DELETE FROM Task")
    before = reader.data_version()
    assert reader.data_version() == before
    apply(engine, task(1))
    assert reader.data_version() != before
    with pytest.raises(StoreUnavailable):
        open_reader(path.with_name("none.db"))
    reader.close()
    with pytest.raises(StoreUnavailable):
        reader.head_seq()


def test_a_long_statement_is_stopped(
    engine: SqliteEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.05)
    reader = open_reader(path)
    apply(engine, task(1))
    with pytest.raises(QueryTimeout):
        reader.rows("Task", Query(ENDLESS, limit=1))
    assert ids(reader.rows("Task", Query(TRUE, limit=1))) == [1]


def test_a_commit_is_left_after_a_timeout(
    engine: SqliteEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.2)
    reader = open_reader(path, check_steps=1)  # every statement is asked about, COMMIT too
    apply(engine, task(1))
    for _ in range(2):
        with pytest.raises(QueryTimeout):
            reader.at_one_commit(lambda: reader.rows("Task", Query(ENDLESS, limit=1)))
    assert reader.at_one_commit(lambda: reader.get("Task", row_id(1))) is not None
    apply(engine, task(2))
    assert reader.get("Task", row_id(2)) is not None


def test_a_commit_is_left_when_the_time_of_a_group_is_over(
    engine: SqliteEngine, path: Path
) -> None:
    """With the usual number of steps SQLite asks in every 667th COMMIT of a connection."""
    clock = ManualClock()
    reader = open_reader(path, clock=clock, check_steps=1)
    apply(engine, task(1))

    def read() -> list[bytes]:
        rows = reader.rows("Task", Query(TRUE, limit=1))
        clock.advance(1)
        return rows

    rows = reader.within(0.001, lambda _: reader.at_one_commit(read))
    assert ids(rows) == [1]
    apply(engine, task(2))
    assert reader.at_one_commit(lambda: reader.get("Task", row_id(2))) is not None


def test_newest_events_are_bounded_in_bytes(
    engine: SqliteEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(engine, *[task(n, title="x" * 1_000) for n in range(1, 9)])
    monkeypatch.setattr(limits, "TAIL_BYTES", 3_500)
    assert [e.seq for e in open_reader(path).newest_events(100)] == [6, 7, 8]


def test_identifiers_are_quoted() -> None:
    assert quote('a"b') == '"a""b"'
    with pytest.raises(ValueError, match="NUL"):
        quote("a\0")


# --- The pool ------------------------------------------------------------------------------


def test_the_pool_answers_short_and_long_reads(engine: SqliteEngine, path: Path) -> None:
    pool = ReaderPool(path, MANIFEST)
    apply(engine, *[task(n) for n in range(1, 3_001)], update("Task", 1, {"rank": 1}))
    assert pool.point(lambda r: r.get("Task", row_id(2))) is not None
    assert len(pool.scan(lambda r: r.rows("Task", Query(TRUE, limit=5)))) == 5
    # Long enough to be interrupted inline and done again in a thread.
    slow = or_(*[like("title", pattern) for pattern in ("a%b", "c%d", "3%7")])
    wanted = [n for n in range(1, 3_001) if "3" in str(n) and "7" in str(n).partition("3")[2]]
    assert ids(pool.scan(lambda r: r.rows("Task", Query(slow, limit=9_999)))) == wanted
    with pytest.raises(EntityNotFound):
        pool.scan(lambda r: r.rows("Nope", Query(TRUE, limit=1)))
    pool.close()


def test_released_memory_fills_again(engine: SqliteEngine, path: Path) -> None:
    def is_mapped() -> bool:
        return f"{path}\n" in Path("/proc/self/maps").read_text()

    apply(engine, *[task(n) for n in range(1, 501)])
    apsw.Connection(str(path)).execute("PRAGMA wal_checkpoint").fetchall()
    pool = ReaderPool(path, MANIFEST)
    assert pool.point(lambda r: r.get("Task", row_id(2))) is not None
    assert is_mapped()
    pool.release_memory()
    assert not is_mapped()
    assert pool.point(lambda r: r.get("Task", row_id(3))) is not None
    assert is_mapped()
    pool.close()


def test_what_is_known_to_be_slow_is_not_begun_in_the_loop(
    engine: SqliteEngine, path: Path
) -> None:
    apply(engine, *[task(n) for n in range(1, 101)])
    reader = SqliteReader(path, MANIFEST, check_steps=100)
    slow, quick = Query(SLOW, limit=3), Query(TRUE, limit=3)

    def hurry(query: Query) -> bool:
        """Whether the time was enough."""
        try:
            return reader.within(0.0, lambda r: len(r.rows("Task", query)) == 3)
        except QueryTimeout:
            return False

    assert not hurry(slow)
    begun: list[str] = []
    reader._conn.set_exec_trace(lambda _, sql, __: begun.append(sql) is None)
    assert [hurry(slow) for _ in range(63)] == [False] * 63
    assert begun == []
    assert hurry(quick)
    assert len(reader.rows("Task", slow)) == 3  # with all the time there is
    assert not hurry(slow)
    assert len(begun) == 3  # it was tried once more


def test_scans_leave_the_hub_free_and_wait_for_a_connection(
    engine: SqliteEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.5)
    pool = ReaderPool(path, MANIFEST, connections=2)
    apply(engine, task(1))

    def endless() -> str:
        try:
            pool.scan(lambda r: r.rows("Task", Query(ENDLESS, limit=1)))
        except QueryTimeout as error:
            return error.message
        return "answered"

    points = 0
    jobs = [gevent.spawn(endless) for _ in range(3)]
    while not all(job.dead for job in jobs):
        assert pool.point(lambda r: r.get("Task", row_id(1)))
        points += 1
        gevent.sleep(0.001)
    assert points > len(jobs)  # more than one between two ends of scans
    # One scanned until its time was over; of those behind it, at least one never got its turn.
    messages = [job.get() for job in jobs]
    assert "the query took too long" in messages
    assert any("connection" in m for m in messages)

    def again(reader: Reader) -> list[bytes]:
        return reader.rows("Task", Query(TRUE, limit=1))

    assert ids(pool.scan(again)) == [1]
    pool.close()


def test_a_killed_greenlet_gives_its_connection_back(
    engine: SqliteEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.3)
    pool = ReaderPool(path, MANIFEST, connections=2)
    apply(engine, task(1))
    job = gevent.spawn(lambda: pool.scan(lambda r: r.rows("Task", Query(ENDLESS, limit=1))))
    run_greenlets_until(
        "the scan has the connection", lambda: pool._scanners and not pool._free
    )
    job.kill()
    run_greenlets_until("the connection is back", lambda: pool._free)
    assert len(pool._free) == 1
    pool.close()


def test_the_rows_of_an_answer_are_bounded_in_bytes(
    engine: SqliteEngine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIST_BYTES", 10_000)
    reader = open_reader(path)
    apply(engine, *[task(n, title="x" * 3_000) for n in range(1, 5)])
    apply(engine, task(5, title="x" * 20_000))
    assert reader.page("Task", Query(TRUE, limit=2))[0] == 2
    node = GraphNode(MANIFEST.by_name["Task"], TRUE)
    for read in (
        lambda: reader.page("Task", Query(TRUE, limit=4)),
        lambda: reader.page("Task", Query(TRUE, limit=1, after_id=row_id(4))),
        lambda: reader.graph([node]),
        lambda: reader.graph([node, msgspec.structs.replace(node, limit=1)]),
    ):
        with pytest.raises(LimitExceeded, match="10000 bytes") as refused:
            read()
        assert refused.value.hint is not None
    with pytest.raises(LimitExceeded, match="10000 bytes"):
        reader.rows("Task", Query(TRUE, limit=9))
    # Readers in pages get fewer rows at a time, and a row that is larger than a page by itself.
    rows, has_more = reader.rows_within("Task", Query(TRUE, limit=9), 10_000)
    assert 1 <= len(rows) < 4 and has_more
    rows, has_more = reader.rows_within("Task", Query(TRUE, limit=9, after_id=row_id(4)), 10_000)
    assert len(rows) == 1 and len(rows[0]) > 20_000
    assert len(reader.get("Task", row_id(5)) or b"") > 20_000
    assert reader.page("Task", Query(TRUE, limit=2))[0] == 2
