"""Documents in a store: short forms of what the tests of document writes do again and again."""

from __future__ import annotations

from typing import Any

from pylon.auth_context import ADMIN, AuthContext
from pylon.storage.interface import Reader, WriteEngine
from pylon.storage.ops import OpenDocument, PushDocument, WriteReply
from tests.support import storage as kit
from tests.support.documents import LoroClient
from tests.support.storage import apply, insert, row_id

ID = row_id(1)
NOTE = ("Note", ID)


def ok(*replies: WriteReply) -> WriteReply:
    """Check that no write failed; the last reply."""
    for reply in replies:
        assert reply.error is None, reply.error
    return replies[-1]


def client_of(reader: Reader, entity: str = "Note", number: int = 1) -> LoroClient:
    """A client that has just read a row's document."""
    stored = reader.document(entity, row_id(number))
    assert stored is not None
    return LoroClient(stored.snapshot, *stored.updates)


def push(
    update: bytes, entity: str = "Note", number: int = 1, auth: AuthContext = ADMIN
) -> PushDocument:
    """The operation that merges `update` into a row's document."""
    return PushDocument(entity, row_id(number), update, auth)


def open_note(engine: WriteEngine, reader: Reader, text: str = "hello") -> LoroClient:
    """A note with a document, and a client that has it."""
    ok(*apply(engine, insert("Note", 1, {"text": text}), OpenDocument(*NOTE)))
    return client_of(reader)


def note_text(reader: Reader) -> Any:
    """The text of the first note, as its row has it."""
    return kit.rows_of(reader, "Note")[ID]["text"]


def pushed_to_task(reader: Reader, **fields: Any) -> bytes:
    """An update of the first task's document that sets `fields`."""
    client = client_of(reader, "Task")
    for name, value in fields.items():
        client.doc.get_map("row").insert(name, value)
    return client.update()
