"""Writes: replies, refusals, uniqueness, If-Match, keys, transactions; each batch is one commit."""

from __future__ import annotations

from msgspec.structs import replace

from pylon.auth_context import ADMIN
from pylon.storage.ops import DeleteRow, InsertRow, ResetRows, Transact, UpdateRow
from tests.storage_contract.backends import StoreStage
from tests.support.storage import ADA, BOB, delete, insert, row_id, task, update


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
    assert stage.codes(
        task(1, slug="a"), update("Task", 1, {"slug": "b"}), task(2, slug="a"),
        update("Task", 2, {"slug": "b"}),
    ) == [None, None, None, "UNIQUE_VIOLATION"]


def test_hidden_row_is_not_found_and_visible_one_denied(stage: StoreStage) -> None:
    stage.apply(task(1), task(2, done=True))
    hidden = stage.apply(
        update("Task", 1, {"rank": 1}, BOB), update("Task", 7, {"rank": 1}, BOB),
        delete("Task", 1, BOB), delete("Task", 7, BOB),
    )
    assert [r.error.code for r in hidden if r.error] == ["NOT_FOUND"] * 4
    assert hidden[0].error == hidden[1].error and hidden[2].error == hidden[3].error
    assert stage.codes(
        update("Task", 2, {"rank": 1}, ADA), delete("Task", 2, ADA),
        update("Task", 1, {"ownerId": "bob"}, ADA),
    ) == ["POLICY_DENIED"] * 3
    assert stage.codes(update("Task", 1, {"rank": 4}, ADA), delete("Task", 1, ADA)) == [None] * 2


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
    assert (again.replayed, again.seq, again.row_id) == (True, first.seq, row_id(1))
    assert other.error is None and not other.replayed
    stage.restart()
    (later,) = stage.apply(task(4, op="x"))
    assert later.replayed and [row["id"] for row in stage.rows("Task")] == [row_id(1)]


def test_key_of_another_request_is_refused(stage: StoreStage) -> None:
    first = task(1, op="x")
    assert first.op is not None
    with_digest = replace(first, op=replace(first.op, digest="one"))
    other = replace(task(2, op="x"), op=replace(first.op, digest="two"))
    assert stage.codes(with_digest, other, with_digest) == [
        None, "IDEMPOTENCY_KEY_REUSED", None,
    ]


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


def test_reset_deletes_each_row_with_its_event(stage: StoreStage) -> None:
    stage.apply(task(1), insert("Note", 2, {"text": "x"}))
    (reply,) = stage.apply(ResetRows())
    assert reply.error is None and stage.reader.is_empty()
    assert sorted(e.kind for e in stage.events(2)) == ["delete", "delete"]


def test_committed_rows_survive_a_restart(stage: StoreStage) -> None:
    stage.apply(task(1, title="kept"))
    head = stage.writer.head
    stage.restart()
    assert stage.writer.head >= head
    assert [row["title"] for row in stage.rows("Task")] == ["kept"]
    (reply,) = stage.apply(task(2))
    assert reply.seq > head
