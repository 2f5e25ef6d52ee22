"""Documents in the writer: rows and documents change together, and a refusal leaves nothing."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loro import LoroDoc, LoroList, LoroText

from pylon import limits, metrics
from pylon.auth_context import ADMIN, AuthContext
from pylon.crdt import document
from pylon.errors import CrdtDecodeFailed, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType, Manifest, Policy
from pylon.storage.core.document_cache import CachedDocument, DocumentCache, RowSet
from pylon.storage.ops import (
    InsertRow,
    OpenDocument,
    PushDocument,
    ResetRows,
    Transact,
    WriteReply,
    WriteRequest,
)
from pylon.storage.sqlite.engine import SqliteEngine
from pylon.storage.sqlite.reader import SqliteReader
from tests.support import storage as kit
from tests.support.documents import LoroClient, sealed
from tests.support.examples import count_examples
from tests.support.measured import total
from tests.support.storage import ADA, BOB, apply, code, delete, insert, row_id, task, update

ID = row_id(1)
NOTE = ("Note", ID)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SqliteEngine]:
    engine = kit.open_engine(tmp_path / "a.db")
    yield engine
    engine.close()


@pytest.fixture
def reader(engine: SqliteEngine, tmp_path: Path) -> Iterator[SqliteReader]:
    reader = kit.open_reader(tmp_path / "a.db")
    yield reader
    reader.close()


def ok(*replies: WriteReply) -> WriteReply:
    for reply in replies:
        assert reply.error is None, reply.error
    return replies[-1]


def client_of(reader: SqliteReader, entity: str = "Note", number: int = 1) -> LoroClient:
    stored = reader.document(entity, row_id(number))
    assert stored is not None
    return LoroClient(stored.snapshot, *stored.updates)


def push(
    update: bytes, entity: str = "Note", number: int = 1, auth: AuthContext = ADMIN
) -> PushDocument:
    return PushDocument(entity, row_id(number), update, auth)


def opened(engine: SqliteEngine, reader: SqliteReader, text: str = "hello") -> LoroClient:
    """A note with a document, and a client that has it."""
    ok(*apply(engine, insert("Note", 1, {"text": text}), OpenDocument(*NOTE)))
    return client_of(reader)


def note(reader: SqliteReader) -> Any:
    return kit.rows_of(reader, "Note")[ID]["text"]


def test_a_plain_row_has_no_document(engine: SqliteEngine, reader: SqliteReader) -> None:
    ok(*apply(engine, task(1), update("Task", 1, {"title": "b"}), delete("Task", 1)))
    assert reader.document("Task", ID) is None
    assert reader.document_number() == 0


def test_a_document_has_the_row_in_it(engine: SqliteEngine, reader: SqliteReader) -> None:
    made = {"title": "a", "rank": 2**60, "weight": 0.5, "dueAt": "2026-01-01", "slug": "s"}
    ok(*apply(engine, task(1, **made), OpenDocument("Task", ID)))
    assert client_of(reader, "Task").row() == {
        **made, "rank": float(2**60), "done": False, "ownerId": "ada",
    }


def test_text_fields_are_texts(engine: SqliteEngine, reader: SqliteReader) -> None:
    assert opened(engine, reader).text("text").to_string() == "hello"


def test_what_is_pushed_is_in_the_row_with_an_event(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    client = opened(engine, reader)
    client.text("text").insert(5, " wörld 😀")
    result = engine.apply([WriteRequest(1, push(client.update()))])
    ok(*result.replies)
    assert note(reader) == "hello wörld 😀"
    assert result.batch is not None and not result.documents
    (event,) = result.batch.events
    assert event.kind == "update" and event.seq == result.replies[0].seq
    assert b"hello" in (event.prev_data or b"") and "😀".encode() in (event.data or b"")
    (change,) = reader.document_updates(0, 10)
    assert change.seq == event.seq and change.prev == 0


def test_a_push_without_a_document_makes_one(engine: SqliteEngine, reader: SqliteReader) -> None:
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
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    """What `useCollabText` of the JS client does."""
    client = opened(engine, reader)
    client.doc.get_text("text").insert(0, "elsewhere")
    before = engine.head
    result = engine.apply([WriteRequest(1, push(client.update()))])
    assert ok(*result.replies).seq == 0
    assert result.batch is None and result.documents and engine.head == before
    assert client_of(reader).doc.get_text("text").to_string() == "elsewhere"
    assert note(reader) == "hello"


def test_the_same_update_again_changes_nothing(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    client = opened(engine, reader)
    client.text("text").insert(0, "x")
    data = client.update()
    ok(*apply(engine, push(data)))
    number, head = reader.document_number(), engine.head
    result = engine.apply([WriteRequest(1, push(data))])
    assert ok(*result.replies).seq == 0 and not result.documents
    assert (reader.document_number(), engine.head) == (number, head)


def test_a_change_of_the_row_is_one_of_the_document(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    client = opened(engine, reader, "the quick brown fox")
    client.text("text").insert(4, "very ")  # not pushed yet
    reply = ok(*apply(engine, update("Note", 1, {"text": "the quick red fox"})))
    (change,) = reader.document_updates(0, 10)
    assert change.seq == reply.seq
    client.doc.import_(reader.document_update(change.number) or b"")
    assert client.text("text").to_string() == "the very quick red fox"
    ok(*apply(engine, push(client.everything())))
    assert note(reader) == "the very quick red fox"


def test_null_and_back(engine: SqliteEngine, reader: SqliteReader) -> None:
    opened(engine, reader)
    for text in (None, "", "again", None, "once more"):
        ok(*apply(engine, update("Note", 1, {"text": text})))
        assert client_of(reader).row().get("text") == text
        assert note(reader) == text


def test_all_kinds_of_writes_keep_the_document(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    opened(engine, reader)
    ok(*apply(engine, Transact([update("Note", 1, {"text": "one"}), task(2)])))
    assert client_of(reader).row() == {"text": "one"}
    failing = Transact([update("Note", 1, {"text": "two"}), update("Note", 9, {"text": ""})])
    apply(engine, failing, update("Note", 1, {"text": "three"}))
    assert client_of(reader).row() == {"text": "three"}
    assert len(reader.document_updates(0, 10)) == 2
    apply(engine, update("Note", 1, {"text": "four"}), failing)
    assert client_of(reader).row() == {"text": "four"}


def test_a_deleted_row_has_no_document(engine: SqliteEngine, reader: SqliteReader) -> None:
    opened(engine, reader)
    ok(*apply(engine, update("Note", 1, {"text": "x"}), delete("Note", 1)))
    assert reader.document(*NOTE) is None and reader.document_updates(0, 10) == []
    ok(*apply(engine, insert("Note", 1, {"text": "anew"}), OpenDocument(*NOTE)))
    assert client_of(reader).row() == {"text": "anew"}
    ok(*apply(engine, ResetRows()))
    assert reader.document(*NOTE) is None
    assert code(*apply(engine, OpenDocument(*NOTE))) == "NOT_FOUND"


def test_numbers_are_never_used_again(engine: SqliteEngine, reader: SqliteReader) -> None:
    opened(engine, reader)
    ok(*apply(engine, update("Note", 1, {"text": "x"})))
    number = reader.document_number()
    ok(*apply(engine, delete("Note", 1), insert("Note", 1, {"text": "x"}), OpenDocument(*NOTE),
              update("Note", 1, {"text": "y"})))
    assert reader.document_updates(0, 10)[0].number > number


# --- Refusals ------------------------------------------------------------------------------


def pushed_to_task(reader: SqliteReader, **fields: Any) -> bytes:
    client = client_of(reader, "Task")
    for name, value in fields.items():
        client.doc.get_map("row").insert(name, value)
    return client.update()


@pytest.mark.parametrize(("fields", "refusal"), [
    ({"rank": 1.5}, "INVALID_VALUE"),
    ({"rank": True}, "INVALID_VALUE"),
    ({"done": 1.0}, "INVALID_VALUE"),
    ({"title": None}, "NULL_NOT_ALLOWED"),
    ({"title": "a\0b"}, "INVALID_VALUE"),
    ({"dueAt": "soon"}, "INVALID_VALUE"),
    ({"title": [1]}, "CRDT_APPLY_FAILED"),
    ({"title": b"bytes"}, "CRDT_APPLY_FAILED"),
    ({"weight": float("inf")}, "INVALID_VALUE"),
    ({"slug": "taken"}, "UNIQUE_VIOLATION"),
    ({"done": True}, "POLICY_DENIED"),
])
def test_a_refused_push_leaves_nothing(
    engine: SqliteEngine, reader: SqliteReader, fields: dict[str, Any], refusal: str
) -> None:
    ok(*apply(engine, task(1, rank=1), task(2, slug="taken"), OpenDocument("Task", ID)))
    row, doc = kit.rows_of(reader, "Task")[ID], client_of(reader, "Task").row()
    head = engine.head
    bad = pushed_to_task(reader, **{"title": "refused with it", **fields})
    assert code(*apply(engine, push(bad, "Task", auth=ADA))) == refusal
    good = pushed_to_task(reader, weight=2.0)
    ok(*apply(engine, push(good, "Task", auth=ADA)))
    assert kit.rows_of(reader, "Task")[ID] == {**row, "weight": 2.0}
    assert client_of(reader, "Task").row() == {**doc, "weight": 2.0}
    assert engine.head == head + 1


def test_a_container_of_another_kind_is_null(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    ok(*apply(engine, task(1, rank=1), OpenDocument("Task", ID)))
    client = client_of(reader, "Task")
    client.doc.get_map("row").insert_container("rank", LoroText()).insert(0, "3")
    assert code(*apply(engine, push(client.update(), "Task"))) == "INVALID_VALUE"
    client = client_of(reader, "Task")
    client.doc.get_map("row").insert_container("rank", LoroList())
    ok(*apply(engine, push(client.update(), "Task")))
    assert kit.rows_of(reader, "Task")[ID]["rank"] is None


def test_who_may_not_see_the_row_cannot_push(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    ok(*apply(engine, task(1), OpenDocument("Task", ID)))
    data = pushed_to_task(reader, title="b")
    assert code(*apply(engine, push(data, "Task", auth=BOB))) == "NOT_FOUND"
    assert code(*apply(engine, push(data, "Task", 9))) == "NOT_FOUND"


def test_missing_history_is_refused_and_the_whole_taken(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    client = opened(engine, reader)
    client.text("text").insert(0, "lost ")
    client.update()
    client.text("text").insert(0, "kept ")
    assert code(*apply(engine, push(client.update()))) == "CRDT_HISTORY_MISSING"
    assert note(reader) == "hello"
    ok(*apply(engine, push(client.everything())))
    assert note(reader) == "kept lost hello"


def test_an_undone_batch_leaves_nothing_in_the_documents(
    engine: SqliteEngine, reader: SqliteReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = opened(engine, reader)
    client.text("text").insert(0, "x")
    data = client.update()
    conn = engine._conn
    conn.execute("CREATE TRIGGER full BEFORE INSERT ON _pylon_change_log BEGIN "
                 "SELECT RAISE(ABORT, 'full'); END")
    assert code(*apply(engine, push(data))) == "STORE_UNAVAILABLE"
    conn.execute("DROP TRIGGER full")
    ok(*apply(engine, update("Note", 1, {"text": "hello!"})))
    assert client_of(reader).row() == {"text": "hello!"} == {"text": note(reader)}


# Loro panics again when a document that panicked is freed, which nobody can catch.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bytes_that_are_no_update(
    engine: SqliteEngine, reader: SqliteReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random bytes, cut ones, and changed ones whose checksum is right: each is refused or
    taken whole, and row and document agree after each.

    Peers are numbered, so that every run has the same bytes: of about ten thousand changed
    ones, one makes Loro 1.17 panic within a panic, and that ends the process."""
    peers = itertools.count(1)

    def numbered() -> LoroDoc:
        doc = LoroDoc()
        doc.peer_id = next(peers)
        return doc

    monkeypatch.setattr("pylon.crdt.document.loro.LoroDoc", numbered)
    chance = random.Random(7)
    client = opened(engine, reader, "hello " * 20)
    client.doc.peer_id = next(peers)
    client.text("text").insert(4, "abc")
    client.text("text").delete(10, 5)
    good = client.update()
    whole = client.everything()
    refused = 0
    bad = [b"", b"x", b"loro", good[:-1], good[:20], whole[:100], chance.randbytes(200)]
    for _ in range(300):
        body = bytearray(chance.choice((good, whole))[20:])
        for _ in range(chance.randint(1, 3)):
            body[chance.randrange(2, len(body))] = chance.choice((0, 1, 127, 128, 255))
        bad.append(sealed(bytes(body)))
    for data in bad:
        (reply,) = apply(engine, push(data))
        if reply.error is not None:
            refused += 1
            assert reply.error.code in {
                "CRDT_DECODE_FAILED", "CRDT_HISTORY_MISSING", "CRDT_APPLY_FAILED",
                "INVALID_VALUE", "LIMIT_EXCEEDED",
            }
        assert client_of(reader).row().get("text") == note(reader)
    assert refused > 200
    ok(*apply(engine, update("Note", 1, {"text": "alive"})))
    assert client_of(reader).row()["text"] == "alive"


