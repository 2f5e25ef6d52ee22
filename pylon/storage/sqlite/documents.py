"""Rows' documents in SQL: what is stored, and what readers ask for (spec/realtime.md §6.1).

`_pylon_crdt_snapshots` has one snapshot for each row with a document, as the other server keeps
it. What came after it is in `_pylon_crdt_updates`: `number` counts through all documents and is
never used again, `prev` is the number of the same document's update before (0: there was none,
-1: whoever has the document must read it anew), `seq` the head of the change log when the update
was made, so that nobody sees it before the row's own event.

Invariants: snapshot and updates merged are the document, in whatever order and however often;
of each document the newest update stays when the others are folded into the snapshot, so that
"what changed since number n" finds every document that changed. Written by
`pylon.storage.sqlite.document_writes` and the schema only.
"""

from __future__ import annotations

from typing import Any, Final

import apsw

from pylon.storage.contract import DocumentUpdate, StoredDocument

_SNAPSHOT: Final = "SELECT snapshot FROM _pylon_crdt_snapshots WHERE entity = ? AND row_id = ?"
_UPDATES: Final = (
    "SELECT number, data FROM _pylon_crdt_updates WHERE entity = ? AND row_id = ? ORDER BY number"
)
_AFTER: Final = (
    "SELECT number, prev, seq, entity, row_id FROM _pylon_crdt_updates "
    "WHERE number > ? ORDER BY number LIMIT ?"
)
_HEAD: Final = "SELECT seq FROM sqlite_sequence WHERE name = '_pylon_crdt_updates'"
_DATA: Final = "SELECT data FROM _pylon_crdt_updates WHERE number = ?"


def stored_document(
    conn: apsw.Connection, entity: str, row_id: str
) -> StoredDocument | None:
    """What is stored of a row's document; None if it has none."""
    key = (entity, row_id)
    snapshot: bytes | None = conn.execute(_SNAPSHOT, key).get
    if snapshot is None:
        return None
    updates: list[Any] = conn.execute(_UPDATES, key).fetchall()
    number = updates[-1][0] if updates else 0
    # The update that stands for "read the whole" has no bytes.
    return StoredDocument(snapshot, tuple(data for _, data in updates if data), number)


def updates_after(conn: apsw.Connection, number: int, limit: int) -> list[DocumentUpdate]:
    """The first `limit` updates of any document after `number`, ascending."""
    return [DocumentUpdate(*row) for row in conn.execute(_AFTER, (number, limit))]


def update_data(conn: apsw.Connection, number: int) -> bytes | None:
    """The bytes of an update; None if they are in a snapshot by now."""
    data: bytes | None = conn.execute(_DATA, (number,)).get
    return data


def head_number(conn: apsw.Connection) -> int:
    """The newest update's number; 0 before the first."""
    return int(conn.execute(_HEAD).get or 0)


def rename_entity(conn: apsw.Connection, old: str, new: str) -> None:
    """The documents follow their rows."""
    for table in ("_pylon_crdt_snapshots", "_pylon_crdt_updates"):
        conn.execute(f"UPDATE {table} SET entity = ? WHERE entity = ?", (new, old))


def drop_entity(conn: apsw.Connection, entity: str) -> None:
    """The documents go with their rows."""
    for table in ("_pylon_crdt_snapshots", "_pylon_crdt_updates"):
        conn.execute(f"DELETE FROM {table} WHERE entity = ?", (entity,))
