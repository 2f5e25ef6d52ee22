"""Documents: a row and its document agree, whichever is written."""

from __future__ import annotations

import loro
import orjson
import pytest

from pylon.auth_context import ADMIN
from pylon.query.conditions import equal
from pylon.storage.ops import OpenDocument, PushDocument
from tests.storage_contract.backends import StoreStage
from tests.support.storage import BOB, delete, insert, row_id, task, update

pytestmark = pytest.mark.stores

NOTE = row_id(1)


def open_copy(stage: StoreStage, entity: str = "Note") -> loro.LoroDoc:
    """Return a client's copy of a stored document."""
    stored = stage.reader.document(entity, NOTE)
    assert stored is not None
    copy = loro.LoroDoc()
    for part in stored.parts:
        if part:
            copy.import_(part)
    return copy


def push_text(stage: StoreStage, copy: loro.LoroDoc, text: str) -> list[str | None]:
    version = copy.oplog_vv
    container = copy.get_map("row").get_or_create_container("text", loro.LoroText())
    container.insert(0, text)
    copy.commit()
    update_bytes = copy.export(loro.ExportMode.Updates(version))
    return stage.codes(PushDocument("Note", NOTE, update_bytes, ADMIN))


def test_row_has_no_document_until_it_is_opened(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "hello"}))
    assert stage.reader.document("Note", NOTE) is None
    assert stage.codes(OpenDocument("Note", NOTE)) == [None]
    value = open_copy(stage).get_map("row").get_deep_value()
    assert value["text"] == "hello"


def test_document_is_read_with_a_condition_on_its_row(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "hello"}), OpenDocument("Note", NOTE))
    assert stage.reader.document("Note", NOTE, equal("text", "hello")) is not None
    assert stage.reader.document("Note", NOTE, equal("text", "other")) is None


def test_push_changes_the_row_in_the_same_commit(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "world"}), OpenDocument("Note", NOTE))
    assert push_text(stage, open_copy(stage), "hello ") == [None]
    assert stage.row("Note", NOTE) == {"id": NOTE, "text": "hello world"}
    last = stage.events()[-1]
    assert orjson.loads(last.data or b"")["text"] == "hello world"
    assert stage.reader.document_number() == stage.reader.document_updates(0, 10)[-1].number


def test_write_of_the_row_changes_the_document(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "a"}), OpenDocument("Note", NOTE))
    stage.apply(update("Note", 1, {"text": "ab"}))
    assert open_copy(stage).get_map("row").get_deep_value()["text"] == "ab"


def test_two_editors_merge(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "-"}), OpenDocument("Note", NOTE))
    first, second = open_copy(stage), open_copy(stage)
    assert push_text(stage, first, "A") == push_text(stage, second, "B") == [None]
    row = stage.row("Note", NOTE)
    assert row is not None and sorted(row["text"]) == ["-", "A", "B"]
    assert open_copy(stage).get_map("row").get_deep_value()["text"] == row["text"]


def test_refused_push_changes_nothing(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "a"}), OpenDocument("Note", NOTE), task(2))
    before = stage.reader.head_seq(), stage.reader.document_number()
    assert stage.codes(
        PushDocument("Note", NOTE, b"no update", ADMIN),
        PushDocument("Note", row_id(9), b"", ADMIN),
        PushDocument("Task", row_id(2), b"", BOB),
    ) == ["CRDT_DECODE_FAILED", "NOT_FOUND", "NOT_FOUND"]
    assert (stage.reader.head_seq(), stage.reader.document_number()) == before


def test_deleted_row_has_no_document(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "a"}), OpenDocument("Note", NOTE))
    stage.apply(delete("Note", 1))
    assert stage.reader.document("Note", NOTE) is None


def test_documents_survive_a_restart(stage: StoreStage) -> None:
    stage.apply(insert("Note", 1, {"text": "b"}), OpenDocument("Note", NOTE))
    copy = open_copy(stage)
    assert push_text(stage, copy, "a") == [None]
    stage.restart()
    assert open_copy(stage).get_map("row").get_deep_value()["text"] == "ab"
    assert push_text(stage, copy, "_") == [None]
    row = stage.row("Note", NOTE)
    assert row is not None and row["text"] == "_ab"
