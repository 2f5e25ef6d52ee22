"""Writes into a database file that is deleted, moved, replaced or refused by its disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from pylon import limits, metrics
from pylon.api.admin.readiness import Readiness
from pylon.bus.messages import RolesReport
from pylon.bus.runtime import make_runtime_dir
from pylon.bus.writer_port import LocalWriter
from pylon.clock import ManualClock
from pylon.config import load
from pylon.errors import StoreUnavailable
from pylon.storage.ops import WriteRequest
from pylon.storage.public_rows import PublicRows
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.file_watch import FileWatch
from supervisor.flusher import Flusher
from supervisor.writer import Writer
from tests.support.measured import total
from tests.support.storage import apply, code, open_engine, task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "a.db"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def engine(path: Path, clock: ManualClock) -> Iterator[SqliteEngine]:
    made = open_engine(path, clock)
    apply(made, task(1))
    yield made
    made.close()


def _delete(path: Path) -> None:
    path.unlink()


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def _replace(path: Path) -> None:
    shutil.copyfile(path, path.with_name("new.db"))
    path.with_name("new.db").rename(path)


def _delete_wal(path: Path) -> None:
    path.with_name("a.db-wal").unlink()


def _delete_wal_index(path: Path) -> None:
    path.with_name("a.db-shm").unlink()


def _delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


LOSSES = pytest.mark.parametrize(
    ("lose", "reason"),
    [(_delete, "file_gone"), (_move, "file_gone"), (_replace, "file_replaced"),
     (_delete_wal, "wal_gone"),
     (_delete_wal_index, "shm_gone"), (_delete_folder, "file_gone")],
)


@LOSSES
def test_nothing_is_acknowledged_into_a_file_that_is_gone(
    engine: SqliteEngine, path: Path, clock: ManualClock, lose: Callable[[Path], None], reason: str
) -> None:
    lose(path)
    for number in (2, 3):
        clock.advance(1)
        result = engine.apply([WriteRequest(1, task(number))])
        assert [code(reply) for reply in result.replies] == ["STORE_UNAVAILABLE"]
        assert result.batch is None  # no hub tells of it either
        assert result.refusal is not None and result.refusal.reason == reason
        assert str(path) in result.refusal.message


@LOSSES
def test_no_step_of_maintenance_is_done_in_a_file_that_is_gone(
    engine: SqliteEngine, path: Path, clock: ManualClock, lose: Callable[[Path], None], reason: str
) -> None:
    lose(path)
    clock.advance(1)
    with pytest.raises(StoreUnavailable):
        engine.maintenance.end_run()
    problem = engine.maintenance.find_problem()
    assert problem is not None and problem.reason == reason


def test_a_file_that_comes_back_is_written_to_again(
    engine: SqliteEngine, path: Path
) -> None:
    _move(path)
    assert code(apply(engine, task(2))[0]) == "STORE_UNAVAILABLE"
    path.with_name("moved.db").rename(path)
    assert code(apply(engine, task(3))[0]) is None


def test_refused_writes_are_logged_and_counted_by_reason_and_end_readiness(
    path: Path, tmp_path: Path, clock: ManualClock, engine: SqliteEngine,
    capfd: pytest.CaptureFixture[str],
) -> None:
    runtime = make_runtime_dir(load({"PYLON_RUNTIME_DIR": str(tmp_path / "r")}).config)
    writer = Writer(runtime, engine, lambda _: None, PublicRows(()), clock)
    writer.start()
    local = LocalWriter(runtime)
    local.submit(task(2))
    assert writer.find_problem() is None
    before = _refused("file_gone")
    path.rename(path.with_name("moved.db"))
    for number in (3, 4, 5):
        with pytest.raises(StoreUnavailable):
            local.submit(task(number))
    problem = writer.find_problem()
    assert problem is not None and "file_gone" in problem and str(path) not in problem
    assert _refused("file_gone") == before + 3
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    refused = [line for line in lines if line["event"] == "writes.refused"]
    assert [line["reason"] for line in refused] == ["file_gone"]  # once, not for each write
    assert str(path) in refused[0]["message"]
    readiness = Readiness(lambda: None, clock)
    readiness.report(RolesReport({}, draining=False, store_problem=problem))
    verdict = readiness.verdict()
    assert not verdict.ready and verdict.checks["writes"] == {"ok": False, "problem": problem}
    readiness.report(RolesReport({}, draining=False))
    assert readiness.verdict().ready
    path.with_name("moved.db").rename(path)
    local.submit(task(6))
    assert writer.find_problem() is None
    local.close()
    writer.stop()


def _refused(reason: str) -> float:
    return total(metrics.WRITES_REFUSED, reason=reason)


def test_a_full_disk_has_a_reason_and_a_sentence(engine: SqliteEngine, path: Path) -> None:
    pages = engine._conn.pragma("page_count")
    engine._conn.pragma("max_page_count", pages)
    result = engine.apply([WriteRequest(1, task(2, title="x" * 500_000))])
    assert [code(reply) for reply in result.replies] == ["STORE_UNAVAILABLE"]
    assert result.refusal is not None and result.refusal.reason == "disk_full"
    assert str(path) in result.refusal.message
    engine._conn.pragma("max_page_count", 1_000_000)
    assert code(apply(engine, task(2))[0]) is None


@LOSSES
def test_the_flusher_tells_readiness_of_a_lost_file_without_a_write(
    engine: SqliteEngine, path: Path, tmp_path: Path, clock: ManualClock,
    lose: Callable[[Path], None], reason: str, capfd: pytest.CaptureFixture[str],
) -> None:
    flusher = Flusher(engine.maintenance, 1_000, clock)
    flusher._look_for_problem()
    assert flusher.store_problem is None and total(metrics.DB_WRITABLE) == 1
    lose(path)
    clock.advance(1)
    for _ in range(3):
        flusher._look_for_problem()
    assert flusher.store_problem is not None and total(metrics.DB_WRITABLE) == 0
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["reason"] for line in lines if line["event"] == "database.unusable"] == [reason]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_read_only_file_system_is_noticed(tmp_path: Path, clock: ManualClock) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=16m tmpfs {folder} 2>/dev/null"):
        pytest.skip("cannot mount here")
    try:
        engine = open_engine(folder / "a.db", clock)
        watch = FileWatch(folder / "a.db", clock)
        assert watch.find_problem() is None and watch.find_unwritable() is None
        filler = folder / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 65_536)
                file.flush()
        replies = apply(engine, task(1, title="x" * limits.LARGE_ROW_BYTES))
        assert code(replies[0]) == "STORE_UNAVAILABLE"
        filler.unlink()
        assert code(apply(engine, task(1))[0]) is None
        engine.close()
    finally:
        os.system(f"umount -l {folder}")


def test_an_unwritable_file_is_noticed(
    engine: SqliteEngine, path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = FileWatch(path, clock)
    monkeypatch.setattr(os, "access", lambda name, mode: name != str(path))  # root may always
    problem = watch.find_unwritable()
    assert problem is not None and problem.reason == "read_only" and str(path) in problem.message
    assert isinstance(apsw.ReadOnlyError(), apsw.Error)
