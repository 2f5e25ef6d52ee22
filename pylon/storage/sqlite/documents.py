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
`transaction` and the schema only.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import apsw

from pylon.storage.core.transaction import DocumentKey
from pylon.storage.records import DocumentUpdate, DocumentView, StoredDocument

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
_PUT_SNAPSHOT: Final = (
    "INSERT OR REPLACE INTO _pylon_crdt_snapshots (entity, row_id, snapshot, updated_at) "
    "VALUES (?, ?, ?, ?)"
)
_PUT_UPDATE: Final = (
    "INSERT INTO _pylon_crdt_updates (entity, row_id, prev, seq, data) VALUES (?, ?, ?, ?, ?)"
)
_FOLD: Final = "DELETE FROM _pylon_crdt_updates WHERE entity = ? AND row_id = ? AND number < ?"
_LAST_VIEW: Final = (
    "SELECT max(number), count(*) FROM _pylon_crdt_views WHERE entity = ? AND row_id = ?"
)
_PUT_VIEW: Final = "REPLACE INTO _pylon_crdt_views VALUES (?, ?, ?, ?, ?, ?)"
_TABLES: Final = ("_pylon_crdt_snapshots", "_pylon_crdt_updates", "_pylon_crdt_views")
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


def keys(conn: apsw.Connection) -> Iterator[DocumentKey]:
    """The rows that have a document."""
    for entity, row_id in conn.execute("SELECT entity, row_id FROM _pylon_crdt_snapshots"):
        yield str(entity), str(row_id)


def put_snapshot(conn: apsw.Connection, key: DocumentKey, snapshot: bytes, now_s: int) -> None:
    """Store a whole document in place of the snapshot before."""
    # The published server writes times like that.
    at = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conn.execute(_PUT_SNAPSHOT, (*key, snapshot, at))


def append_update(
    conn: apsw.Connection, key: DocumentKey, prev: int, seq: int, data: bytes
) -> int:
    """Store an update; its number."""
    conn.execute(_PUT_UPDATE, (*key, prev, seq, data))
    return conn.last_insert_rowid()


def drop_updates_before(conn: apsw.Connection, key: DocumentKey, number: int) -> None:
    """Remove the updates of a document below a number."""
    conn.execute(_FOLD, (*key, number))


def last_view(conn: apsw.Connection, key: DocumentKey) -> tuple[int | None, int]:
    """The number of the newest view of a document, and how many there are."""
    found: tuple[int | None, int] = conn.execute(_LAST_VIEW, key).get
    return found


def put_view(
    conn: apsw.Connection, key: DocumentKey, number: int, view: DocumentView
) -> None:
    """Store a view under its number, in place of the one before."""
    conn.execute(_PUT_VIEW, (*key, number, view.before, view.after, view.facts))


def drop_views_before(conn: apsw.Connection, key: DocumentKey, number: int) -> None:
    """Remove the views of a document below a number."""
    conn.execute(
        "DELETE FROM _pylon_crdt_views WHERE entity = ? AND row_id = ? AND number < ?",
        (*key, number),
    )


def forget_views(conn: apsw.Connection, entity: str, facts: str) -> None:
    """Replace the views of each document of an entity by one with these facts."""
    conn.execute("DELETE FROM _pylon_crdt_views WHERE entity = ?", (entity,))
    conn.execute(
        "INSERT INTO _pylon_crdt_views SELECT entity, row_id, 0, x'', x'', ? "
        "FROM _pylon_crdt_snapshots WHERE entity = ?", (facts, entity),
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
