"""Pushes that the writer refuses: they leave nothing behind in the row or its document."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loro import LoroDoc, LoroList, LoroText

from pylon import limits
from pylon.crdt import document
from pylon.errors import CrdtDecodeFailed, LimitExceeded
from pylon.storage.interface import Reader, WriteEngine
from pylon.storage.ops import OpenDocument
from tests.support import storage as kit
from tests.support.document_store import (
    ID,
    client_of,
    note_text,
    ok,
    open_note,
    push,
    pushed_to_task,
)
from tests.support.documents import LoroClient, sealed
from tests.support.storage import ADA, BOB, apply, code, task, update

pytestmark = pytest.mark.stores


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
    engine: WriteEngine, reader: Reader, fields: dict[str, Any], refusal: str
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
    engine: WriteEngine, reader: Reader
) -> None:
    ok(*apply(engine, task(1, rank=1), OpenDocument("Task", ID)))
    client = client_of(reader, "Task")
    client.doc.get_map("row").insert_container("rank", LoroText()).insert(0, "3")
    assert code(*apply(engine, push(client.update(), "Task"))) == "INVALID_VALUE"
    client = client_of(reader, "Task")
    client.doc.get_map("row").insert_container("rank", LoroList())
    ok(*apply(engine, push(client.update(), "Task")))
    assert kit.rows_of(reader, "Task")[ID]["rank"] is None


def test_a_push_to_a_hidden_row_is_not_found(
    engine: WriteEngine, reader: Reader
) -> None:
    ok(*apply(engine, task(1), OpenDocument("Task", ID)))
    data = pushed_to_task(reader, title="b")
    assert code(*apply(engine, push(data, "Task", auth=BOB))) == "NOT_FOUND"
    assert code(*apply(engine, push(data, "Task", 9))) == "NOT_FOUND"


def test_missing_history_is_refused_and_the_whole_taken(
    engine: WriteEngine, reader: Reader
) -> None:
    client = open_note(engine, reader)
    client.text("text").insert(0, "lost ")
    client.update()
    client.text("text").insert(0, "kept ")
    assert code(*apply(engine, push(client.update()))) == "CRDT_HISTORY_MISSING"
    assert note_text(reader) == "hello"
    ok(*apply(engine, push(client.everything())))
    assert note_text(reader) == "kept lost hello"


@pytest.mark.sqlite  # its connection
def test_an_undone_batch_leaves_nothing_in_the_documents(
    engine: WriteEngine, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_note(engine, reader)
    client.text("text").insert(0, "x")
    data = client.update()
    conn = engine._conn
    conn.execute("CREATE TRIGGER full BEFORE INSERT ON _pylon_change_log BEGIN "
                 "SELECT RAISE(ABORT, 'full'); END")
    assert code(*apply(engine, push(data))) == "STORE_UNAVAILABLE"
    conn.execute("DROP TRIGGER full")
    ok(*apply(engine, update("Note", 1, {"text": "hello!"})))
    assert client_of(reader).row() == {"text": "hello!"} == {"text": note_text(reader)}


# Loro panics again when a document that panicked is freed, which nobody can catch.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_bytes_that_are_no_update(
    engine: WriteEngine, reader: Reader, monkeypatch: pytest.MonkeyPatch
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
    client = open_note(engine, reader, "hello " * 20)
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
        assert client_of(reader).row().get("text") == note_text(reader)
    assert refused > 200
    ok(*apply(engine, update("Note", 1, {"text": "alive"})))
    assert client_of(reader).row()["text"] == "alive"


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
