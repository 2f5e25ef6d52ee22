"""A commit that fails: nothing that the writer keeps in memory may be of the failed batch."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from pylon.clock import ManualClock
from tests.faults.write_journal import recorded
from tests.support.document_store import client_of, note_text, ok, open_note, push
from tests.support.storage import apply, code, open_engine, open_reader, task


@pytest.mark.parametrize("failure", [apsw.IOError("broken"), apsw.FullError("full")], ids=str)
def test_a_document_is_what_was_committed(tmp_path: Path, failure: apsw.Error) -> None:
    """SQLite ends the transaction by itself, and the writer kept the document that it had merged:
    later updates were built on one that was never stored, so readers could not apply them."""
    with recorded(tmp_path) as journal:
        engine = open_engine(tmp_path / "a.db", ManualClock(), boot_id="one")
        reader = open_reader(tmp_path / "a.db", clock=ManualClock())
        first = open_note(engine, reader)
        first.text("text").insert(5, " one")
        update = first.update()
        journal.failure = failure
        (reply,) = apply(engine, push(update))
        assert code(reply) == "STORE_UNAVAILABLE"
        journal.failure = None
        second = client_of(reader)
        second.text("text").insert(0, "two ")
        ok(*apply(engine, push(second.update())))
        assert client_of(reader).text("text").to_string() == note_text(reader) == "two hello"
        ok(*apply(engine, push(update)))
        assert client_of(reader).text("text").to_string() == note_text(reader) == "two hello one"
        engine.close()
        reader.close()


def test_the_next_batch_is_whole(tmp_path: Path) -> None:
    """The failed one leaves no row, no event and no seq."""
    with recorded(tmp_path) as journal:
        engine = open_engine(tmp_path / "a.db", ManualClock(), boot_id="one")
        ok(*apply(engine, task(1)))
        journal.failure = apsw.IOError("broken")
        replies = apply(engine, task(2), task(3))
        assert [code(reply) for reply in replies] == ["STORE_UNAVAILABLE"] * 2
        journal.failure = None
        (reply,) = apply(engine, task(3))
        assert (reply.error, reply.seq, engine.head) == (None, 2, 2)
        engine.close()
