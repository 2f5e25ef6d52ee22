"""References: checks at writes, `onDelete`, transactions, circles, bounds, marks of stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from pylon import limits
from pylon.auth_context import ADMIN, ANONYMOUS, AuthContext
from pylon.errors import ReferenceInUse
from pylon.manifest.model import (
    Default,
    Entity,
    Field,
    FieldType,
    Index,
    Manifest,
    OnDelete,
    Policy,
    Search,
)
from pylon.query.words import parse_words
from pylon.schema.options import MigrationOptions
from pylon.storage.backend import Backend
from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    OpenDocument,
    OpKey,
    ResetRows,
    Transact,
    UpdateRow,
    WriteRequest,
)
from pylon.values import EntityCodec
from tests.storage_contract.backends import StoreStage
from tests.support.storage import row_id

pytestmark = pytest.mark.stores


def ref(name: str, target: str, on_delete: OnDelete | None = None, optional: bool = True) -> Field:
    return Field(name, FieldType.ID, optional, False, target=target, on_delete=on_delete)


ROOM = Entity("Room", (
    Field("name", FieldType.STRING, True, False), ref("parentId", "Room", "cascade"),
    ref("pinnedId", "Message", "setNull"),
))
MEMBER = Entity("Member", (ref("roomId", "Room", "cascade", False), ref("invitedBy", "Member")))
MESSAGE = Entity("Message", (
    ref("roomId", "Room", "cascade", False), ref("replyTo", "Message", "setNull"),
    ref("authorId", "Member"), Field("text", FieldType.STRING, True, False),
    Field("changedAt", FieldType.DATETIME, True, False, on_update=Default("now")),
))
ENTITIES = {entity.name: entity for entity in (ROOM, MEMBER, MESSAGE)}
MANIFEST = Manifest("chat", "1", tuple(ENTITIES.values()), policies=(
    Policy("rooms", entity="Room", allow="true"),
    Policy("members", entity="Member", allow="true"),
    Policy("messages", entity="Message", allow_read="true", allow_insert="true",
           allow_update="false", allow_delete="false"),
))
EVE = AuthContext(user_id="eve")


def add(entity: str, number: int, **fields: Any) -> InsertRow:
    body = {k: row_id(v) if isinstance(v, int) else v for k, v in fields.items()}
    encoded = EntityCodec(ENTITIES[entity]).insert(body, row_id(number))
    return InsertRow(entity, row_id(number), encoded.values, encoded.row_json)


def change(entity: str, number: int, auth: AuthContext = ADMIN, **fields: Any) -> UpdateRow:
    patch = {k: row_id(v) if isinstance(v, int) else v for k, v in fields.items()}
    return UpdateRow(entity, row_id(number), patch, auth)


def drop(entity: str, number: int, auth: AuthContext = ADMIN) -> DeleteRow:
    return DeleteRow(entity, row_id(number), auth)


@pytest.fixture
def stage(backend: Backend) -> Iterator[StoreStage]:
    """A store with a room, two members of it, and three messages."""
    made = StoreStage(backend, MANIFEST)
    assert made.codes(
        add("Room", 1), add("Member", 11, roomId=1), add("Member", 12, roomId=1, invitedBy=11),
        add("Message", 21, roomId=1, authorId=11), add("Message", 22, roomId=1, replyTo=21),
        add("Message", 23, roomId=1, replyTo=21, authorId=12),
    ) == [None] * 6
    yield made
    made.close()


def ids(stage: StoreStage, entity: str) -> list[int]:
    return [int(row["id"], 16) for row in stage.rows(entity)]


def test_row_that_names_a_missing_row_is_refused_with_field_and_value(stage: StoreStage) -> None:
    (reply,) = stage.apply(add("Message", 24, roomId=9))
    assert reply.error is not None and reply.error.code == "REFERENCE_NOT_FOUND"
    assert reply.error.details == {"entity": "Message", "field": "roomId", "value": row_id(9)}
    assert stage.codes(
        change("Message", 21, roomId=9), change("Message", 21, replyTo=9),
        add("Message", 24, roomId=11),  # the id of a row of another entity
        add("Room", 2, parentId=2), change("Message", 21, replyTo=None, text="x"),
    ) == ["REFERENCE_NOT_FOUND"] * 3 + [None] * 2
    assert ids(stage, "Message") == [21, 22, 23]


def test_row_of_the_same_batch_can_be_named(stage: StoreStage) -> None:
    assert stage.codes(
        add("Room", 2), add("Member", 13, roomId=2), drop("Room", 2), add("Member", 14, roomId=2)
    ) == [None, None, None, "REFERENCE_NOT_FOUND"]


def test_restrict_refuses_the_delete_and_counts_up_to_a_bound(
    stage: StoreStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (reply,) = stage.apply(drop("Member", 11))
    assert reply.error is not None
    error = reply.error.to_exception()
    assert isinstance(error, ReferenceInUse) and error.status == 409
    assert error.details == {
        "entity": "Member", "field": "invitedBy", "count": 1, "is_exact": True,
    }
    monkeypatch.setattr(limits, "REFERENCES_COUNTED", 2)
    stage.apply(*(add("Message", n, roomId=1, authorId=12) for n in range(30, 35)))
    (reply,) = stage.apply(drop("Member", 12))
    assert reply.error is not None
    assert (reply.error.details["count"], reply.error.details["is_exact"]) == (2, False)
    assert ids(stage, "Member") == [11, 12]


def test_cascade_deletes_rows_in_one_commit_with_an_event_each(stage: StoreStage) -> None:
    head = stage.writer.head
    result = stage.commit(drop("Room", 1))
    (reply,) = result.replies
    assert reply.error is None and reply.count == 6
    assert result.batch is not None
    events = result.batch.events
    assert [event.seq for event in events] == list(range(head + 1, head + 7))
    assert {event.kind for event in events} == {"delete"}
    assert events[-1].row_id == row_id(1) and reply.seq == events[-1].seq
    assert all(event.prev_data for event in events) and stage.events(head) == events
    assert [ids(stage, name) for name in ENTITIES] == [[], [], []]


def test_cascade_asks_no_policy_of_the_rows_that_go_with_it(stage: StoreStage) -> None:
    assert stage.codes(drop("Message", 22, EVE), drop("Room", 1, EVE)) == ["POLICY_DENIED", None]
    assert ids(stage, "Message") == []


def test_set_null_changes_rows_with_their_update_fields(stage: StoreStage) -> None:
    stage.apply(change("Room", 1, pinnedId=21))
    stage.clock.advance(1)
    before = stage.row("Message", row_id(22))
    result = stage.commit(drop("Message", 21))
    assert [reply.error for reply in result.replies] == [None]
    assert result.batch is not None
    assert [(e.kind, int(e.row_id, 16)) for e in result.batch.events][-1] == ("delete", 21)
    assert sorted((e.kind, int(e.row_id, 16)) for e in result.batch.events) == [
        ("delete", 21), ("update", 1), ("update", 22), ("update", 23),
    ]
    after = stage.row("Message", row_id(22))
    room = stage.row("Room", row_id(1))
    assert before is not None and after is not None and room is not None
    assert after["replyTo"] is None and room["pinnedId"] is None
    assert after["changedAt"] is not None and after["changedAt"] != before["changedAt"]
    assert orjson.loads(result.batch.events[-1].prev_data or b"") ["id"] == row_id(21)


def test_circles_end(stage: StoreStage) -> None:
    assert stage.codes(
        add("Room", 2), add("Room", 3, parentId=2), change("Room", 2, parentId=3),
        add("Room", 4, parentId=3), add("Member", 15, roomId=4),
        change("Room", 3, pinnedId=21),
    ) == [None] * 6
    (reply,) = stage.apply(drop("Room", 3))
    assert reply.error is None and reply.count == 4
    assert ids(stage, "Room") == [1] and ids(stage, "Member") == [11, 12]


def test_row_that_names_itself_can_be_deleted(stage: StoreStage) -> None:
    itself = add("Member", 16, roomId=1, invitedBy=16)
    assert stage.codes(itself, drop("Member", 16)) == [None, None]


def test_restrict_behind_a_cascade_refuses_the_whole_delete(stage: StoreStage) -> None:
    stage.apply(add("Room", 2), add("Message", 31, roomId=2, authorId=11))
    assert stage.codes(drop("Room", 1)) == ["REFERENCE_IN_USE"]
    assert ids(stage, "Room") == [1, 2] and ids(stage, "Message") == [21, 22, 23, 31]
    # The other room's message goes with its room, so nothing refers to the members then.
    assert stage.codes(drop("Room", 2), drop("Room", 1)) == [None, None]


def test_too_large_a_cascade_is_refused_and_changes_nothing(
    stage: StoreStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CASCADE_ROWS", 5)
    assert stage.codes(drop("Room", 1)) == [None]
    stage.apply(
        add("Room", 1), add("Member", 11, roomId=1),
        *(add("Message", n, roomId=1) for n in range(21, 26)),
    )
    (reply,) = stage.apply(drop("Room", 1))
    assert reply.error is not None and reply.error.code == "LIMIT_EXCEEDED"
    assert "more than 5 rows" in reply.error.message
    assert ids(stage, "Message") == [21, 22, 23, 24, 25]
    both = Transact([drop("Message", 21), drop("Room", 1)])
    assert stage.apply(both)[0].results[-1].error is None  # type: ignore[index]
    stage.apply(
        *(op for room in (1, 2) for op in (add("Room", room), add("Member", 10 + room, roomId=room),
          add("Message", 20 + room, roomId=room), add("Message", 30 + room, roomId=room)))
    )
    results = stage.apply(Transact([drop("Room", 1), drop("Room", 2)]))[0].results or []
    assert [r.error.code if r.error else None for r in results] == [None, "LIMIT_EXCEEDED"]
    assert ids(stage, "Room") == [1, 2]


def test_transaction_is_checked_at_its_end(stage: StoreStage) -> None:
    def codes(*ops: Any) -> list[str | None]:
        results = stage.apply(Transact(list(ops)))[0].results or []
        return [r.error.code if r.error else None for r in results]

    assert codes(add("Member", 13, roomId=2), add("Room", 2)) == [None, None]
    assert codes(drop("Member", 11), change("Member", 12, invitedBy=None),
                 change("Message", 21, authorId=None)) == [None] * 3
    assert codes(add("Room", 3), add("Message", 31, roomId=9), add("Room", 4)) == [
        None, "REFERENCE_NOT_FOUND",
    ]
    assert codes(add("Message", 31, roomId=9), drop("Message", 31)) == [None, None]
    assert codes(change("Message", 22, roomId=9), change("Message", 22, roomId=1)) == [None, None]
    assert codes(drop("Member", 12), change("Message", 21, text="x")) == ["REFERENCE_IN_USE"]
    again = (drop("Member", 12), add("Member", 12, roomId=1))
    assert codes(*again) == [None, None]
    assert ids(stage, "Room") == [1, 2] and ids(stage, "Member") == [12, 13]


def test_failed_transaction_leaves_no_check_behind(stage: StoreStage) -> None:
    stage.apply(Transact([add("Message", 31, roomId=9), drop("Room", 99)]))
    assert stage.codes(Transact([add("Room", 3)]), add("Message", 31, roomId=9)) == [
        None, "REFERENCE_NOT_FOUND",
    ]


def test_repeated_delete_replays_after_its_cascade(stage: StoreStage) -> None:
    once = replace_op(drop("Room", 1), "op")
    first, again = stage.apply(once), stage.apply(once)
    assert first[0].error is None and again[0].replayed and again[0].seq == first[0].seq
    added = InsertRow("Message", row_id(21), [None] * 5, b"{}", op=OpKey("x", "y"))
    assert stage.codes(added)[0] is not None


def replace_op(op: DeleteRow, op_id: str) -> DeleteRow:
    return DeleteRow(op.entity, op.row_id, op.auth, OpKey("", op_id), op.if_match)


def test_if_match_holds_before_a_cascade(stage: StoreStage) -> None:
    wrong = DeleteRow("Room", row_id(1), ADMIN, if_match=999)
    assert stage.codes(wrong) == ["PRECONDITION_FAILED"]
    assert ids(stage, "Message") == [21, 22, 23]


def test_documents_go_with_their_rows_and_follow_set_null(stage: StoreStage) -> None:
    stage.apply(*(OpenDocument("Message", row_id(n)) for n in (21, 22)))
    assert stage.codes(drop("Message", 21)) == [None]
    assert stage.reader.document("Message", row_id(21)) is None
    stored = stage.reader.document("Message", row_id(22))
    assert stored is not None and stored.updates
    assert stage.codes(drop("Room", 1)) == [None]
    assert stage.reader.document("Message", row_id(22)) is None


def test_cascade_of_large_rows_is_executed_by_the_next_transaction(
    stage: StoreStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LARGE_ROW_BYTES", 200)
    stage.apply(
        add("Room", 5, name="x" * 300),
        *(add("Message", n, roomId=5, text="x" * 300) for n in range(51, 55)),
    )
    requests = [WriteRequest(1, change("Message", 21, text="y" * 300)),
                WriteRequest(2, drop("Room", 5))]
    result = stage.writer.apply(requests, large_bytes=1_000)
    assert [request.id for request in result.deferred] == [2] and len(result.replies) == 1
    assert 5 in ids(stage, "Room") and 51 in ids(stage, "Message")
    result = stage.writer.apply(result.deferred, large_bytes=1_000)
    assert not result.deferred and result.replies[0].error is None
    assert result.replies[0].count == 5 and ids(stage, "Room") == [1]


def test_set_null_that_breaks_a_unique_index_refuses_the_delete(backend: Backend) -> None:
    """An index of the rows without a reference is the one way in which null is not free."""
    index = Index("one_top", ("text",), True, where='{"replyTo": null}')
    entity = replace(MESSAGE, indexes=(index,))
    stage = StoreStage(backend, replace(MANIFEST, entities=(ROOM, MEMBER, entity)))
    stage.apply(
        add("Room", 1), add("Message", 21, roomId=1, text="a"),
        add("Message", 22, roomId=1, text="b", replyTo=21),
        add("Message", 23, roomId=1, text="a", replyTo=21),
    )
    head = stage.writer.head
    assert stage.codes(drop("Message", 21), change("Message", 21, text="c")) == [
        "UNIQUE_VIOLATION", None,
    ]
    row = stage.row("Message", row_id(22))
    assert row is not None and row["replyTo"] == row_id(21)
    assert [event.row_id for event in stage.events(head)] == [row_id(21)]
    assert stage.codes(drop("Message", 21)) == [None]
    stage.close()


def test_search_forgets_the_rows_of_a_cascade(backend: Backend) -> None:
    entity = replace(MESSAGE, search=Search(("text",), (), ()))
    stage = StoreStage(backend, replace(MANIFEST, entities=(ROOM, MEMBER, entity)))
    stage.apply(
        add("Room", 1), add("Room", 2), add("Message", 21, roomId=1, text="green tea"),
        add("Message", 22, roomId=2, text="black tea", replyTo=21),
    )
    assert stage.codes(drop("Room", 1)) == [None]
    found = stage.rows("Message", parse_words(entity, "tea"))
    assert [row["id"] for row in found] == [row_id(22)] and found[0]["replyTo"] is None
    assert all(not check.problems for check in stage.backend.schema.check_search([entity]))
    stage.close()


def test_reset_asks_no_reference(stage: StoreStage) -> None:
    assert stage.codes(ResetRows()) == [None]
    assert ids(stage, "Room") == []


def test_insert_whose_references_were_checked_before_is_taken(stage: StoreStage) -> None:
    op = add("Member", 13, roomId=7)
    assert stage.codes(
        InsertRow(op.entity, op.row_id, op.values, op.row_json, has_checked_references=True),
        add("Room", 7),
    ) == [None, None]


@pytest.mark.parametrize(
    ("top", "field", "expected"),
    [
        (None, None, "REFERENCE_NOT_FOUND"), ("check", None, "REFERENCE_NOT_FOUND"),
        ("none", None, None), ("none", "check", "REFERENCE_NOT_FOUND"), ("check", "none", None),
        (None, "none", None),
    ],
)
def test_manifest_says_which_references_are_checked(
    backend: Backend, top: Any, field: Any, expected: str | None
) -> None:
    name = replace(ref("roomId", "Room"), references=field)
    entities = (replace(MEMBER, fields=(name,)), Entity("Room", ()))
    stage = StoreStage(backend, Manifest("m", "1", entities, references=top))
    encoded = EntityCodec(entities[0]).insert({"roomId": "nope"}, row_id(1))
    assert stage.codes(
        InsertRow("Member", row_id(1), encoded.values, encoded.row_json)
    ) == [expected]
    stage.close()


def test_store_has_an_index_for_each_checked_reference(stage: StoreStage) -> None:
    def indexes() -> set[tuple[str, ...]]:
        return {
            index.fields for table in stage.backend.schema.inspect() if table.name == "Message"
            for index in table.indexes
        }

    assert {("roomId",), ("replyTo",), ("authorId",)} <= indexes()
    own = replace(MESSAGE, indexes=(Index("by_room", ("roomId", "text"), False),))
    stage.restart(replace(MANIFEST, entities=(ROOM, MEMBER, own)))
    assert ("roomId",) not in indexes() and ("roomId", "text") in indexes()
    plan = stage.backend.schema.plan(stage.manifest, MigrationOptions())
    assert not plan.steps and not plan.rewrites
    stage.restart(replace(MANIFEST, references="none", entities=(
        Entity("Room", ROOM.fields[:1]), Entity("Member", ()),
        replace(MESSAGE, fields=tuple(replace(f, on_delete=None) for f in MESSAGE.fields)),
    )))
    assert ("replyTo",) not in indexes()
    assert stage.codes(DeleteRow("Room", row_id(1), ANONYMOUS)) == [None]
