"""Documents in the writer: rows and documents change together, and a refusal leaves nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loro import LoroDoc

from pylon.storage.interface import Reader, WriteEngine
from pylon.storage.ops import OpenDocument, ResetRows, Transact, WriteRequest
from tests.support import storage as kit
from tests.support.document_store import ID, NOTE, client_of, note_text, ok, open_note, push
from tests.support.documents import LoroClient
from tests.support.examples import count_examples
from tests.support.storage import apply, code, delete, insert, task, update

pytestmark = pytest.mark.stores


def test_a_plain_row_has_no_document(engine: WriteEngine, reader: Reader) -> None:
    ok(*apply(engine, task(1), update("Task", 1, {"title": "b"}), delete("Task", 1)))
    assert reader.document("Task", ID) is None
    assert reader.document_number() == 0


def test_a_document_has_the_row_in_it(engine: WriteEngine, reader: Reader) -> None:
    made = {"title": "a", "rank": 2**60, "weight": 0.5, "slug": "s",
            "dueAt": "2026-01-01T00:00:00.000000Z"}
    ok(*apply(engine, task(1, **made), OpenDocument("Task", ID)))
    assert client_of(reader, "Task").row() == {
        **made, "rank": float(2**60), "done": False, "ownerId": "ada",
        "dueAt": "2026-01-01T00:00:00.000000Z",
    }


def test_text_fields_are_texts(engine: WriteEngine, reader: Reader) -> None:
    assert open_note(engine, reader).text("text").to_string() == "hello"


def test_what_is_pushed_is_in_the_row_with_an_event(
    engine: WriteEngine, reader: Reader
) -> None:
    client = open_note(engine, reader)
    client.text("text").insert(5, " wörld 😀")
    result = engine.apply([WriteRequest(1, push(client.update()))])
    ok(*result.replies)
    assert note_text(reader) == "hello wörld 😀"
    assert result.batch is not None and not result.documents
    (event,) = result.batch.events
    assert event.kind == "update" and event.seq == result.replies[0].seq
    assert b"hello" in (event.prev_data or b"") and "😀".encode() in (event.data or b"")
    (change,) = reader.document_updates(0, 10)
    assert change.seq == event.seq and change.prev == 0


def test_a_push_without_a_document_makes_one(engine: WriteEngine, reader: Reader) -> None:
    ok(*apply(engine, task(1, title="a")))
    other = LoroDoc()
    other.get_map("row").insert("title", "b")
    client = LoroClient()
    client.doc = other
    reply = ok(*apply(engine, push(client.everything(), "Task")))
    row = kit.rows_of(reader, "Task")[ID]
    assert client_of(reader, "Task").row()["title"] == row["title"]
    assert bool(reply.seq) == (row["title"] == "b")


def test_an_update_that_projects_nothing_is_kept_without_an_event(
    engine: WriteEngine, reader: Reader
) -> None:
    """What `useCollabText` of the JS client does."""
    client = open_note(engine, reader)
    client.doc.get_text("text").insert(0, "elsewhere")
    before = engine.head
    result = engine.apply([WriteRequest(1, push(client.update()))])
    assert ok(*result.replies).seq == 0
    assert result.batch is None and result.documents and engine.head == before
    assert client_of(reader).doc.get_text("text").to_string() == "elsewhere"
    assert note_text(reader) == "hello"


def test_the_same_update_again_changes_nothing(
    engine: WriteEngine, reader: Reader
) -> None:
    client = open_note(engine, reader)
    client.text("text").insert(0, "x")
    data = client.update()
    ok(*apply(engine, push(data)))
    number, head = reader.document_number(), engine.head
    result = engine.apply([WriteRequest(1, push(data))])
    assert ok(*result.replies).seq == 0 and not result.documents
    assert (reader.document_number(), engine.head) == (number, head)


def test_a_change_of_the_row_is_one_of_the_document(
    engine: WriteEngine, reader: Reader
) -> None:
    client = open_note(engine, reader, "the quick brown fox")
    client.text("text").insert(4, "very ")  # not pushed yet
    reply = ok(*apply(engine, update("Note", 1, {"text": "the quick red fox"})))
    (change,) = reader.document_updates(0, 10)
    assert change.seq == reply.seq
    client.doc.import_(reader.document_update(change.number) or b"")
    assert client.text("text").to_string() == "the very quick red fox"
    ok(*apply(engine, push(client.everything())))
    assert note_text(reader) == "the very quick red fox"


def test_null_and_back(engine: WriteEngine, reader: Reader) -> None:
    open_note(engine, reader)
    for text in (None, "", "again", None, "once more"):
        ok(*apply(engine, update("Note", 1, {"text": text})))
        assert client_of(reader).row().get("text") == text
        assert note_text(reader) == text


def test_all_kinds_of_writes_keep_the_document(
    engine: WriteEngine, reader: Reader
) -> None:
    open_note(engine, reader)
    ok(*apply(engine, Transact([update("Note", 1, {"text": "one"}), task(2)])))
    assert client_of(reader).row() == {"text": "one"}
    failing = Transact([update("Note", 1, {"text": "two"}), update("Note", 9, {"text": ""})])
    apply(engine, failing, update("Note", 1, {"text": "three"}))
    assert client_of(reader).row() == {"text": "three"}
    assert len(reader.document_updates(0, 10)) == 2
    apply(engine, update("Note", 1, {"text": "four"}), failing)
    assert client_of(reader).row() == {"text": "four"}


def test_a_deleted_row_has_no_document(engine: WriteEngine, reader: Reader) -> None:
    open_note(engine, reader)
    ok(*apply(engine, update("Note", 1, {"text": "x"}), delete("Note", 1)))
    assert reader.document(*NOTE) is None and reader.document_updates(0, 10) == []
    ok(*apply(engine, insert("Note", 1, {"text": "anew"}), OpenDocument(*NOTE)))
    assert client_of(reader).row() == {"text": "anew"}
    ok(*apply(engine, ResetRows()))
    assert reader.document(*NOTE) is None
    assert code(*apply(engine, OpenDocument(*NOTE))) == "NOT_FOUND"


def test_numbers_are_never_used_again(engine: WriteEngine, reader: Reader) -> None:
    open_note(engine, reader)
    ok(*apply(engine, update("Note", 1, {"text": "x"})))
    number = reader.document_number()
    ok(*apply(engine, delete("Note", 1), insert("Note", 1, {"text": "x"}), OpenDocument(*NOTE),
              update("Note", 1, {"text": "y"})))
    assert reader.document_updates(0, 10)[0].number > number


_EDIT = st.tuples(
    st.sampled_from(["type", "cut", "push", "hear", "patch", "evict"]),
    st.integers(0, 2), st.integers(0, 40), st.text("ab é😀\n", min_size=1, max_size=5),
)


@settings(max_examples=count_examples(30))
@given(edits=st.lists(_EDIT, max_size=40))
def test_editors_converge(tmp_path_factory: pytest.TempPathFactory, edits: list[Any]) -> None:
    """Three clients and the row's own route edit one text; when all have heard all, all have
    the same, and the column has it too."""
    folder = tmp_path_factory.mktemp("editors")
    engine, reader = kit.open_engine(folder / "a.db"), None
    try:
        reader = kit.open_reader(folder / "a.db")
        open_note(engine, reader, "start")
        editors = [client_of(reader) for _ in range(3)]
        heard = [0, 0, 0]

        def hear(who: int) -> None:
            for change in reader.document_updates(heard[who], 1_000):
                editors[who].doc.import_(reader.document_update(change.number) or b"")
                heard[who] = change.number

        for what, who, place, text in edits:
            editor = editors[who]
            held = editor.text("text")
            size = held.len_unicode
            if what == "type":
                held.insert(min(place, size), text)
            elif what == "cut" and size:
                start = min(place, size - 1)
                held.delete(start, min(len(text), size - start))
            elif what == "push":
                ok(*apply(engine, push(editor.everything())))
            elif what == "hear":
                hear(who)
            elif what == "patch":
                ok(*apply(engine, update("Note", 1, {"text": (note_text(reader) or "") + text})))
            elif what == "evict":
                engine._batches._documents._cache.drop(NOTE)
        for editor in editors:
            ok(*apply(engine, push(editor.everything())))
        for who in range(3):
            hear(who)
        texts = {editor.text("text").to_string() for editor in editors}
        assert texts == {note_text(reader)}
        assert client_of(reader).row() == {"text": note_text(reader)}
    finally:
        if reader is not None:
            reader.close()
        engine.close()