def test_a_document_that_cannot_be_read_is_made_anew(
    engine: SqliteEngine, reader: SqliteReader, tmp_path: Path
) -> None:
    opened(engine, reader)
    ok(*apply(engine, update("Note", 1, {"text": "kept"})))
    number = reader.document_number()
    engine.close()
    conn = apsw.Connection(str(tmp_path / "a.db"))
    conn.execute("UPDATE _pylon_crdt_snapshots SET snapshot = x'00'")
    conn.close()
    again = kit.open_engine(tmp_path / "a.db")
    ok(*apply(again, update("Note", 1, {"text": "still kept"})))
    assert client_of(reader).row() == {"text": "still kept"}
    (change,) = reader.document_updates(number, 10)
    assert change.prev == -1, "who has the old one is told to read the new one"
    again.close()


def test_a_row_that_was_changed_without_its_document_is_right(
    engine: SqliteEngine, reader: SqliteReader, tmp_path: Path
) -> None:
    opened(engine, reader)
    engine.close()
    conn = apsw.Connection(str(tmp_path / "a.db"))
    conn.execute("UPDATE Note SET text = 'by hand', _json = json_set(_json, '$.text', 'by hand')")
    conn.close()
    again = kit.open_engine(tmp_path / "a.db")
    ok(*apply(again, OpenDocument(*NOTE)))
    assert client_of(reader).row() == {"text": "by hand"}
    again.close()


