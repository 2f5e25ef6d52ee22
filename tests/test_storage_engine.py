"""The SQLite engine: columns, disk errors, foreign writes, epochs by boot id, pragmas.

`tests/storage_contract` has the behaviour that every backend must have.
"""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from pylon.storage.ops import OpKey
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.storage import (
    apply,
    code,
    open_engine,
    open_reader,
    row_id,
    rows_of,
    task,
    update,
)


def test_columns_follow_the_json(engine: SqliteEngine, tmp_path: Path) -> None:
    apply(engine, task(1), update("Task", 1, {"done": True, "weight": 1.5}))
    conn = apsw.Connection(str(tmp_path / "a.db"))
    assert conn.execute("SELECT done, weight, title, rank FROM Task").get == (
        1, 1.5, "task 1", None)


def test_a_full_disk_refuses_the_batch_whole_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = open_engine(path)
    apply(engine, task(1, op="keep"))
    conn = engine._conn
    pages = conn.pragma("page_count")
    conn.pragma("max_page_count", pages + 2)
    batch = [task(n, title="x" * 3_000, op=f"o{n}") for n in range(2, 40)]
    replies = apply(engine, *batch, update("Task", 1, {"rank": 9}))
    assert {code(r) for r in replies} == {"STORE_UNAVAILABLE"} and len(replies) == 39
    assert all(r.seq == 0 for r in replies)
    reader = open_reader(path)
    assert engine.head == reader.head_seq() == 1
    assert rows_of(reader, "Task")[row_id(1)]["rank"] is None
    assert len(reader.events_after(0, 99)) == 1
    conn.pragma("max_page_count", 1_000_000)
    again = apply(engine, *batch)
    assert {code(r) for r in again} == {None} and not any(r.replayed for r in again)
    assert [r.seq for r in again] == list(range(2, 40))
    assert conn.pragma("integrity_check") == "ok"


def test_a_locked_database_refuses_the_batch(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.db")
    engine._conn.set_busy_timeout(1)
    other = apsw.Connection(str(tmp_path / "a.db"))
    other.execute("BEGIN IMMEDIATE")
    assert code(apply(engine, task(1))[0]) == "STORE_UNAVAILABLE"
    other.execute("ROLLBACK")
    assert apply(engine, task(1))[0].seq == 1


def test_events_of_somebody_else_do_not_stop_the_writer_for_ever(
    engine: SqliteEngine, reader: SqliteReader, tmp_path: Path
) -> None:
    other = apsw.Connection(str(tmp_path / "a.db"))
    other.execute("INSERT INTO _pylon_change_log VALUES (1, 'Note', 'n', 'delete', '', '', 0)")
    assert code(apply(engine, task(1))[0]) == "STORE_UNAVAILABLE"
    assert reader.is_empty()
    assert apply(engine, task(1))[0].seq == 2


def start(path: Path, boot: str, durability: str = "normal") -> SqliteEngine:
    return open_engine(path, boot_id=boot, durability=durability)


@pytest.mark.parametrize(
    ("clean", "durability", "boot", "jumps"),
    [
        (True, "normal", "two", False),
        (False, "normal", "one", False),
        (False, "normal", "two", True),
        (False, "normal", "", True),
        (False, "full", "two", False),
    ],
)
def test_only_power_loss_opens_an_epoch(
    tmp_path: Path, clean: bool, durability: str, boot: str, jumps: bool
) -> None:
    path = tmp_path / "a.db"
    engine = start(path, "one", durability)
    apply(engine, task(1))
    if clean:
        engine.maintenance.end_run()
    engine.close()
    engine = start(path, boot)
    reader = open_reader(path)
    if not jumps:
        assert engine.head == 1 and reader.void_ranges() == []
        return
    assert engine.head > 10**9 and reader.void_ranges() == [(1, engine.head)]
    assert reader.head_seq() == engine.head
    (reply,) = apply(engine, task(2))
    assert reply.seq == engine.head
    assert [e.seq for e in reader.events_after(1, 9)] == [reply.seq]


def test_a_write_after_the_mark_makes_the_run_unclean_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = start(path, "one")
    engine.maintenance.end_run()
    apply(engine, task(1))
    engine.close()
    assert start(path, "two").head > 10**9


def test_the_mark_writes_the_counter(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.db")
    apply(engine, task(1), task(2))
    engine.maintenance.end_run()
    conn = apsw.Connection(str(tmp_path / "a.db"))
    assert conn.execute("SELECT id, value FROM _pylon_change_seq").get == (1, 2)


def test_pragmas(tmp_path: Path) -> None:
    full = open_engine(tmp_path / "a.db", durability="full")._conn
    assert full.pragma("synchronous") == 2 and full.pragma("journal_mode") == "wal"
    assert full.pragma("wal_autocheckpoint") == 0 and full.pragma("foreign_keys") == 1
    assert open_engine(tmp_path / "b.db")._conn.pragma("synchronous") == 1


def test_a_database_of_before_digests_gets_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    open_engine(path).close()
    conn = apsw.Connection(str(path))
    conn.execute("ALTER TABLE _pylon_op_ids DROP COLUMN digest")
    conn.execute("INSERT INTO _pylon_op_ids VALUES ('ada', 'old', 1, 'r', 0)")
    conn.close()
    engine = open_engine(path)
    again = apply(engine, replace(task(1), op=OpKey("ada", "old")))[0]
    assert (again.replayed, again.row_id) == (True, "r")
    assert apply(engine, replace(task(1), op=OpKey("ada", "new", "d")))[0].count == 1
