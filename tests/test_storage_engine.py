"""The write engine: replies, policies, seqs, epochs, upkeep, and batches that survive anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import orjson
import pytest
from msgspec.structs import replace

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.clock import ManualClock
from pylon.storage.ops import (
    DropSession,
    InsertRow,
    OpKey,
    PutSession,
    ResetRows,
    Transact,
    WriteReply,
    WriteRequest,
)
from pylon.storage.records import LogRetention
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from tests.support.storage import (
    ADA,
    BOB,
    apply,
    code,
    delete,
    insert,
    open_engine,
    open_reader,
    row_id,
    rows_of,
    task,
    update,
)

Store = tuple[SqliteEngine, SqliteReader]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    engine = open_engine(tmp_path / "a.db")
    return engine, open_reader(tmp_path / "a.db")


def test_a_write_is_a_row_and_an_event(store: Store) -> None:
    engine, reader = store
    assert engine.head == 0 and reader.is_empty() and reader.oldest_seq() == 1
    request = task(1, rank=2)
    first = engine.apply([WriteRequest(9, request)])
    assert (first.replies[0].id, first.replies[0].seq, first.replies[0].count) == (9, 1, 1)
    assert first.batch is not None and first.batch.prev_seq == 0
    assert reader.get("Task", row_id(1)) == request.row_json
    second = engine.apply([WriteRequest(10, update("Task", 1, {"rank": 3, "done": True}))])
    assert second.batch is not None and second.batch.prev_seq == 1
    third = engine.apply([WriteRequest(11, delete("Task", 1))])
    assert third.batch is not None and third.batch.prev_seq == 2
    (changed,), (gone,) = second.batch.events, third.batch.events
    after = {**orjson.loads(request.row_json), "rank": 3, "done": True}
    assert (changed.seq, changed.kind, changed.prev_data) == (2, "update", request.row_json)
    assert orjson.loads(changed.data or b"") == after
    assert (gone.seq, gone.kind, gone.data, gone.prev_data) == (3, "delete", None, changed.data)
    assert reader.get("Task", row_id(1)) is None and reader.is_empty()
    assert reader.events_after(0, 10) == [*first.batch.events, changed, gone]
    assert [e.seq for e in reader.newest_events(2)] == [2, 3]
    assert engine.head == reader.head_seq() == 3


def test_columns_follow_the_json(store: Store, tmp_path: Path) -> None:
    engine, _ = store
    apply(engine, task(1), update("Task", 1, {"done": True, "weight": 1.5}))
    conn = apsw.Connection(str(tmp_path / "a.db"))
    assert conn.execute("SELECT done, weight, title, rank FROM Task").get == (
        1, 1.5, "task 1", None)


def test_a_failing_request_fails_alone(store: Store) -> None:
    engine, reader = store
    replies = apply(
        engine,
        task(1, slug="a", rank=1),
        task(2, slug="a"),
        task(3, rank=1),
        task(1),
        task(1, client_id=True),
        update("Task", 9, {"rank": 1}),
        delete("Task", 9),
        update("Task", 1, {"rank": 5}),
        insert("Note", 4, {}),
        InsertRow("Nope", row_id(5), [], b"{}"),
    )
    assert [code(r) for r in replies] == [
        None, "UNIQUE_VIOLATION", "UNIQUE_VIOLATION", "UNIQUE_VIOLATION",
        "OPTIMISTIC_ID_CONFLICT", "NOT_FOUND", "NOT_FOUND", None, None, "ENTITY_NOT_FOUND",
    ]  # fmt: skip
    assert replies[1].error and replies[1].error.details == {
        "entity": "Task", "field": "slug", "value": "a"}
    assert replies[2].error and replies[2].error.details == {
        "entity": "Task", "fields": ["ownerId", "rank"], "value": ["ada", 1]}
    assert [e.seq for e in reader.events_after(0, 99)] == [1, 2]  # one for each row
    assert set(rows_of(reader, "Task")) == {row_id(1)}


def test_a_unique_value_can_be_taken_over_within_a_batch(store: Store) -> None:
    engine, _ = store
    replies = apply(engine, task(1, slug="a"), update("Task", 1, {"slug": "b"}),
                    task(2, slug="a"), update("Task", 2, {"slug": "b"}))
    assert [code(r) for r in replies] == [None, None, None, "UNIQUE_VIOLATION"]
    assert replies[3].error and replies[3].error.details["value"] == "b"


def test_who_may_not_read_a_row_learns_nothing_of_it(store: Store) -> None:
    engine, reader = store
    apply(engine, task(1), task(2, done=True))
    hidden = apply(engine, update("Task", 1, {"rank": 1}, BOB), delete("Task", 1, BOB),
                   update("Task", 7, {"rank": 1}, BOB), delete("Task", 7, BOB))
    assert {code(r) for r in hidden} == {"NOT_FOUND"}
    assert hidden[0].error == hidden[2].error and hidden[1].error == hidden[3].error
    assert {r.error.message for r in hidden if r.error} == {"Row not found"}
    denied = apply(engine, update("Task", 2, {"rank": 1}, ADA), delete("Task", 2, ADA),
                   update("Task", 1, {"ownerId": "bob"}, ADA))
    assert {code(r) for r in denied} == {"POLICY_DENIED"}
    allowed = apply(engine, update("Task", 1, {"rank": 4}, ADA),
                    update("Task", 2, {"done": False}, ADMIN), delete("Task", 2, ADA))
    assert {code(r) for r in allowed} == {None}
    assert rows_of(reader, "Task")[row_id(1)]["rank"] == 4


def test_an_operation_is_carried_out_once(store: Store, tmp_path: Path) -> None:
    engine, reader = store
    first, same, other_user = apply(
        engine, task(1, op="x"), task(2, op="x"), insert("Note", 3, {}, op="x", identity="u"))
    assert (same.replayed, same.seq, same.row_id, same.count) == (True, 1, row_id(1), 0)
    assert not other_user.replayed and first.seq == 1
    (again,) = apply(engine, task(4, op="x"))
    assert again.replayed and again.row_id == row_id(1)
    (failed,) = apply(engine, task(1, op="y"))
    assert code(failed) == "UNIQUE_VIOLATION"
    (retried,) = apply(engine, task(5, op="y"))
    assert not retried.replayed and retried.seq == 3
    assert [r.replayed for r in apply(engine, delete("Task", 5, op="z"), delete("Task", 5, op="z"))
            ] == [False, True]
    engine.close()
    assert apply(open_engine(tmp_path / "a.db"), task(6, op="x"))[0].replayed
    assert set(rows_of(reader, "Task")) == {row_id(1)}


class _Exploding:
    """Values that SQLite cannot bind."""


def test_an_unforeseen_failure_undoes_only_its_own_request(store: Store) -> None:
    engine, reader = store
    good = task(1)
    bad: list[Any] = [
        InsertRow("Task", row_id(2), [_Exploding()] * 7, b"{}"),
        InsertRow("Task", row_id(3), [1], b"{}"),
        InsertRow("Note", row_id(4), ["x"], b"\xff"),
        update("Task", 1, {"title": _Exploding()}),
        object(),
    ]
    replies = apply(engine, good, *bad, task(9))
    assert [code(r) for r in replies] == [None, *["INTERNAL"] * len(bad), None]
    assert set(rows_of(reader, "Task")) == {row_id(1), row_id(9)}
    assert [e.seq for e in reader.events_after(0, 9)] == [1, 2] and engine.head == 2


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
    store: Store, tmp_path: Path
) -> None:
    engine, reader = store
    other = apsw.Connection(str(tmp_path / "a.db"))
    other.execute("INSERT INTO _pylon_change_log VALUES (1, 'Note', 'n', 'delete', '', '', 0)")
    assert code(apply(engine, task(1))[0]) == "STORE_UNAVAILABLE"
    assert reader.is_empty()
    assert apply(engine, task(1))[0].seq == 2


def test_sessions(store: Store) -> None:
    engine, reader = store
    put = PutSession("hash", "ada", True, 10, 20, "phone", "acme")
    result = engine.apply([WriteRequest(1, put)])
    assert result.batch is None and result.replies[0].count == 1
    found = reader.session("hash")
    assert found is not None
    assert (found.user_id, found.is_guest, found.expires_at_s, found.tenant_id) == (
        "ada", True, 20, "acme")
    assert reader.session("other") is None
    assert [r.count for r in apply(engine, DropSession("hash"), DropSession("hash"))] == [1, 0]
    assert reader.session("hash") is None


def test_retention_goes_in_steps(tmp_path: Path) -> None:
    clock = ManualClock()
    engine = open_engine(tmp_path / "a.db", clock)
    reader = open_reader(tmp_path / "a.db")
    start_s = clock.wall_ns() // 10**9
    apply(engine, *[task(n) for n in range(1, 21)])
    clock.advance(100)
    apply(engine, *[task(n) for n in range(21, 31)])

    def prune(keep: int, older_than_s: int, limit: int) -> int:
        return engine.maintenance.prune_log(LogRetention(keep, older_than_s, limit))

    assert prune(25, start_s + 50, 3) == 3
    assert reader.oldest_seq() == 4
    assert [prune(25, start_s + 50, 3) for _ in range(2)] == [2, 0]
    assert reader.oldest_seq() == 6


def test_expired_sessions_are_dropped_in_steps_and_others_stay(tmp_path: Path) -> None:
    clock = ManualClock()
    engine = open_engine(tmp_path / "a.db", clock)
    reader = open_reader(tmp_path / "a.db")
    now_s = clock.wall_ns() // 10**9
    apply(engine, *[PutSession(f"old{n}", "a", True, 0, now_s - n, "") for n in range(5)],
          PutSession("ever", "a", True, 0, 0, ""),
          PutSession("later", "a", False, 0, now_s + 1, ""))
    assert [engine.maintenance.prune_sessions(2, 0) for _ in range(4)] == [2, 2, 1, 0]
    assert reader.session("old0") is None
    assert reader.session("ever") is not None and reader.session("later") is not None


def test_retention_keeps_the_young_and_the_newest(tmp_path: Path) -> None:
    clock = ManualClock()
    engine = open_engine(tmp_path / "a.db", clock)
    reader = open_reader(tmp_path / "a.db")
    start_s = clock.wall_ns() // 10**9
    apply(engine, *[task(n) for n in range(1, 21)])
    clock.advance(100)
    apply(engine, *[task(n) for n in range(21, 31)])

    def prune(keep: int, older_than_s: int) -> int:
        return engine.maintenance.prune_log(LogRetention(keep, older_than_s, 1_000))

    assert prune(1_000, start_s + 50) == 0
    assert prune(5, start_s + 50) == 20
    assert prune(5, start_s + 50) == 0
    assert prune(0, start_s + 1_000) == 9
    assert reader.oldest_seq() == reader.head_seq() == 30
    engine.close()
    assert apply(open_engine(tmp_path / "a.db", clock), task(99))[0].seq == 31


def test_old_op_ids_go_when_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OP_IDS_KEPT", 3)
    clock = ManualClock()
    engine = open_engine(tmp_path / "a.db", clock)
    apply(engine, *[task(n, op=f"o{n}") for n in range(1, 6)])
    clock.advance(10)
    later_s = clock.wall_ns() // 10**9
    assert engine.maintenance.prune_log(LogRetention(1_000, later_s - 10, 100)) == 0
    assert engine.maintenance.prune_log(LogRetention(1_000, later_s, 100)) == 2
    replies = apply(engine, delete("Task", 1, op="o1"))
    assert not replies[0].replayed
    assert [r.replayed for r in apply(engine, task(8, op="o2"), task(9, op="o3"))] == [False, True]


def test_the_reset_deletes_every_row_with_its_event(store: Store) -> None:
    engine, reader = store
    apply(engine, task(1), task(2), insert("Note", 3, {}))
    (reply,) = apply(engine, ResetRows())
    assert (reply.count, reply.seq) == (3, 6) and reader.is_empty()
    events = reader.events_after(3, 10)
    assert [(e.kind, e.entity) for e in events] == [
        ("delete", "Task"), ("delete", "Task"), ("delete", "Note")]
    assert apply(engine, ResetRows())[0].count == 0


# --- Starts and epochs ---------------------------------------------------------------------


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


def test_a_transaction_is_judged_step_by_step_and_leaves_nothing(store: Store) -> None:
    engine, reader = store
    apply(engine, task(1), task(2, done=True))
    denied, done, after = apply(
        engine,
        Transact([update("Task", 1, {"rank": 1}, ADA), insert("Note", 3, {}),
                  delete("Task", 2, ADA)]),
        Transact([task(4, op="x"), update("Task", 4, {"rank": 2}, ADA)]),
        task(5),
    )
    assert [code(r) for r in denied.results or []] == [None, None, "POLICY_DENIED"]
    assert (denied.seq, denied.count, denied.error) == (0, 0, None)
    assert [r.seq for r in done.results or []] == [3, 3] and (done.seq, done.count) == (3, 2)
    assert after.seq == 4 and engine.head == 4
    rows = rows_of(reader, "Task")
    assert rows[row_id(1)]["rank"] is None and rows[row_id(4)]["rank"] == 2
    assert rows_of(reader, "Note") == {}
    assert [e.row_id for e in reader.events_after(2, 9)] == [row_id(4), row_id(5)]
    assert reader.get_version("Task", row_id(4)) == (reader.get("Task", row_id(4)), 3)


def test_an_unforeseen_failure_in_a_transaction_undoes_only_that(store: Store) -> None:
    engine, reader = store
    bad = Transact([task(2), InsertRow("Task", row_id(3), [1], b"{}")])
    replies = apply(engine, task(1), bad, Transact([task(4)]))
    assert [code(r) for r in replies] == [None, "INTERNAL", None]
    assert set(rows_of(reader, "Task")) == {row_id(1), row_id(4)} and engine.head == 2


def test_a_key_with_a_digest_is_for_one_request(store: Store) -> None:
    engine, _ = store

    def put(number: int, digest: str | None) -> WriteReply:
        op = replace(task(number), op=OpKey("ada", "k", digest))
        return apply(engine, op)[0]

    assert put(1, "d").seq == 1
    assert put(2, "d").replayed and put(2, None).replayed
    assert code(put(2, "e")) == "IDEMPOTENCY_KEY_REUSED" and engine.head == 1


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
