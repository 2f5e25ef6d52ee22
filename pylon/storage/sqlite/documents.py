"""Rows' documents in SQL: what is stored, and what readers ask for (spec/realtime.md §6.1).

`_pylon_crdt_snapshots` has one snapshot for each row with a document, as the other server keeps
it. What came after it is in `_pylon_crdt_updates`: `number` counts through all documents and is
never used again, `prev` is the number of the same document's update before (0: there was none,
-1: whoever has the document must read it anew), `seq` the head of the change log when the update
was made, so that nobody sees it before the row's own event. `_pylon_crdt_views` has, for each
document, the versions at which a field of the read rule changed, and the fields' values since:
text from before such a version may have been hidden from a reader.

Invariants: snapshot and updates merged are the document, in whatever order and however often;
of each document the newest update stays when the others are folded into the snapshot, so that
"what changed since number n" finds every document that changed. Written by
`pylon.storage.sqlite.document_writes` and the schema only.
"""

from __future__ import annotations

from typing import Any, Final

import apsw

from pylon import limits
from pylon.storage.interface import DocumentUpdate, DocumentView, StoredDocument

_SNAPSHOT: Final = "SELECT snapshot FROM _pylon_crdt_snapshots WHERE entity = ? AND row_id = ?"
_UPDATES: Final = (
    "SELECT number, data FROM _pylon_crdt_updates WHERE entity = ? AND row_id = ? ORDER BY number"
)
_AFTER: Final = (
    "SELECT number, prev, seq, entity, row_id FROM _pylon_crdt_updates "
    "WHERE number > ? ORDER BY number LIMIT ?"
)
_HEAD: Final = "SELECT seq FROM sqlite_sequence WHERE name = '_pylon_crdt_updates'"
_VIEWS: Final = (
    "SELECT before, after, facts FROM _pylon_crdt_views WHERE entity = ? AND row_id = ? "
    "ORDER BY number"
)
_LAST_VIEW: Final = (
    "SELECT max(number), count(*) FROM _pylon_crdt_views WHERE entity = ? AND row_id = ?"
)
_PUT_VIEW: Final = "REPLACE INTO _pylon_crdt_views VALUES (?, ?, ?, ?, ?, ?)"
_TABLES: Final = ("_pylon_crdt_snapshots", "_pylon_crdt_updates", "_pylon_crdt_views")
UNKNOWN: Final = "null"  # facts
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
    views = tuple(DocumentView(*view) for view in conn.execute(_VIEWS, key))
    return StoredDocument(snapshot, tuple(data for _, data in updates if data), number, views)


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


def put_view(
    conn: apsw.Connection, entity: str, row_id: str, view: DocumentView, facts_before: str
) -> None:
    """Note the readers of a document's row from now on, and with the first such note the readers
    before it."""
    key = (entity, row_id)
    found: list[Any] = conn.execute(_LAST_VIEW, key).fetchall()
    last, count = found[0]
    if last is None:
        conn.execute(_PUT_VIEW, (*key, 0, b"", b"", facts_before))
        last, count = 0, 1
    if count >= limits.DOCUMENT_VIEWS:  # the readers of the older half are no longer known
        oldest = last - limits.DOCUMENT_VIEWS // 2
        conn.execute(
            "DELETE FROM _pylon_crdt_views WHERE entity = ? AND row_id = ? AND number < ?",
            (*key, oldest),
        )
        conn.execute(_PUT_VIEW, (*key, oldest, b"", b"", UNKNOWN))
    conn.execute(_PUT_VIEW, (*key, last + 1, view.before, view.after, view.facts))


def forget_views(conn: apsw.Connection, entity: str) -> None:
    """Mark the readers of all present content of an entity's documents as unknown."""
    conn.execute("DELETE FROM _pylon_crdt_views WHERE entity = ?", (entity,))
    conn.execute(
        "INSERT INTO _pylon_crdt_views SELECT entity, row_id, 0, x'', x'', ? "
        "FROM _pylon_crdt_snapshots WHERE entity = ?", (UNKNOWN, entity),
    )


def delete_document(conn: apsw.Connection, entity: str, row_id: str) -> None:
    """The document goes with its row."""
    for table in _TABLES:
        conn.execute(f"DELETE FROM {table} WHERE entity = ? AND row_id = ?", (entity, row_id))


def rename_entity(conn: apsw.Connection, old: str, new: str) -> None:
    """The documents follow their rows."""
    for table in _TABLES:
        conn.execute(f"UPDATE {table} SET entity = ? WHERE entity = ?", (new, old))


def drop_entity(conn: apsw.Connection, entity: str) -> None:
    """The documents go with their rows."""
    for table in _TABLES:
        conn.execute(f"DELETE FROM {table} WHERE entity = ?", (entity,))
