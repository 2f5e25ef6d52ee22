"""Stored documents: folded updates, largest sizes, restarts, and documents that cannot be read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pylon import limits, metrics
from pylon.crdt import document
from pylon.manifest.model import Entity, Field, FieldType, Manifest, Policy
from pylon.storage.core.document_cache import CachedDocument, DocumentCache, RowSet
from pylon.storage.interface import Reader, WriteEngine
from pylon.storage.ops import InsertRow, OpenDocument
from tests.support import storage as kit
from tests.support import stores
from tests.support.document_store import ID, NOTE, client_of, note_text, ok, open_note, push
from tests.support.documents import LoroClient
from tests.support.measured import total
from tests.support.storage import apply, code, insert, row_id, update

pytestmark = pytest.mark.stores


def test_a_document_that_cannot_be_read_is_made_anew(
    engine: WriteEngine, reader: Reader, tmp_path: Path
) -> None:
    open_note(engine, reader)
    ok(*apply(engine, update("Note", 1, {"text": "kept"})))
    number = reader.document_number()
    engine.close()
    blob = "x'00'" if stores.current().name == stores.SQLITE else "'\\x00'"
    stores.run_sql(tmp_path / "a.db", f"UPDATE _pylon_crdt_snapshots SET snapshot = {blob}")
    again = kit.open_engine(tmp_path / "a.db")
    ok(*apply(again, update("Note", 1, {"text": "still kept"})))
    assert client_of(reader).row() == {"text": "still kept"}
    (change,) = reader.document_updates(number, 10)
    assert change.prev == -1, "who has the old one is told to read the new one"
    again.close()


def test_a_row_that_was_changed_without_its_document_is_right(
    engine: WriteEngine, reader: Reader, tmp_path: Path
) -> None:
    open_note(engine, reader)
    engine.close()
    stores.run_sql(
        tmp_path / "a.db",
        """UPDATE "Note" SET text = 'by hand', _json = replace(_json, '"hello"', '"by hand"')""",
    )
    again = kit.open_engine(tmp_path / "a.db")
    ok(*apply(again, OpenDocument(*NOTE)))
    assert client_of(reader).row() == {"text": "by hand"}
    again.close()


def test_updates_are_folded_into_the_snapshot(
    engine: WriteEngine, reader: Reader
) -> None:
    client = open_note(engine, reader, "")
    seen, number, most = "", 0, 0
    for step in range(limits.DOCUMENT_UPDATES + 10):
        client.text("text").insert(0, chr(97 + step % 26))
        seen = chr(97 + step % 26) + seen
        ok(*apply(engine, push(client.update())))
        stored = reader.document(*NOTE)
        assert stored is not None and stored.number > number
        number, most = stored.number, max(most, len(stored.updates))
    assert most == limits.DOCUMENT_UPDATES - 1 and len(stored.updates) < 20
    assert client_of(reader).row() == {"text": seen} == {"text": note_text(reader)}


def test_a_large_update_is_folded_at_once(engine: WriteEngine, reader: Reader) -> None:
    client = open_note(engine, reader)
    client.text("text").insert(0, random.Random(1).randbytes(30_000).hex())
    ok(*apply(engine, push(client.update())))
    stored = reader.document(*NOTE)
    assert stored is not None and len(stored.updates) == 1
    assert LoroClient(stored.snapshot).row() == client.row(), "the snapshot has it"


def test_documents_survive_a_restart(
    engine: WriteEngine, reader: Reader, tmp_path: Path
) -> None:
    client = open_note(engine, reader)
    client.text("text").insert(0, "a")
    ok(*apply(engine, push(client.update())))
    engine.close()
    again = kit.open_engine(tmp_path / "a.db")
    client.text("text").insert(0, "b")
    ok(*apply(again, push(client.update()), update("Note", 1, {"text": "bahello!"})))
    assert client_of(reader).row() == {"text": "bahello!"}
    again.close()


def test_a_document_has_a_largest_size(
    engine: WriteEngine, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_BYTES", 2_000)
    client = open_note(engine, reader)
    client.text("text").insert(0, random.Random(1).randbytes(2_000).hex())
    assert code(*apply(engine, push(client.update()))) == "LIMIT_EXCEEDED"
    assert note_text(reader) == "hello"
    ok(*apply(engine, update("Note", 1, {"text": "y" + random.Random(1).randbytes(2_000).hex()})))
    assert client_of(reader).row() == {"text": note_text(reader)}, "the row itself may be written"


def test_a_history_has_a_largest_size(
    engine: WriteEngine, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOCUMENT_HISTORY_BYTES", 2_000)
    client, codes, chance = open_note(engine, reader), [], random.Random(1)
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
    engine: WriteEngine, reader: Reader, monkeypatch: pytest.MonkeyPatch
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
