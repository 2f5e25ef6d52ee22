"""Writes: replies, refusals, uniqueness, If-Match, keys, transactions; each batch is one commit."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from pylon import limits
from pylon.auth_context import ADMIN
from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    OpKey,
    ResetRows,
    Transact,
    UpdateRow,
    WriteReply,
    WriteRequest,
)
from pylon.storage.records import LogRetention
from tests.storage_contract.backends import StoreStage
from tests.support.storage import ADA, BOB, delete, insert, row_id, task, update

pytestmark = pytest.mark.stores


def test_batch_is_one_commit_with_one_event_for_each_row(stage: StoreStage) -> None:
    result = stage.commit(
        task(1), update("Task", 1, {"rank": 1}), task(2), update("Task", 2, {"rank": 2}),
        task(3), delete("Task", 3),
    )
    assert not any(reply.error for reply in result.replies)
    assert result.batch is not None and result.batch.prev_seq == 0
    events = [event for event in result.batch.events if event.row_id != row_id(3)]
    assert [(e.kind, e.row_id) for e in events] == [("insert", row_id(1)), ("insert", row_id(2))]
    assert stage.events() == result.batch.events
    assert [row["rank"] for row in stage.rows("Task")] == [1, 2]


def test_failing_request_fails_alone(stage: StoreStage) -> None:
    codes = stage.codes(
        task(1, slug="a", rank=1),
        task(2, slug="a"),
        task(3, rank=1),
        task(1),
        task(1, client_id=True),
        update("Task", 9, {"rank": 1}),
        delete("Task", 9),
        update("Task", 1, {"rank": 5}),
        InsertRow("Nope", row_id(5), [], b"{}"),
    )
    assert codes == [
        None, "UNIQUE_VIOLATION", "UNIQUE_VIOLATION", "UNIQUE_VIOLATION",
        "OPTIMISTIC_ID_CONFLICT", "NOT_FOUND", "NOT_FOUND", None, "ENTITY_NOT_FOUND",
    ]
    assert [row["id"] for row in stage.rows("Task")] == [row_id(1)]
    assert [event.row_id for event in stage.events()] == [row_id(1)]


def test_reply_names_the_request_the_seq_and_the_count_of_rows(stage: StoreStage) -> None:
    result = stage.writer.apply([WriteRequest(9, task(1)), WriteRequest(7, task(2))])
    assert [(r.id, r.seq, r.count) for r in result.replies] == [(9, 1, 1), (7, 2, 1)]
    assert stage.writer.head == 2


class Unbindable:
    """A value that no store can take."""


def test_unforeseen_failure_undoes_its_own_request_only(stage: StoreStage) -> None:
    value: Any = Unbindable()
    no_operation: Any = object()
    codes = stage.codes(
        task(1),
        InsertRow("Task", row_id(2), [value] * 7, b"{}"),
        InsertRow("Task", row_id(3), [1], b"{}"),
        InsertRow("Note", row_id(4), ["x"], b"\xff"),
        update("Task", 1, {"title": value}),
        no_operation,
        task(9),
    )
    assert codes == [None, *["INTERNAL"] * 5, None]
    assert [row["id"] for row in stage.rows("Task")] == [row_id(1), row_id(9)]
    assert [event.seq for event in stage.events()] == [1, 2] and stage.writer.head == 2


def test_unforeseen_failure_in_a_transaction_undoes_that_transaction(stage: StoreStage) -> None:
    broken = Transact([task(2), InsertRow("Task", row_id(3), [1], b"{}")])
    assert stage.codes(task(1), broken, Transact([task(4)])) == [None, "INTERNAL", None]
    assert [row["id"] for row in stage.rows("Task")] == [row_id(1), row_id(4)]
    assert stage.writer.head == 2


def test_unique_violation_names_the_fields_and_the_values(stage: StoreStage) -> None:
    stage.apply(task(1, slug="a", rank=1))
    by_field, by_index = stage.apply(task(2, slug="a"), task(3, rank=1))
    assert by_field.error is not None and by_field.error.details == {
        "entity": "Task", "field": "slug", "value": "a",
    }
    assert by_index.error is not None and by_index.error.details == {
        "entity": "Task", "fields": ["ownerId", "rank"], "value": ["ada", 1],
    }


def test_nulls_are_not_equal_for_uniqueness(stage: StoreStage) -> None:
    assert stage.codes(task(1, slug=None), task(2, slug=None)) == [None, None]


def test_unique_value_can_move_within_a_batch(stage: StoreStage) -> None:
    *moved, taken = stage.apply(
        task(1, slug="a"), update("Task", 1, {"slug": "b"}), task(2, slug="a"),
        update("Task", 2, {"slug": "b"}),
    )
    assert not any(reply.error for reply in moved)
    assert taken.error is not None and taken.error.code == "UNIQUE_VIOLATION"
    assert taken.error.details["value"] == "b"


def test_hidden_row_is_not_found_and_visible_one_denied(stage: StoreStage) -> None:
    stage.apply(task(1), task(2, done=True))
    hidden = stage.apply(
        update("Task", 1, {"rank": 1}, BOB), update("Task", 7, {"rank": 1}, BOB),
        delete("Task", 1, BOB), delete("Task", 7, BOB),
    )
    assert [r.error.code for r in hidden if r.error] == ["NOT_FOUND"] * 4
    assert hidden[0].error == hidden[1].error and hidden[2].error == hidden[3].error
    assert {r.error.message for r in hidden if r.error} == {"Row not found"}
    assert stage.codes(
        update("Task", 2, {"rank": 1}, ADA), delete("Task", 2, ADA),
        update("Task", 1, {"ownerId": "bob"}, ADA),
    ) == ["POLICY_DENIED"] * 3
    assert stage.codes(update("Task", 1, {"rank": 4}, ADA), delete("Task", 1, ADA)) == [None] * 2
    # A batch decides by the rows as they are in it: the administrator's update comes first.
    assert stage.codes(
        update("Task", 2, {"done": False}, ADMIN), delete("Task", 2, ADA)
    ) == [None] * 2


def test_if_match_is_compared_with_the_version_at_commit(stage: StoreStage) -> None:
    (inserted,) = stage.apply(task(1))
    right = UpdateRow("Task", row_id(1), {"rank": 1}, ADMIN, if_match=inserted.seq)
    assert stage.codes(right, right) == [None, "PRECONDITION_FAILED"]
    several = DeleteRow("Task", row_id(1), ADMIN, if_match=(1, 2, 3))
    assert stage.codes(replace(several, if_match=99), several) == ["PRECONDITION_FAILED", None]
    gone = UpdateRow("Task", row_id(1), {"rank": 1}, ADMIN, if_match=2)
    assert stage.codes(gone) in (["PRECONDITION_FAILED"], ["NOT_FOUND"])


def test_operation_with_a_key_is_executed_once(stage: StoreStage) -> None:
    first, again, other = stage.apply(
        task(1, op="x"), task(2, op="x"), insert("Note", 3, {}, op="x", identity="u")
    )
    assert (again.replayed, again.seq, again.row_id, again.count) == (
        True, first.seq, row_id(1), 0,
    )
    assert other.error is None and not other.replayed
    stage.restart()
    (later,) = stage.apply(task(4, op="x"))
    assert later.replayed and [row["id"] for row in stage.rows("Task")] == [row_id(1)]


def test_key_of_a_failed_operation_may_be_used_again(stage: StoreStage) -> None:
    stage.apply(task(1))
    assert stage.codes(task(1, op="y")) == ["UNIQUE_VIOLATION"]
    first, again = stage.apply(task(5, op="y"), task(6, op="y"))
    assert first.error is None and not first.replayed
    assert again.replayed and again.row_id == row_id(5)


def test_deletion_with_a_key_is_executed_once(stage: StoreStage) -> None:
    stage.apply(task(1))
    replies = stage.apply(delete("Task", 1, op="z"), delete("Task", 1, op="z"))
    assert [reply.replayed for reply in replies] == [False, True]


def test_key_of_another_request_is_refused(stage: StoreStage) -> None:
    def put(number: int, digest: str | None) -> WriteReply:
        operation = replace(task(number), op=OpKey("ada", "x", digest))
        return stage.apply(operation)[0]

    assert put(1, "one").seq == 1
    refused = put(2, "two")
    assert refused.error is not None and refused.error.code == "IDEMPOTENCY_KEY_REUSED"
    assert put(2, "one").replayed and put(2, None).replayed
    assert stage.writer.head == 1


def test_oldest_keys_are_forgotten_above_their_limit(
    stage: StoreStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OP_IDS_KEPT", 3)
    stage.apply(*(task(n, op=f"o{n}") for n in range(1, 6)))
    stage.clock.advance(10)
    now_s = stage.clock.wall_ns() // 1_000_000_000
    prune = stage.writer.maintenance.prune_log
    assert prune(LogRetention(1_000, now_s - 10, 100)) == 0, "all of them are too young"
    assert prune(LogRetention(1_000, now_s, 100)) == 2
    (deleted,) = stage.apply(delete("Task", 1, op="o1"))
    assert not deleted.replayed
    replies = stage.apply(task(8, op="o2"), task(9, op="o3"))
    assert [reply.replayed for reply in replies] == [False, True]


def test_transaction_is_whole_or_nothing(stage: StoreStage) -> None:
    stage.apply(task(1, slug="a"))
    failed, done = stage.apply(
        Transact([task(2), update("Task", 1, {"slug": "b"}), task(3, slug="b"), task(4)]),
        Transact([task(5, slug="c"), delete("Task", 1)]),
    )
    assert failed.error is None and failed.results is not None
    assert [r.error.code if r.error else None for r in failed.results] == [
        None, None, "UNIQUE_VIOLATION",
    ]
    assert done.results is not None and not any(r.error for r in done.results)
    assert [row["id"] for row in stage.rows("Task")] == [row_id(5)]
    assert [e.row_id for e in stage.events(1)] == [row_id(5), row_id(1)]


def test_transaction_is_judged_step_by_step(stage: StoreStage) -> None:
    stage.apply(task(1), task(2, done=True))
    denied, done, after = stage.apply(
        Transact([update("Task", 1, {"rank": 1}, ADA), insert("Note", 3, {}),
                  delete("Task", 2, ADA)]),
        Transact([task(4, op="x"), update("Task", 4, {"rank": 2}, ADA)]),
        task(5),
    )
    assert [r.error.code if r.error else None for r in denied.results or []] == [
        None, None, "POLICY_DENIED",
    ]
    assert (denied.seq, denied.count, denied.error) == (0, 0, None)
    assert [r.seq for r in done.results or []] == [3, 3] and (done.seq, done.count) == (3, 2)
    assert after.seq == 4 and stage.writer.head == 4
    ranks = {row["id"]: row["rank"] for row in stage.rows("Task")}
    assert (ranks[row_id(1)], ranks[row_id(4)]) == (None, 2)
    assert stage.rows("Note") == []
    assert [e.row_id for e in stage.events(2)] == [row_id(4), row_id(5)]
    found = stage.reader.get("Task", row_id(4))
    assert stage.reader.get_version("Task", row_id(4)) == (found, 3)


def test_reset_deletes_each_row_with_its_event(stage: StoreStage) -> None:
    stage.apply(task(1), task(2), insert("Note", 3, {"text": "x"}))
    (reply,) = stage.apply(ResetRows())
    assert (reply.error, reply.count, reply.seq) == (None, 3, 6) and stage.reader.is_empty()
    assert sorted((e.kind, e.entity) for e in stage.events(3)) == [
        ("delete", "Note"), ("delete", "Task"), ("delete", "Task"),
    ]
    assert [r.count for r in stage.apply(ResetRows())] == [0]


def test_committed_rows_survive_a_restart(stage: StoreStage) -> None:
    stage.apply(task(1, title="kept"))
    head = stage.writer.head
    stage.restart()
    assert stage.writer.head >= head
    assert [row["title"] for row in stage.rows("Task")] == ["kept"]
    (reply,) = stage.apply(task(2))
    assert reply.seq > head


def test_row_that_breaks_its_id_and_a_unique_value_is_told_of_the_value(stage: StoreStage) -> None:
    assert stage.codes(task(1, slug="a"), task(2, slug="b")) == [None, None]
    assert stage.codes(
        task(1, slug="a", client_id=True), task(1, slug="b", client_id=True),
        task(1, slug="c", client_id=True),
    ) == ["UNIQUE_VIOLATION", "UNIQUE_VIOLATION", "OPTIMISTIC_ID_CONFLICT"]
