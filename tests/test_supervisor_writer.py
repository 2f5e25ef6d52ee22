"""The writer and the flusher with the real engine, the real bus and a real file."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon import limits, metrics
from pylon.bus.changes import ChangesPublisher
from pylon.bus.runtime import Runtime, make_runtime_dir
from pylon.bus.writer_port import LocalWriter
from pylon.changelog.feed import Feed
from pylon.clock import ManualClock, SystemClock, SystemRandom
from pylon.config import load
from pylon.errors import InternalError, ResyncRequired, UniqueViolation
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.storage.events import ChangeBatch
from pylon.storage.ops import (
    DropSession,
    InsertRow,
    OpKey,
    PutSession,
    WriteReply,
    WriteRequest,
)
from pylon.storage.records import BatchResult
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.file_sync import sync_open_file
from pylon.storage.sqlite.pool import ReaderPool
from pylon.storage.sqlite.reader import SqliteReader
from pylon.values import EntityCodec
from supervisor.flusher import Flusher
from supervisor.writer import Writer
from tests.support.measured import total
from tests.support.supervised import MANIFEST
from tests.support.wait import WAIT_S

IDS = RowIds(SystemClock(), SystemRandom())


class Store:
    """A database with its engine, and a runtime folder."""

    def __init__(self, folder: Path) -> None:
        self.runtime: Runtime = make_runtime_dir(
            load({"PYLON_RUNTIME_DIR": str(folder / "r")}).config)
        self.manifest: Manifest = parse_manifest(json.dumps(MANIFEST), "m.json")
        self.db_path = folder / "app.db"
        self.clock = ManualClock()
        self.engine = SqliteEngine.open(
            self.db_path, self.manifest, compile_rules(self.manifest), self.clock, "normal")
        self.broken: list[BaseException] = []
        self.codec = EntityCodec(self.manifest.by_name["Todo"])

    def insert(self, title: str, op: OpKey | None = None) -> InsertRow:
        row_id = IDS.new()
        encoded = self.codec.insert({"title": title}, row_id)
        return InsertRow("Todo", row_id, encoded.values, encoded.row_json, op=op)

    def count(self) -> int:
        conn = apsw.Connection(str(self.db_path))
        try:
            return int(conn.execute("SELECT count(*) FROM Todo").get)
        finally:
            conn.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.engine.close()


def writing(store: Store, engine: Any = None) -> tuple[Writer, LocalWriter]:
    writer = Writer(store.runtime, engine or store.engine, store.broken.append)
    writer.start()
    return writer, LocalWriter(store.runtime)


def test_replies_come_after_the_commit_and_errors_stay_alone(store: Store) -> None:
    writer, local = writing(store)
    reply = local.submit(store.insert("a"))
    assert reply.seq == writer.head
    assert store.count() == 1
    good, bad, also_good = local.submit_all(
        [store.insert("b"), store.insert("a"), store.insert("c")])
    assert (good.error, also_good.error) == (None, None)
    assert bad.error is not None
    assert isinstance(bad.error.to_exception(), UniqueViolation)
    assert store.count() == 3
    local.close()
    writer.stop()
    writer.stop()


def test_an_op_id_is_carried_out_once(store: Store) -> None:
    writer, local = writing(store)
    op = OpKey("u", "op-1")
    first = local.submit(store.insert("a", op))
    again = local.submit(store.insert("b", op))
    assert (again.replayed, again.seq, again.row_id) == (True, first.seq, first.row_id)
    assert store.count() == 1
    local.close()
    writer.stop()


def test_many_threads_at_once(store: Store) -> None:
    writer, first = writing(store)
    failed: list[BaseException] = []

    def run(name: str) -> None:
        local = LocalWriter(store.runtime)
        try:
            for n in range(50):
                local.submit(store.insert(f"{name}-{n}"))
        except BaseException as ex:
            failed.append(ex)
            raise
        finally:
            local.close()

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert store.count() == 300
    first.close()
    writer.stop()


def test_stop_carries_out_what_waits(store: Store) -> None:
    slow = Slow(store.engine)
    writer, local = writing(store, slow)
    answered: list[list[WriteReply]] = []
    threads = [in_thread(lambda: answered.append(local.submit_all([store.insert("1")])))]
    assert slow.entered.wait(WAIT_S)
    sent = threading.Event()

    class Late(LocalWriter):
        """Says when it has sent."""

        def _send(self, requests: list[WriteRequest]) -> None:
            super()._send(requests)
            sent.set()

    late = Late(store.runtime)
    threads.append(in_thread(
        lambda: answered.append(late.submit_all([store.insert(str(n)) for n in range(2, 100)]))))
    assert sent.wait(WAIT_S)
    stopper = in_thread(writer.stop)
    slow.go_on.set()
    for thread in (*threads, stopper):
        thread.join(20)
    assert sorted(len(replies) for replies in answered) == [1, 98]
    assert store.count() == 99
    local.close()
    late.close()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[ChangeBatch]:
    """The batches that the writer has published."""
    batches: queue.Queue[ChangeBatch] = queue.Queue()
    monkeypatch.setattr(ChangesPublisher, "publish", lambda _, batch: batches.put(batch))
    return batches


def test_commits_that_follow_closely_are_published_together(
    store: Store, published: queue.Queue[ChangeBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUBLISH_PERIOD_S", 60.0)
    writer, local = writing(store)
    for number in range(5):
        local.submit(store.insert(str(number)))
    writer.stop()  # publishes what it has kept
    first, rest = published.get(timeout=WAIT_S), published.get(timeout=WAIT_S)
    assert [event.seq for event in first.events] == [1]
    assert rest.prev_seq == 1 and [event.seq for event in rest.events] == [2, 3, 4, 5]
    local.close()


def test_a_commit_is_published_though_none_follows(
    store: Store, published: queue.Queue[ChangeBatch]
) -> None:
    writer, local = writing(store)
    for number in range(5):
        local.submit(store.insert(str(number)))
    seq = 0
    while seq < 5:
        batch = published.get(timeout=WAIT_S)
        assert batch.prev_seq == seq
        seq = batch.events[-1].seq
    local.close()
    writer.stop()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


class Slow:
    """The real engine, whose first batch takes as long as the test wants."""

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine
        self.entered = threading.Event()
        self.go_on = threading.Event()

    @property
    def head(self) -> int:
        return self._engine.head

    def apply(self, requests: Sequence[WriteRequest], *, large_bytes: int | None) -> BatchResult:
        self.entered.set()
        assert self.go_on.wait(WAIT_S)
        return self._engine.apply(requests, large_bytes=large_bytes)


class Failing:
    """An engine with a defect."""

    head = 0
    defective = True

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine

    def apply(self, requests: Sequence[WriteRequest], *, large_bytes: int | None) -> BatchResult:
        if self.defective:
            raise ZeroDivisionError("defect")
        return self._engine.apply(requests, large_bytes=large_bytes)


def test_a_defect_answers_everyone_and_ends_the_supervisor_at_last(store: Store) -> None:
    engine = Failing(store.engine)
    writer, local = writing(store, engine)
    for _ in range(limits.WRITER_FAILURES - 1):
        for reply in local.submit_all([store.insert("a"), store.insert("b")]):
            assert reply.error is not None
            assert isinstance(reply.error.to_exception(), InternalError)
            assert "defect" not in reply.error.message
    assert store.broken == []
    engine.defective = False
    assert local.submit(store.insert("a")).error is None  # a success starts the count again
    engine.defective = True
    for _ in range(limits.WRITER_FAILURES):
        local.submit_all([DropSession("none")])
    assert [type(error) for error in store.broken] == [ZeroDivisionError]
    local.close()
    writer.stop()


# --- The flusher -------------------------------------------------------------------------------


@pytest.fixture
def flusher(store: Store) -> Flusher:
    return Flusher(store.engine.maintenance, 1_000, store.clock)


def fill(store: Store, rows: int, size_chars: int = 2_000) -> None:
    requests = [WriteRequest(n, store.insert(f"{n}-{IDS.new()}" + "x" * size_chars))
                for n in range(rows)]
    assert all(reply.error is None for reply in store.engine.apply(requests).replies)


def test_the_wal_is_flushed_by_size_and_by_age(store: Store, flusher: Flusher) -> None:
    checkpoints = store.engine.maintenance.checkpoints
    fill(store, 1)
    flusher.look()
    assert checkpoints.wal_bytes > 0
    flusher.look()
    assert checkpoints.unwritten_bytes == checkpoints.wal_bytes  # too young, too small
    store.clock.advance(limits.WAL_CHECKPOINT_AGE_S)
    flusher.look()
    assert checkpoints.unwritten_bytes == 0
    fill(store, 2_000)
    flusher.look()
    assert checkpoints.wal_bytes > limits.WAL_CHECKPOINT_BYTES
    assert checkpoints.unwritten_bytes == 0
    assert flusher.oldest_seq > 0


def test_above_its_limit_the_wal_begins_anew(
    store: Store, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = store.engine.maintenance.checkpoints
    monkeypatch.setattr(limits, "WAL_LIMIT_BYTES", limits.WAL_CHECKPOINT_BYTES)
    reader = SqliteReader(store.db_path, store.manifest)
    holding = apsw.Connection(str(store.db_path))
    holding.execute("BEGIN; SELECT count(*) FROM Todo").fetchall()
    fill(store, 2_000)
    flusher.look()
    assert checkpoints.wal_bytes > limits.WAL_CHECKPOINT_BYTES  # a reader holds it
    fill(store, 1)  # and the writer is not held up
    holding.execute("COMMIT")
    flusher.look()
    size_bytes = wal_size_bytes(store)
    fill(store, 100)
    assert reader.head_seq() == store.engine.head
    assert wal_size_bytes(store) == size_bytes  # it is written over from its beginning
    flusher.look()
    assert checkpoints.wal_bytes < limits.WAL_CHECKPOINT_BYTES
    reader.close()
    holding.close()


def test_a_reader_that_holds_the_wal_never_makes_the_writer_wait(
    store: Store, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case B65: above the limit, a checkpoint that waits would hold the writer's lock."""
    checkpoints = store.engine.maintenance.checkpoints
    monkeypatch.setattr(limits, "WAL_LIMIT_BYTES", limits.WAL_CHECKPOINT_BYTES)
    holding = apsw.Connection(str(store.db_path))
    holding.execute("BEGIN; SELECT count(*) FROM Todo").fetchall()
    fill(store, 2_000)
    modes: list[str] = []
    checkpoint = checkpoints.checkpoint

    def noted(mode: str) -> bool:
        modes.append(mode)
        return checkpoint(mode)

    monkeypatch.setattr(checkpoints, "checkpoint", noted)
    refused = threading.Event()
    store.engine._conn.set_busy_timeout(0)
    store.engine._conn.set_busy_handler(lambda _: refused.set() or False)
    looking = in_thread(lambda: [flusher.look() for _ in range(30)])
    while looking.is_alive():
        fill(store, 1)
    looking.join()
    assert not refused.is_set()
    assert set(modes) == {"passive"}  # no attempt to reset what cannot be reset
    assert checkpoints._conn.pragma("busy_timeout") == 0
    holding.execute("COMMIT")
    flusher.look()
    assert modes[-1] == "restart"
    fill(store, 1)
    flusher.look()
    assert checkpoints.wal_bytes < limits.WAL_CHECKPOINT_BYTES
    holding.close()


