"""Documents in SQL: stores and reads the CRDT documents of rows (spec/realtime.md §6.1).

`_pylon_crdt_snapshots` has one snapshot for each row with a document, in the format of the Rust
server. `_pylon_crdt_updates` has the later updates. `number` counts the updates of all documents
and is never reused. `prev` is the number of the document's previous update (0: none, -1:
subscribers must reload the document). `seq` is the head of the change log at the update, so that no
client sees it before the row's own event. `_pylon_crdt_views` has, for each document, the versions
at which a field of the read policy changed, and the later values of these fields. Text from before
such a version may have been hidden from a reader.

Invariants: merging the snapshot and the updates, in any order and any number of times, yields the
document. When updates are folded into the snapshot, the newest update of each document stays. So
"updates after number n" finds every document that changed. `transaction` and the schema write
these tables; `reader` reads them.
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
    """Return the stored parts of a row's document; None if it has none."""
    key = (entity, row_id)
    snapshot: bytes | None = conn.execute(_SNAPSHOT, key).get
    if snapshot is None:
        return None
    updates: list[Any] = conn.execute(_UPDATES, key).fetchall()
    number = updates[-1][0] if updates else 0
    # An update with `prev` -1 has no bytes.
    views = tuple(DocumentView(*view) for view in conn.execute(_VIEWS, key))
    return StoredDocument(snapshot, tuple(data for _, data in updates if data), number, views)


def updates_after(conn: apsw.Connection, number: int, limit: int) -> list[DocumentUpdate]:
    """Return the first `limit` updates of all documents after `number`, ascending."""
    return [DocumentUpdate(*row) for row in conn.execute(_AFTER, (number, limit))]


def update_data(conn: apsw.Connection, number: int) -> bytes | None:
    """Return the bytes of an update; None if it was folded into a snapshot."""
    data: bytes | None = conn.execute(_DATA, (number,)).get
    return data


def head_number(conn: apsw.Connection) -> int:
    """Return the number of the newest update; 0 before the first."""
    return int(conn.execute(_HEAD).get or 0)


def keys(conn: apsw.Connection) -> Iterator[DocumentKey]:
    """Yield the keys of the rows that have a document."""
    for entity, row_id in conn.execute("SELECT entity, row_id FROM _pylon_crdt_snapshots"):
        yield str(entity), str(row_id)


def put_snapshot(conn: apsw.Connection, key: DocumentKey, snapshot: bytes, now_s: int) -> None:
    """Store a whole document; it replaces the previous snapshot."""
    # The Rust server uses this format of times.
    at = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conn.execute(_PUT_SNAPSHOT, (*key, snapshot, at))


def append_update(
    conn: apsw.Connection, key: DocumentKey, prev: int, seq: int, data: bytes
) -> int:
    """Store an update. Return its number."""
    conn.execute(_PUT_UPDATE, (*key, prev, seq, data))
    return conn.last_insert_rowid()


def drop_updates_before(conn: apsw.Connection, key: DocumentKey, number: int) -> None:
    """Remove the updates of a document below a number."""
    conn.execute(_FOLD, (*key, number))


def last_view(conn: apsw.Connection, key: DocumentKey) -> tuple[int | None, int]:
    """Return the number of the newest view of a document (or None), and how many it has."""
    found: tuple[int | None, int] = conn.execute(_LAST_VIEW, key).get
    return found


def put_view(
    conn: apsw.Connection, key: DocumentKey, number: int, view: DocumentView
) -> None:
    """Store a view under its number; it replaces one with the same number."""
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
    """Delete the document of a row."""
    for table in _TABLES:
        conn.execute(f"DELETE FROM {table} WHERE entity = ? AND row_id = ?", (entity, row_id))


def rename_entity(conn: apsw.Connection, old: str, new: str) -> None:
    """Rename the entity of documents."""
    for table in _TABLES:
        conn.execute(f"UPDATE {table} SET entity = ? WHERE entity = ?", (new, old))


def drop_entity(conn: apsw.Connection, entity: str) -> None:
    """Delete all documents of an entity."""
    for table in _TABLES:
        conn.execute(f"DELETE FROM {table} WHERE entity = ?", (entity,))
