"""The flusher, over a real engine and file: checkpoints, retention, expired sessions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from pylon import limits, metrics
from pylon.bus.writer_port import LocalWriter
from pylon.changelog.feed import Feed
from pylon.errors import ResyncRequired
from pylon.storage.auth_ops import PutRecord
from pylon.storage.ops import DropSession, PutSession, WriteRequest
from pylon.storage.public_rows import PublicRows
from pylon.storage.sqlite.file_sync import sync_open_file
from pylon.storage.sqlite.pool import ReaderPool
from pylon.storage.sqlite.reader import SqliteReader
from supervisor.flusher import Flusher
from supervisor.writer import Writer
from tests.support.measured import total
from tests.support.writer_store import IDS, WriterStore, start_thread, start_writer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WriterStore]:
    made = WriterStore(tmp_path)
    yield made
    made.engine.close()


@pytest.fixture
def flusher(store: WriterStore) -> Flusher:
    return Flusher(store.engine.maintenance, 1_000, store.clock)


def fill(store: WriterStore, rows: int, size_chars: int = 2_000) -> None:
    requests = [WriteRequest(n, store.insert(f"{n}-{IDS.new()}" + "x" * size_chars))
                for n in range(rows)]
    assert all(reply.error is None for reply in store.engine.apply(requests).replies)


def test_the_wal_is_flushed_by_size_and_by_age(store: WriterStore, flusher: Flusher) -> None:
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
    store: WriterStore, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
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
    store: WriterStore, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
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
    looking = start_thread(lambda: [flusher.look() for _ in range(30)])
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
    store: WriterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAL_LIMIT_BYTES", limits.WAL_CHECKPOINT_BYTES)
    flusher = Flusher(store.engine.maintenance, 1_000, store.clock)
    checkpoints = store.engine.maintenance.checkpoints
    writer = Writer(store.runtime, store.engine, store.broken.append, PublicRows(()), store.clock)
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

    writing_on = start_thread(write)
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


def wal_size_bytes(store: WriterStore) -> int:
    return Path(f"{store.db_path}-wal").stat().st_size


@pytest.mark.usefixtures("processes")
def test_the_log_names_the_reader_that_holds_the_wal(
    store: WriterStore, flusher: Flusher, monkeypatch: pytest.MonkeyPatch,
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


def test_finish_truncates(store: WriterStore, flusher: Flusher) -> None:
    fill(store, 10)
    assert flusher.flush_all()
    wal = Path(f"{store.db_path}-wal")
    assert not wal.exists() or wal.stat().st_size == 0
    assert store.count() == 10


def test_old_events_are_pruned_in_steps(
    store: WriterStore, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 2_500, 1)
    store.clock.advance(limits.LOG_MIN_AGE_S + 1)
    monkeypatch.setattr(limits, "PRUNE_STEP", 400)
    writer, local = start_writer(store)
    flusher._prune()
    conn = apsw.Connection(str(store.db_path))
    assert conn.execute("SELECT count(*) FROM _pylon_change_log").get == 1_000
    conn.close()
    flusher.look()
    assert flusher.oldest_seq == store.engine.head - 999
    local.close()
    writer.stop()


@pytest.fixture
def small_log(store: WriterStore) -> Flusher:
    """A flusher of a log of 128 KiB."""
    return Flusher(store.engine.maintenance, 1_000_000, store.clock, 131_072)


def logged_bytes(store: WriterStore) -> int:
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
    store: WriterStore, small_log: Flusher
) -> None:
    writer, local = start_writer(store)
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
    store: WriterStore, small_log: Flusher, capfd: pytest.CaptureFixture[str]
) -> None:
    writer, local = start_writer(store)
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
    store: WriterStore, flusher: Flusher, jump_s: int
) -> None:
    writer, local = start_writer(store)
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


def test_start_and_stop(store: WriterStore, flusher: Flusher) -> None:
    writer, local = start_writer(store)
    flusher.start()
    flusher.stop()
    flusher.stop()
    assert not flusher._thread.is_alive()
    local.close()
    writer.stop()


def test_expired_sessions_are_collected_in_bounded_steps_and_counted(
    store: WriterStore, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
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
    writer, local = start_writer(store)
    left = []
    for _ in range(3):
        flusher._collect_sessions()
        store.clock.advance(limits.SESSIONS_COUNT_S)
        flusher.look()
        left.append(flusher.sessions)
    assert left == [{"guest": n, "user": 1} for n in (15, 0, 0)]
    local.close()
    writer.stop()


def test_guests_that_nobody_used_are_collected_after_a_day(
    store: WriterStore, flusher: Flusher
) -> None:
    now_s = store.clock.wall_ns() // 10**9
    store.engine.apply([
        *(WriteRequest(n, PutSession(f"guest{n}", "u", True, now_s, 0, "")) for n in range(5)),
        WriteRequest(9, PutSession("user", "u", False, now_s, 0, "")),
    ])
    reader = SqliteReader(store.db_path, store.manifest)

    def left() -> dict[str, bool]:
        found = {name: reader.session(name) for name in ("guest0", "guest1", "guest2", "user")}
        return {name: row.is_unused for name, row in found.items() if row is not None}

    writer, local = start_writer(store)
    assert left() == {"guest0": True, "guest1": True, "guest2": True, "user": False}
    flusher.note_used_sessions(["guest0", "guest1"])
    flusher.note_used_sessions(["guest1", "unknown"])
    flusher._note_used()
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


def test_guests_that_were_not_seen_for_long_are_collected(
    store: WriterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "GUEST_STEP", 10)
    monkeypatch.setattr(limits, "GUEST_STEPS", 2)
    flusher = Flusher(store.engine.maintenance, 1_000, store.clock, guest_retain_days=30)
    keeping = Flusher(store.engine.maintenance, 1_000, store.clock)
    now_s = store.clock.wall_ns() // 10**9
    store.engine.apply([
        WriteRequest(n, PutSession(f"s{n:02}", "u", n != 7, now_s, 0, "")) for n in range(45)
    ])
    before = total(metrics.RETENTION_DELETED, kind="guests")
    writer, local = start_writer(store)
    flusher._collect_guests()  # the first 20 of the table
    store.clock.advance(30 * 86_400 + 1)
    left = []
    for _ in range(3):
        keeping._collect_guests()
        flusher._collect_guests()
        left.append(sum(store.engine.maintenance.count_sessions().values()))
    assert left == [25, 20, 1], "from the 20th on, then the rest, then from the beginning"
    assert total(metrics.RETENTION_DELETED, kind="guests") - before == 44
    local.close()
    writer.stop()


def test_records_of_sign_in_go_when_their_time_is_over(store: WriterStore) -> None:
    flusher = Flusher(store.engine.maintenance, 1_000, store.clock, audit_retain_days=2)
    now_s = store.clock.wall_ns() // 10**9
    ops = [
        PutRecord("audit", {"id": f"{days}", "created_at": now_s - days * 86_400 - 1,
                            "action": "sign_in", "success": 1})
        for days in (1, 2, 3)
    ] + [PutRecord("limits", {"key": f"{n}", "tat": n}) for n in range(250)]
    store.engine.apply([WriteRequest(n, op) for n, op in enumerate(ops)])
    flusher._prune_records()
    reader = SqliteReader(store.db_path, store.manifest)
    assert [record["id"] for record in reader.records("audit", [])] == ["1"]
    assert reader.count_records("limits", []) == 1, "only the one that never expires"
    reader.close()