def test_the_wal_begins_anew_while_commits_never_cease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAL_LIMIT_BYTES", limits.WAL_CHECKPOINT_BYTES)
    flusher = Flusher(store.engine.maintenance, 1_000, store.clock)
    checkpoints = store.engine.maintenance.checkpoints
    writer = Writer(store.runtime, store.engine, store.broken.append, store.clock)
    writer.start()
    refused, ending = threading.Event(), threading.Event()
    store.engine._conn.set_busy_timeout(0)
    store.engine._conn.set_busy_handler(lambda _: refused.set() or False)

    def write() -> None:
        local = LocalWriter(store.runtime)
        while not ending.is_set():
            ops = [store.insert(f"{IDS.new()}" + "x" * 2_000) for _ in range(20)]
            assert all(reply.error is None for reply in local.submit_all(ops))
        local.close()

    writing_on = in_thread(write)
    restarts = written_bytes = 0
    while restarts < 3:
        flusher.look()
        restarts += checkpoints.wal_bytes < written_bytes
        written_bytes = checkpoints.wal_bytes
    ending.set()
    writing_on.join()
    assert not refused.is_set()
    writer.stop()


def test_an_open_file_is_synced_by_its_own_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    assert not sync_open_file(path)  # it is not open here
    with path.open("ab") as file:
        assert sync_open_file(path)
        file.write(b"y")  # and it stays open
    assert path.read_bytes() == b"xy"


