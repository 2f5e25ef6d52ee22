"""SQLite files that the published server has written, before or between runs of this one."""

from __future__ import annotations

from pathlib import Path

import apsw

from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from tests.support.storage import (
    apply,
    insert,
    open_engine,
    open_reader,
    row_id,
    rows_of,
    task,
    versions,
)


def connect(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path))


def make_foreign(path: Path) -> apsw.Connection:
    """A database as another server leaves it: rowid tables, booleans as numbers, no JSON."""
    conn = connect(path)
    conn.execute("""
        CREATE TABLE "Task" (id TEXT PRIMARY KEY NOT NULL, "title" TEXT NOT NULL,
            "done" INTEGER NOT NULL, "rank" INTEGER, "weight" REAL, "dueAt" TEXT,
            "ownerId" TEXT, "slug" TEXT UNIQUE, "gone" TEXT);
        CREATE UNIQUE INDEX "Task_by_owner_rank" ON "Task" ("ownerId", "rank");
        INSERT INTO "Task" VALUES ('t1', 'say "hi"', 1, 7, 0.1, NULL, 'ada', NULL, 'x'),
                                  ('t2', 'b', 0, NULL, 3, '2026-01-01', NULL, 's', NULL);
    """)
    return conn


def test_a_database_of_another_server_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    make_foreign(path).close()
    engine = open_engine(path)
    reader = open_reader(path)
    assert reader.get("Task", "t1") == (
        b'{"done":true,"dueAt":null,"id":"t1","ownerId":"ada","rank":7,"slug":null,'
        b'"title":"say \\"hi\\"","weight":0.1}')
    assert rows_of(reader, "Task")["t2"]["done"] is False
    # Rows without events: the head is above 0 and every earlier cursor is void.
    assert engine.head > 10**9
    assert reader.void_ranges() == [(0, engine.head)]
    assert reader.head_seq() == engine.head and reader.oldest_seq() == engine.head + 1
    assert apply(engine, task(5))[0].seq == engine.head
    engine.close()
    assert open_engine(path).head == reader.head_seq()
    assert len(reader.void_ranges()) == 1


def test_a_foreign_change_log_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    conn = make_foreign(path)
    conn.execute("""
        CREATE TABLE _pylon_change_log (seq INTEGER PRIMARY KEY, entity TEXT, row_id TEXT,
            kind TEXT, data TEXT, prev_data TEXT, timestamp TEXT);
        CREATE TABLE _pylon_change_seq (id INTEGER PRIMARY KEY, value INTEGER);
        INSERT INTO _pylon_change_log VALUES
            (1001, 'Task', 't1', 'insert', '{"id":"t1"}', NULL, '1714700000Z'),
            (1002, 'Task', 't0', 'delete', '{"id":"t0"}', NULL, '2024-05-03T01:33:20Z'),
            (1003, 'Task', 't9', 'delete', NULL, NULL, 'soon');
        INSERT INTO _pylon_change_seq VALUES (1, 2000);
    """)
    conn.close()
    engine = open_engine(path)
    reader = open_reader(path)
    assert engine.head == 2000 and not reader.void_ranges()
    first, second, third = reader.events_after(0, 10)
    assert (first.data, first.timestamp_s) == (b'{"id":"t1"}', 1714700000)
    assert (second.data, second.prev_data, second.timestamp_s) == (
        None, b'{"id":"t0"}', 1714700000)
    assert (third.data, third.prev_data, third.timestamp_s) == (None, None, 0)
    assert apply(engine, task(5))[0].seq == 2001


def test_another_servers_visit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    engine = open_engine(path)
    apply(engine, insert("Note", 1, {"text": "old"}))
    head = engine.head
    engine.close()
    conn = connect(path)
    conn.execute("""
        UPDATE Note SET text = 'new'; INSERT INTO Note (id, text) VALUES ('n2', 'more');
        INSERT INTO _pylon_schema_history (manifest_version, app_version, applied_at,
            operation_count, baseline, plan_json) VALUES (1, '1', 'now', 0, 'dev', '[]');
    """)
    conn.close()
    engine = open_engine(path)
    reader = open_reader(path)
    texts = {k: r["text"] for k, r in rows_of(reader, "Note").items()}
    assert texts == {row_id(1): "new", "n2": "more"}
    assert engine.head > head and reader.void_ranges() == [(0, engine.head)]
    assert b'"more"' in reader.rows("Note", Query(TRUE, limit=10))[1]
    assert versions(path, "Note") == {row_id(1): engine.head, "n2": engine.head}