# --- Storage -------------------------------------------------------------------------------


def test_updates_are_folded_into_the_snapshot(
    engine: SqliteEngine, reader: SqliteReader
) -> None:
    client = opened(engine, reader, "")
    seen, number, most = "", 0, 0
    for step in range(limits.DOCUMENT_UPDATES + 10):
        client.text("text").insert(0, chr(97 + step % 26))
        seen = chr(97 + step % 26) + seen
        ok(*apply(engine, push(client.update())))
        stored = reader.document(*NOTE)
        assert stored is not None and stored.number > number
        number, most = stored.number, max(most, len(stored.updates))
    assert most == limits.DOCUMENT_UPDATES - 1 and len(stored.updates) < 20
    assert client_of(reader).row() == {"text": seen} == {"text": note(reader)}


def test_a_large_update_is_folded_at_once(engine: SqliteEngine, reader: SqliteReader) -> None:
    client = opened(engine, reader)
    client.text("text").insert(0, random.Random(1).randbytes(30_000).hex())
    ok(*apply(engine, push(client.update())))
    stored = reader.document(*NOTE)
    assert stored is not None and len(stored.updates) == 1
    assert LoroClient(stored.snapshot).row() == client.row(), "the snapshot has it"


def test_documents_survive_a_restart(
    engine: SqliteEngine, reader: SqliteReader, tmp_path: Path
) -> None:
    client = opened(engine, reader)
    client.text("text").insert(0, "a")
    ok(*apply(engine, push(client.update())))
    engine.close()
    again = kit.open_engine(tmp_path / "a.db")
    client.text("text").insert(0, "b")
    ok(*apply(again, push(client.update()), update("Note", 1, {"text": "bahello!"})))
    assert client_of(reader).row() == {"text": "bahello!"}
    again.close()