def wal_size_bytes(store: Store) -> int:
    return Path(f"{store.db_path}-wal").stat().st_size


@pytest.mark.usefixtures("processes")
def test_the_log_names_the_reader_that_holds_the_wal(
    store: Store, flusher: Flusher, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(limits, "WAL_LIMIT_BYTES", limits.WAL_CHECKPOINT_BYTES)
    reader = subprocess.Popen(
        [sys.executable, "-c",
         "import apsw, sys; c = apsw.Connection(sys.argv[1]); "
         "c.execute('BEGIN; SELECT count(*) FROM Todo').fetchall(); "
         "print('reading', flush=True); sys.stdin.read()", str(store.db_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
    fill(store, 2_000)
    flusher.look()
    store.clock.advance(5)
    flusher.look()
    reader.communicate("")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (held,) = [line for line in lines if line["event"] == "wal.held"]  # once, not each second
    assert f"pid {reader.pid}" in held["readers"][0]
    assert total(metrics.WAL_HELD) == 5.0
    flusher.look()
    assert total(metrics.WAL_HELD) == 0.0


def test_finish_truncates(store: Store, flusher: Flusher) -> None:
    fill(store, 10)
    assert flusher.flush_all()
    wal = Path(f"{store.db_path}-wal")
    assert not wal.exists() or wal.stat().st_size == 0
    assert store.count() == 10


def test_old_events_are_pruned_in_steps(
    store: Store, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 2_500, 1)
    store.clock.advance(limits.LOG_MIN_AGE_S + 1)
    monkeypatch.setattr(limits, "PRUNE_STEP", 400)
    writer, local = writing(store)
    flusher._prune()
    conn = apsw.Connection(str(store.db_path))
    assert conn.execute("SELECT count(*) FROM _pylon_change_log").get == 1_000
    conn.close()
    flusher.look()
    assert flusher.oldest_seq == store.engine.head - 999
    local.close()
    writer.stop()


@pytest.fixture
def small_log(store: Store) -> Flusher:
    """A flusher of a log of 128 KiB."""
    return Flusher(store.engine.maintenance, 1_000_000, store.clock, 131_072)


def logged_bytes(store: Store) -> int:
    conn = apsw.Connection(str(store.db_path))
    try:
        return int(conn.execute(
            "SELECT total(ifnull(octet_length(data), 0) + ifnull(octet_length(prev_data), 0)) "
            "FROM _pylon_change_log").get)
    finally:
        conn.close()


def prune_by_bytes(flusher: Flusher, local: LocalWriter) -> None:
    flusher.look()
    flusher._prune(flusher._drop_to_seq(flusher._old_seq()))
    flusher.look()


def test_the_log_is_pruned_by_bytes_and_spares_the_young(
    store: Store, small_log: Flusher
) -> None:
    writer, local = writing(store)
    fill(store, 120, 2_000)
    prune_by_bytes(small_log, local)
    assert logged_bytes(store) > 240_000  # all of it is young
    store.clock.advance(limits.LOG_MIN_AGE_S)
    fill(store, 10, 2_000)
    prune_by_bytes(small_log, local)
    # By pages: what is too much for the setting may be a page too much.
    assert 20_000 < logged_bytes(store) <= 131_072
    assert small_log.oldest_seq > 1 and store.count() == 130
    local.close()
    writer.stop()


def test_bytes_bound_the_log_also_within_two_minutes(
    store: Store, small_log: Flusher, capfd: pytest.CaptureFixture[str]
) -> None:
    writer, local = writing(store)
    for _ in range(20):
        fill(store, 20, 2_000)
        prune_by_bytes(small_log, local)
        assert logged_bytes(store) <= limits.LOG_HARD_FACTOR * 131_072 + 60_000
    assert small_log.log_bytes <= limits.LOG_HARD_FACTOR * 131_072
    reader = SqliteReader(store.db_path, store.manifest)
    with pytest.raises(ResyncRequired):
        Feed(ReaderPool(store.db_path, store.manifest)).changes_after(1, 10)
    assert reader.oldest_seq() > 1
    reader.close()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines].count("log.cut_short") == 1
    local.close()
    writer.stop()


@pytest.mark.parametrize("jump_s", [10**8, -(10**8)])
def test_a_clock_that_jumps_neither_ends_retention_nor_takes_young_events(
    store: Store, flusher: Flusher, jump_s: int
) -> None:
    writer, local = writing(store)
    fill(store, 1_500, 1)
    flusher.look()
    store.clock.jump(jump_s)
    fill(store, 1_500, 1)  # stamped by the clock that is wrong
    flusher.look()
    flusher._prune()
    flusher.look()
    assert flusher.oldest_seq == 1  # all of it is seconds old
    store.clock.jump(-jump_s)
    fill(store, 10, 1)
    flusher.look()
    store.clock.advance(limits.LOG_MIN_AGE_S + 1)
    flusher.look()
    flusher._prune()
    flusher.look()
    assert flusher.oldest_seq == store.engine.head - 999
    local.close()
    writer.stop()


def test_start_and_stop(store: Store, flusher: Flusher) -> None:
    writer, local = writing(store)
    flusher.start()
    flusher.stop()
    flusher.stop()
    assert not flusher._thread.is_alive()
    local.close()
    writer.stop()


def test_expired_sessions_are_collected_in_bounded_steps_and_counted(
    store: Store, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SESSION_STEP", 10)
    monkeypatch.setattr(limits, "SESSION_STEPS", 3)
    now_s = store.clock.wall_ns() // 10**9
    store.engine.apply([
        WriteRequest(n, PutSession(f"s{n}", "u", True, now_s, now_s + 100, "")) for n in range(45)
    ])
    store.engine.apply([WriteRequest(0, PutSession("for ever", "u", False, now_s, 0, ""))])
    flusher.look()
    assert flusher.sessions == {"guest": 45, "user": 1}
    store.clock.advance(101)
    writer, local = writing(store)
    left = []
    for _ in range(3):
        flusher._collect_sessions()
        store.clock.advance(limits.SESSIONS_COUNT_S)
        flusher.look()
        left.append(flusher.sessions)
    assert left == [{"guest": n, "user": 1} for n in (15, 0, 0)]
    local.close()
    writer.stop()


def test_guests_that_nobody_used_are_collected_after_a_day(store: Store, flusher: Flusher) -> None:
    now_s = store.clock.wall_ns() // 10**9
    store.engine.apply([
        *(WriteRequest(n, PutSession(f"guest{n}", "u", True, now_s, 0, "")) for n in range(5)),
        WriteRequest(9, PutSession("user", "u", False, now_s, 0, "")),
    ])
    reader = SqliteReader(store.db_path, store.manifest)

    def left() -> dict[str, bool]:
        found = {name: reader.session(name) for name in ("guest0", "guest1", "guest2", "user")}
        return {name: row.is_unused for name, row in found.items() if row is not None}

    writer, local = writing(store)
    assert left() == {"guest0": True, "guest1": True, "guest2": True, "user": False}
    flusher.note_used_guests(["guest0", "guest1"])
    flusher.note_used_guests(["guest1", "unknown"])
    flusher._mark_used_guests()
    assert left() == {"guest0": False, "guest1": False, "guest2": True, "user": False}
    store.clock.advance(limits.GUEST_UNUSED_S)
    flusher._collect_sessions()
    assert left()["guest2"]
    store.clock.advance(1)
    flusher._collect_sessions()
    assert left() == {"guest0": False, "guest1": False, "user": False}
    local.submit(DropSession("guest1"))
    assert left() == {"guest0": False, "user": False}
    reader.close()
    local.close()
    writer.stop()
