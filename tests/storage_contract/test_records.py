"""Records of the auth tables: reads, and the operations alone and as steps of a transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from pylon.storage.auth_ops import (
    CheckRecords,
    Condition,
    DropRecords,
    EndSessions,
    PutRecord,
    RateTake,
    SetRecords,
    TakeRates,
)
from pylon.storage.auth_tables import TABLES, AuthTable, Value
from pylon.storage.ops import PutSession, Transact, TransactOp
from tests.storage_contract.backends import StoreStage
from tests.support.storage import row_id, task
from tests.support.stores import current, run_sql

pytestmark = pytest.mark.stores

SAMPLES: dict[str, Value] = {"text": "Ä\n'\"\\", "int": -(2**62), "bytes": b"\0\xff", "bool": 1}


def token(name: str, **values: Any) -> PutRecord:
    given = {"user_id": "u1", "purpose": "reset", "attempts": 0, "created_at": 5, "expires_at": 9}
    return PutRecord("tokens", {"hash": name, **given, **values})


def is_(column: str, value: Value) -> Condition:
    return Condition(column, "=", value)


def hashes(stage: StoreStage, *where: Condition, **options: Any) -> list[Value]:
    return [record["hash"] for record in stage.reader.records("tokens", where, **options)]


def outcome(stage: StoreStage, *steps: TransactOp) -> list[str | None]:
    """Commit a transaction. Return the error code of each step that was tried."""
    (reply,) = stage.apply(Transact(steps))
    assert reply.error is None and reply.results is not None
    return [step.error.code if step.error else None for step in reply.results]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_of_every_table_keeps_its_values(stage: StoreStage, table: AuthTable) -> None:
    if table.has_own_writes:
        stage.apply(PutSession("s1", "u1", True, 1, 2, "curl", "acme"))
        full = stage.reader.records(table.name, [])
        assert full[0]["is_guest"] == 1 and full[0]["family"] == "s1"
        values = {c.name: SAMPLES[c.kind] for c in table.columns if c.optional}
        assert stage.codes(SetRecords(table.name, [], values)) == [None]
        assert stage.reader.records(table.name, []) == [{**full[0], **values}]
        return
    values = {column.name: SAMPLES[column.kind] for column in table.columns}
    assert stage.codes(PutRecord(table.name, values)) == [None]
    assert stage.reader.records(table.name, []) == [values]
    bare = {
        column.name: None if column.optional else SAMPLES[column.kind] for column in table.columns
    }
    given = {name: value for name, value in bare.items() if value is not None}
    assert stage.codes(PutRecord(table.name, given, replace=True)) == [None]
    assert stage.reader.records(table.name, []) == [bare]


def test_conditions_and_order_select_records(stage: StoreStage) -> None:
    stage.apply(
        token("a", created_at=3, used_at=7), token("b", created_at=1), token("c", created_at=2),
        token("d", created_at=2, user_id=None),
    )
    assert hashes(stage) == ["a", "b", "c", "d"], "by key"
    assert hashes(stage, order=["-created_at"]) == ["a", "c", "d", "b"]
    assert hashes(stage, order=["created_at", "-hash"], limit=3) == ["b", "d", "c"]
    assert hashes(stage, order=["used_at"])[-1] == "a", "nulls are the smallest"
    assert hashes(stage, order=["-used_at"])[0] == "a"
    assert hashes(stage, Condition("created_at", ">=", 2), Condition("created_at", "<", 3)) == [
        "c", "d",
    ]
    assert hashes(stage, Condition("used_at", "null"), Condition("user_id", "not null")) == [
        "b", "c",
    ]
    assert hashes(stage, Condition("used_at", "!=", 8)) == ["a"], "a null is unlike nothing"
    assert stage.reader.count_records("tokens", [is_("created_at", 2)]) == 2


def test_a_taken_key_is_refused_or_replaced(stage: StoreStage) -> None:
    assert stage.codes(token("a"), token("a", attempts=3)) == [None, "RECORD_EXISTS"]
    assert stage.reader.records("tokens", [])[0]["attempts"] == 0
    again = PutRecord("tokens", token("a", attempts=3, user_id=None).values, replace=True)
    assert stage.codes(again) == [None]
    assert stage.reader.records("tokens", [])[0]["attempts"] == 3


def test_a_unique_value_of_another_record_is_refused_also_by_a_replacement(
    stage: StoreStage,
) -> None:
    def device(hash_: str, id_: str, **options: Any) -> PutRecord:
        values = {"hash": hash_, "id": id_, "user_id": "u", "label": "x", "created_at": 1,
                  "expires_at": 2}
        return PutRecord("trusted_devices", values, **options)

    assert stage.codes(
        device("h1", "1"), device("h2", "1"), device("h2", "2"), device("h2", "1", replace=True),
        device("h2", "2", replace=True), device("h2", "3", replace=True),
    ) == [None, "RECORD_EXISTS", None, "RECORD_EXISTS", None, None]
    assert [r["id"] for r in stage.reader.records("trusted_devices", [])] == ["1", "3"]


def test_a_token_is_used_up_once_in_one_batch_and_in_two(stage: StoreStage) -> None:
    use = SetRecords(
        "tokens", [is_("hash", "a"), Condition("used_at", "null"), Condition("expires_at", ">", 6)],
        {"used_at": 6}, expected=1,
    )
    assert stage.codes(use) == ["RECORD_CONFLICT"], "there is none"
    stage.apply(token("a"))
    assert stage.codes(use, use) == [None, "RECORD_CONFLICT"]
    assert stage.codes(use) == ["RECORD_CONFLICT"]
    assert stage.reader.records("tokens", [])[0]["used_at"] == 6


def test_another_number_than_expected_changes_nothing(stage: StoreStage) -> None:
    stage.apply(token("a"), token("b"))
    mine = [is_("user_id", "u1")]
    assert stage.codes(
        SetRecords("tokens", mine, {"used_at": 1}, expected=1), DropRecords("tokens", mine, 3),
        CheckRecords("tokens", mine, 1), CheckRecords("tokens", mine, 2),
    ) == ["RECORD_CONFLICT", "RECORD_CONFLICT", "RECORD_CONFLICT", None]
    assert hashes(stage, Condition("used_at", "null")) == ["a", "b"]
    set_, dropped = stage.apply(
        SetRecords("tokens", mine, {"used_at": 1}), DropRecords("tokens", mine, 2)
    )
    assert (set_.count, dropped.count) == (2, 2)
    assert hashes(stage) == []


def test_numbers_are_added_to_and_a_null_counts_as_zero(stage: StoreStage) -> None:
    stage.apply(token("a", attempts=2))
    stage.apply(
        SetRecords("tokens", [is_("hash", "a")], {}, 1, {"attempts": 3, "used_at": 4}),
        SetRecords("tokens", [is_("hash", "a")], {"data": "x"}, 1, {"attempts": -1}),
    )
    found = stage.reader.records("tokens", [])[0]
    assert (found["attempts"], found["used_at"], found["data"]) == (4, 4, "x")


def test_a_transaction_with_records_rows_and_sessions_is_done_whole_or_not_at_all(
    stage: StoreStage,
) -> None:
    stage.apply(token("a"))
    steps: list[TransactOp] = [
        SetRecords("tokens", [is_("hash", "a"), Condition("used_at", "null")], {"used_at": 6}, 1),
        task(1), PutSession("s1", "u1", False, 1, 0, "curl"), token("b"),
        PutRecord("identities", {"kind": "email", "subject": "a@b.c", "user_id": "u1",
                                 "created_at": 1}),
    ]
    head = stage.reader.head_seq()
    refused = outcome(stage, *steps, CheckRecords("tokens", [is_("hash", "b")], 0))
    assert refused == [*[None] * len(steps), "RECORD_CONFLICT"]
    assert hashes(stage, Condition("used_at", "null")) == ["a"]
    assert stage.row("Task", row_id(1)) is None and stage.reader.session("s1") is None
    assert stage.reader.count_records("identities", []) == 0
    assert stage.reader.head_seq() == head
    assert outcome(stage, *steps) == [None] * len(steps)
    assert hashes(stage) == ["a", "b"] and stage.reader.session("s1") is not None
    assert stage.row("Task", row_id(1)) is not None
    assert outcome(stage, *steps) == ["RECORD_CONFLICT"]


def test_a_refused_transaction_leaves_its_neighbours_of_the_batch(stage: StoreStage) -> None:
    results = stage.apply(
        token("a"), Transact([token("b"), token("a")]), Transact([token("c"), task(1)]),
        Transact([DropRecords("tokens", [], 2), token("d"), token("d")]), token("e"),
        task(2),
    )
    assert all(reply.error is None for reply in results)
    assert hashes(stage) == ["a", "c", "e"]
    assert [row["id"] for row in stage.rows("Task")] == [row_id(1), row_id(2)]


def test_sessions_end_by_condition_but_those_to_keep(stage: StoreStage) -> None:
    stage.apply(*(
        PutSession(f"s{n}", "u2" if n == 5 else "u1", n == 3, n, 0, "curl") for n in range(1, 7)
    ))
    assert outcome(
        stage, EndSessions([is_("user_id", "u1")]), CheckRecords("sessions", [], 9)
    ) == [None, "RECORD_CONFLICT"]
    assert stage.reader.count_records("sessions", []) == 6, "undone"
    (oldest,) = stage.apply(EndSessions([is_("user_id", "u1")], limit=2))
    assert (oldest.count, sorted(orjson.loads(oldest.row_id))) == (2, ["s1", "s2"])
    ended, again = stage.apply(
        EndSessions([is_("user_id", "u1"), Condition("created_at", "<", 6)], keep=["s4"]),
        EndSessions([is_("session_id", "s3")]),
    )
    assert orjson.loads(ended.row_id) == ["s3"] and again.count == 0
    assert [s["session_id"] for s in stage.reader.records("sessions", [])] == ["s4", "s5", "s6"]
    assert stage.writer.maintenance.prune_sessions(9, 100) == 0, "no unused guest is left"


def test_ending_or_changing_sessions_changes_the_version_of_the_data(stage: StoreStage) -> None:
    stage.apply(PutSession("s1", "u1", False, 1, 0, "curl"))
    versions = [stage.reader.data_version()]
    for op in (SetRecords("sessions", [], {"tenant_id": "x"}), EndSessions([])):
        stage.apply(op)
        versions.append(stage.reader.data_version())
    assert len(set(versions)) == 3


def take(key: str, *, limit: int = 3, now_s: float = 0.0) -> TakeRates:
    """Take of `limit` in 60 s."""
    second = 1_000_000_000
    interval_ns = 60 * second // limit
    now_ns = int((1_000_000 + now_s) * second)
    return TakeRates([RateTake(key, interval_ns, interval_ns * limit, f"rate {key}")], now_ns)


def test_rates_are_exact_and_refill_by_time(stage: StoreStage) -> None:
    assert stage.codes(*[take("a")] * 5) == [None, None, None, "RATE_LIMITED", "RATE_LIMITED"]
    (refused,) = stage.apply(take("a", now_s=5))
    assert refused.error is not None
    assert refused.error.details == {"retry_after_secs": 15, "rate": "rate a"}
    assert stage.codes(take("a", now_s=20), take("a", now_s=20)) == [None, "RATE_LIMITED"]
    assert stage.codes(take("b", now_s=20)) == [None], "a bucket of its own"
    assert stage.codes(take("a", now_s=-5_000)) == ["RATE_LIMITED"], "the clock was set back"
    (refused,) = stage.apply(take("a", now_s=-5_000))
    assert refused.error is not None and refused.error.details["retry_after_secs"] == 20


def test_all_rates_are_taken_or_none(stage: StoreStage) -> None:
    a, b = take("a", limit=1).takes[0], take("b", limit=2).takes[0]
    now_ns = take("a").now_ns
    assert stage.codes(
        TakeRates([a, b], now_ns), TakeRates([b, a], now_ns), TakeRates([b], now_ns),
        TakeRates([b], now_ns),
    ) == [None, "RATE_LIMITED", None, "RATE_LIMITED"]
    twice = take("c", limit=3).takes[0]
    assert stage.codes(
        TakeRates([twice] * 4, now_ns), TakeRates([twice] * 3, now_ns), TakeRates([twice], now_ns)
    ) == ["RATE_LIMITED", None, "RATE_LIMITED"]


def test_rates_of_an_undone_transaction_are_not_taken(stage: StoreStage) -> None:
    assert outcome(stage, take("a", limit=1), CheckRecords("tokens", [], 1)) == [
        None, "RECORD_CONFLICT",
    ]
    assert outcome(stage, take("a", limit=1), token("t")) == [None, None]
    assert outcome(stage, token("u"), take("a", limit=1)) == [None, "RATE_LIMITED"]
    assert hashes(stage) == ["t"]


def test_expired_records_are_pruned_in_steps(stage: StoreStage) -> None:
    stage.apply(
        *(token(f"t{n}", expires_at=n) for n in (0, 7, 8, 9, 20)),
        PutRecord("audit", {"id": "1", "created_at": 5, "action": "sign_in", "success": 1}),
        PutRecord("limits", {"key": "old", "tat": 9_000_000_000}),
        PutRecord("limits", {"key": "new", "tat": 11_000_000_000}),
    )
    maintenance = stage.writer.maintenance

    def prune(limit: int, now_s: int, kept_s: dict[str, int]) -> dict[str, int]:
        dropped = maintenance.prune_records(limit, now_s, kept_s)
        return {table: count for table, count in dropped.items() if count}

    assert prune(2, 10, {"audit": 5}) == {"tokens": 2, "limits": 1}
    assert prune(2, 10, {"audit": 5}) == {"tokens": 1}
    assert prune(2, 10, {"audit": 5}) == {}
    assert hashes(stage) == ["t0", "t20"], "0 is never"
    assert stage.reader.count_records("limits", []) == stage.reader.count_records("audit", []) == 1
    assert prune(2, 11, {"audit": 5}) == {"audit": 1}


@pytest.mark.parametrize("op", [
    PutRecord("nothing", {}), PutRecord("tokens", {"hash": "x"}), PutRecord("sessions", {}),
    PutRecord("tokens", {**token("x").values, "nothing": 1}), token("x", attempts="1"),
    SetRecords("tokens", [], {"hash": "x"}), SetRecords("tokens", [], {}),
    SetRecords("tokens", [Condition("nothing", "=", 1)], {"data": "x"}),
    SetRecords("tokens", [is_("used_at", None)], {"data": "x"}), DropRecords("sessions", []),
    SetRecords("tokens", [], {"data": "x"}, expected=0),
], ids=repr)
def test_a_defect_of_the_caller_fails_alone(stage: StoreStage, op: Any) -> None:
    assert stage.codes(token("a"), op, token("b")) == [None, "INTERNAL", None]
    assert hashes(stage) == ["a", "b"]


def test_values_that_no_store_takes_are_refused(stage: StoreStage) -> None:
    assert stage.codes(token("a", data="a\0b"), token("b", used_at=2**63), token("c")) == [
        "INVALID_VALUE", "INVALID_VALUE", None,
    ]


def test_records_stay_when_the_store_is_opened_again(stage: StoreStage) -> None:
    stage.apply(token("a"), PutSession("s1", "u1", False, 1, 0, "curl"))
    stage.restart()
    assert hashes(stage) == ["a"] and stage.reader.session("s1") is not None
    assert stage.codes(token("a"), token("b")) == ["RECORD_EXISTS", None]


def test_a_start_adds_tables_columns_and_indexes_that_an_earlier_version_lacks(
    stage: StoreStage, tmp_path: Path
) -> None:
    stage.apply(token("a"), PutSession("s1", "u1", False, 1, 0, "curl"))
    stage.close()
    for statement in (
        "DROP TABLE _pylon_auth_audit", "DROP INDEX _pylon_auth_sessions_by_family",
        "ALTER TABLE _pylon_auth_sessions DROP COLUMN family",
        "DROP INDEX _pylon_auth_tokens_by_user_id_purpose",
        "ALTER TABLE _pylon_auth_tokens DROP COLUMN data",
    ):
        run_sql(tmp_path / "app.db", statement)
    stage._open(stage.manifest)
    assert stage.codes(
        SetRecords("tokens", [is_("hash", "a")], {"data": "x"}, 1),
        SetRecords("sessions", [is_("session_id", "s1")], {"family": "f"}, 1),
        PutRecord("audit", {"id": "1", "created_at": 5, "action": "sign_in", "success": 1}),
    ) == [None] * 3
    names = "SELECT name FROM sqlite_schema" if current().name == "sqlite" else (
        "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()"
    )
    found = {name for (name,) in run_sql(tmp_path / "app.db", names)}
    assert {f"_pylon_auth_{name}" for name in (
        "sessions_by_family", "tokens_by_user_id_purpose", "audit_by_user_id_created_at",
        "trusted_devices_by_id",
    )} <= found
