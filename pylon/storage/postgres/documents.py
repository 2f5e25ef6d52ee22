"""Documents of the writer: the statements on the tables of CRDT documents (spec/realtime.md §6.1).

The tables are those of `pylon.storage.sqlite.documents`. `number` counts the updates of all
documents; it is taken under the writers' lock, from the sequence `_pylon_document_seq`.

Implements `pylon.storage.core.transaction.DocumentRows`. Made by `transaction`; `prefetch` shares a
statement.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from psycopg.pq.abc import PGresult

from pylon.storage.core.transaction import DocumentKey
from pylon.storage.postgres.batch import Batch
from pylon.storage.postgres.parameters import bytea_of
from pylon.storage.records import DocumentView, StoredDocument

TABLES: Final = ("_pylon_crdt_snapshots", "_pylon_crdt_updates", "_pylon_crdt_views")
_OF_ROW: Final = "WHERE entity = $1 AND row_id = $2"

# The documents of rows: the number of the newest update, NULL for none.
NUMBERS: Final = (
    "SELECT s.entity, s.row_id, (SELECT max(number) FROM _pylon_crdt_updates AS u "
    "WHERE u.entity = s.entity AND u.row_id = s.row_id) FROM _pylon_crdt_snapshots AS s "
    "JOIN unnest($1::text[], $2::text[]) AS asked (entity, row_id) USING (entity, row_id)"
)
SNAPSHOT: Final = f"SELECT snapshot FROM _pylon_crdt_snapshots {_OF_ROW}"
UPDATES: Final = f"SELECT number, data FROM _pylon_crdt_updates {_OF_ROW} ORDER BY number"
VIEWS: Final = f"SELECT before, after, facts FROM _pylon_crdt_views {_OF_ROW} ORDER BY number"
_PUT_SNAPSHOT: Final = (
    "INSERT INTO _pylon_crdt_snapshots (entity, row_id, snapshot, updated_at) "
    "VALUES ($1, $2, $3, $4) ON CONFLICT (entity, row_id) DO UPDATE SET "
    "snapshot = excluded.snapshot, updated_at = excluded.updated_at"
)
_PUT_UPDATE: Final = (
    "INSERT INTO _pylon_crdt_updates (entity, row_id, number, prev, seq, data) "
    "VALUES ($1, $2, $3, $4, $5, $6)"
)
_FOLD: Final = f"DELETE FROM _pylon_crdt_updates {_OF_ROW} AND number < $3"
_LAST_VIEW: Final = f"SELECT max(number), count(*) FROM _pylon_crdt_views {_OF_ROW}"
_PUT_VIEW: Final = (
    "INSERT INTO _pylon_crdt_views (entity, row_id, number, before, after, facts) "
    "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (entity, row_id, number) DO UPDATE SET "
    "before = excluded.before, after = excluded.after, facts = excluded.facts"
)
_DROP_VIEWS: Final = f"DELETE FROM _pylon_crdt_views {_OF_ROW} AND number < $3"
_FORGET_VIEWS: Final = (
    "DELETE FROM _pylon_crdt_views WHERE entity = $1",
    "INSERT INTO _pylon_crdt_views (entity, row_id, number, before, after, facts) "
    "SELECT entity, row_id, 0, '', '', $2 FROM _pylon_crdt_snapshots WHERE entity = $1",
)
_DELETE: Final = tuple(f"DELETE FROM {table} {_OF_ROW}" for table in TABLES)
DROP_ENTITY: Final = tuple(f"DELETE FROM {table} WHERE entity = $1" for table in TABLES)
_KEYS: Final = "SELECT entity, row_id FROM _pylon_crdt_snapshots"
_UNKNOWN: Final = object()


class PostgresDocuments:
    """See the module."""

    __slots__ = ("_batch",)

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def document_number(self, key: DocumentKey) -> int | None:
        """See `DocumentRows`. That a row has none is certain only with a guard or the lock; any
        other answer takes the lock."""
        batch = self._batch
        known: Any = batch.overlay.documents.get(key, _UNKNOWN)
        if known is None or (known is not _UNKNOWN and batch.is_locked):
            return known  # type: ignore[no-any-return]
        if known is not _UNKNOWN:
            batch.lock()
        found = batch.read(NUMBERS, ([key[0]], [key[1]]))
        number = int(found.get_value(0, 2) or 0) if found.ntuples else None
        batch.overlay.documents[key] = number
        if number is not None and not batch.is_locked:
            return self.document_number(key)
        return number

    def document_keys(self) -> Iterable[DocumentKey]:
        """See `DocumentRows`."""
        found = self._batch.writer.get().execute(_KEYS)
        for n in range(found.ntuples):
            yield (found.get_value(n, 0) or b"").decode(), (found.get_value(n, 1) or b"").decode()

    def find_document(self, key: DocumentKey) -> StoredDocument | None:
        """See `DocumentRows`."""
        snapshot, updates, views = self._batch.scan_all(
            [(SNAPSHOT, key), (UPDATES, key), (VIEWS, key)]
        )
        if not snapshot.ntuples:
            return None
        return stored_document(snapshot, updates, views)

    def put_snapshot(self, key: DocumentKey, snapshot: bytes, now_s: int) -> None:
        """See `DocumentRows`."""
        batch = self._batch
        batch.lock()
        at = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        batch.gather(_PUT_SNAPSHOT, (*key, snapshot, at))
        known = batch.overlay.documents
        if known.get(key) is None:
            batch.overlay.put(known, key, 0)
        batch.changes_documents = True

    def append_update(self, key: DocumentKey, prev: int, seq: int, data: bytes) -> int:
        """See `DocumentRows`."""
        batch = self._batch
        batch.lock()
        batch.document_number += 1
        number = batch.document_number
        if seq >= batch.origin:
            seq += batch.base - batch.origin
        batch.gather(_PUT_UPDATE, (*key, number, prev, seq, data))
        batch.overlay.put(batch.overlay.documents, key, number)
        batch.changes_documents = True
        return number

    def drop_updates_before(self, key: DocumentKey, number: int) -> None:
        """See `DocumentRows`."""
        self._batch.gather(_FOLD, (*key, number))

    def last_view(self, key: DocumentKey) -> tuple[int | None, int]:
        """See `DocumentRows`."""
        found = self._batch.scan(_LAST_VIEW, key)
        number = found.get_value(0, 0)
        return None if number is None else int(number), int(found.get_value(0, 1) or 0)

    def put_view(self, key: DocumentKey, number: int, view: DocumentView) -> None:
        """See `DocumentRows`."""
        self._batch.gather(_PUT_VIEW, (*key, number, view.before, view.after, view.facts))

    def drop_views_before(self, key: DocumentKey, number: int) -> None:
        """See `DocumentRows`."""
        self._batch.gather(_DROP_VIEWS, (*key, number))

    def forget_views(self, entity: str, facts: str) -> None:
        """See `DocumentRows`."""
        delete, insert = _FORGET_VIEWS
        self._batch.gather(delete, (entity,))
        self._batch.gather(insert, (entity, facts))

    def drop_document(self, key: DocumentKey) -> None:
        """See `DocumentRows`."""
        batch = self._batch
        batch.lock()
        for text in _DELETE:
            batch.gather(text, key)
        batch.overlay.put(batch.overlay.documents, key, None)

    def drop_documents(self, entity: str) -> None:
        """See `DocumentRows`."""
        batch = self._batch
        batch.lock()
        for text in DROP_ENTITY:
            batch.gather(text, (entity,))
        known = batch.overlay.documents
        for key in [key for key in known if key[0] == entity]:
            batch.overlay.put(known, key, None)


def stored_document(snapshot: PGresult, updates: PGresult, views: PGresult) -> StoredDocument:
    """Return the stored parts of a document from the answers of `SNAPSHOT`, `UPDATES` and `VIEWS`;
    the first one has a row."""
    last = updates.ntuples - 1
    data = [bytea_of(updates.get_value(n, 1) or b"") for n in range(updates.ntuples)]
    return StoredDocument(
        bytea_of(snapshot.get_value(0, 0) or b""),
        tuple(part for part in data if part),  # an update with `prev` -1 has no bytes
        int(updates.get_value(last, 0) or 0) if last >= 0 else 0,
        tuple(
            DocumentView(
                bytea_of(views.get_value(n, 0) or b""), bytea_of(views.get_value(n, 1) or b""),
                (views.get_value(n, 2) or b"").decode(),
            )
            for n in range(views.ntuples)
        ),
    )