def test_a_document_has_a_largest_size(
    engine: SqliteEngine, reader: SqliteReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", 2_000)
    client = opened(engine, reader)
    client.text("text").insert(0, random.Random(1).randbytes(2_000).hex())
    assert code(*apply(engine, push(client.update()))) == "LIMIT_EXCEEDED"
    assert note(reader) == "hello"
    ok(*apply(engine, update("Note", 1, {"text": "y" + random.Random(1).randbytes(2_000).hex()})))
    assert client_of(reader).row() == {"text": note(reader)}, "the row itself may be written"


def test_a_history_has_a_largest_size(
    engine: SqliteEngine, reader: SqliteReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_HISTORY_BYTES", 2_000)
    client, codes, chance = opened(engine, reader), [], random.Random(1)
    for _ in range(100):
        client.text("text").insert(chance.randrange(5), chance.randbytes(20).hex())
        client.text("text").delete(0, 40)
        codes.append(code(*apply(engine, push(client.update()))))
    taken = codes.index("LIMIT_EXCEEDED")
    assert taken > 20, "what the updates take by themselves does not count"
    assert set(codes[taken + 1:]) <= {"LIMIT_EXCEEDED", "CRDT_HISTORY_MISSING"}
    ok(*apply(engine, update("Note", 1, {"text": "goes on"})))
    assert client_of(reader).row() == {"text": "goes on"}


def test_reserved_kinds_have_no_documents(tmp_path: Path) -> None:
    fields = (Field("n", FieldType.INT, optional=True, unique=False, crdt="counter"),)
    entities = (Entity("Odd", fields), Entity("Off", kit.NOTE.fields, crdt=False))
    policies = tuple(Policy(e.name, entity=e.name, allow="true") for e in entities)
    manifest = Manifest("m", "1", entities, policies=policies)
    engine = kit.open_engine(tmp_path / "b.db", manifest=manifest)
    for name in ("Odd", "Off"):
        row = b'{"id":"%s"}' % ID.encode()
        ok(*apply(engine, InsertRow(name, ID, (None,), row)))
    assert code(*apply(engine, OpenDocument("Odd", ID))) == "CRDT_APPLY_FAILED"
    assert code(*apply(engine, OpenDocument("Off", ID))) == "NOT_FOUND"
    engine.close()


def test_few_documents_stay_decoded(
    engine: SqliteEngine, reader: SqliteReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOCUMENTS_DECODED", 3)
    numbers = range(1, 11)
    for number in numbers:
        ok(*apply(engine, insert("Note", number, {"text": "a"}),
                  OpenDocument("Note", row_id(number))))
    ok(*apply(engine, *(update("Note", n, {"text": f"a{n}"}) for n in numbers)))
    for number in numbers:
        assert client_of(reader, number=number).row() == {"text": f"a{number}"}


def test_a_row_set_never_says_no_to_what_is_in_it() -> None:
    rows = RowSet()
    assert ("Note", "a") not in rows
    inside = [("Note", str(n)) for n in range(2_000)]
    for key in inside:
        rows.add(key)
    assert all(key in rows for key in inside)
    assert sum(("Task", str(n)) in rows for n in range(2_000)) < 20


def test_the_cache_counts_what_it_has() -> None:
    cache = DocumentCache()
    cached = CachedDocument(document.Document(kit.NOTE), None, 0, 1_000)
    for key in (("a", "1"), ("a", "2"), ("b", "1")):
        cache.put(key, cached)
    cache.touch(("b", "1"))
    cache.undo()
    cache.drop_entity("a")
    assert cache._bytes == 0 and cache.find(("a", "1")) is None
    assert total(metrics.DOCUMENTS_DECODED) == 0


# --- The check before the writer -----------------------------------------------------------


def test_an_update_that_swells_is_refused_before_the_writer() -> None:
    doc = LoroDoc()
    doc.get_map("row").insert_container("text", LoroText()).insert(0, "a" * 5_000_000)
    client = LoroClient()
    client.doc = doc
    bomb = client.everything()
    assert len(bomb) < limits.DOCUMENT_UPDATE_BYTES
    with pytest.raises(LimitExceeded):
        document.check(bomb)


_NESTED = """
from loro import ExportMode, LoroDoc, LoroMap, VersionVector
from pylon.crdt import document
from tests.support.storage import NOTE
doc = LoroDoc()
inner = doc.get_map("row")
for _ in range(10_000):
    inner = inner.insert_container("k", LoroMap())
doc.commit()
update = doc.export(ExportMode.Updates(VersionVector()))
document.check(update)
merging = document.Document(NOTE)
merging.merge(update)
assert merging.find_differences({}) == {}
assert document.Document(NOTE, (merging.snapshot(),)).find_differences({}) == {}
print("alive")
"""


@pytest.mark.usefixtures("processes")
def test_containers_within_containers_kill_no_process() -> None:
    """Loro puts a whole value together by recursion, and overruns the stack."""
    done = subprocess.run(
        [sys.executable, "-c", _NESTED], cwd=Path(__file__).parent.parent, check=False,
        capture_output=True, text=True,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_what_is_not_loros_passes_through() -> None:
    class OwnError(BaseException):
        pass

    for error in (OwnError(), KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)), document._loro():
            raise error
    with pytest.raises(CrdtDecodeFailed), document._loro():
        raise BaseException("as loro does")  # noqa: TRY002


# --- Many editors --------------------------------------------------------------------------

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
        opened(engine, reader, "start")
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
                ok(*apply(engine, update("Note", 1, {"text": (note(reader) or "") + text})))
            elif what == "evict":
                engine._batches._documents._cache.drop(NOTE)
        for editor in editors:
            ok(*apply(engine, push(editor.everything())))
        for who in range(3):
            hear(who)
        texts = {editor.text("text").to_string() for editor in editors}
        assert texts == {note(reader)}
        assert client_of(reader).row() == {"text": note(reader)}
    finally:
        if reader is not None:
            reader.close()
        engine.close()
