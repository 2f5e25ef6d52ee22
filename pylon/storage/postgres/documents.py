"""Documents of the writer: the statements on the tables of CRDT documents (spec/realtime.md §6.1).

The tables are those of `pylon.storage.sqlite.documents`. `number` counts the updates of all
documents; it is taken under the writers' lock, from the sequence `_pylon_document_seq`.

Called by `transaction`.
"""

from __future__ import annotations

from typing import Final

from psycopg.pq.abc import PGresult

from pylon.storage.postgres.names import DOCUMENT_SEQUENCE
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
PUT_SNAPSHOT: Final = (
    "INSERT INTO _pylon_crdt_snapshots (entity, row_id, snapshot, updated_at) "
    "VALUES ($1, $2, $3, $4) ON CONFLICT (entity, row_id) DO UPDATE SET "
    "snapshot = excluded.snapshot, updated_at = excluded.updated_at"
)
PUT_UPDATE: Final = (
    "INSERT INTO _pylon_crdt_updates (entity, row_id, number, prev, seq, data) "
    "VALUES ($1, $2, $3, $4, $5, $6)"
)
FOLD: Final = f"DELETE FROM _pylon_crdt_updates {_OF_ROW} AND number < $3"
LAST_VIEW: Final = f"SELECT max(number), count(*) FROM _pylon_crdt_views {_OF_ROW}"
PUT_VIEW: Final = (
    "INSERT INTO _pylon_crdt_views (entity, row_id, number, before, after, facts) "
    "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (entity, row_id, number) DO UPDATE SET "
    "before = excluded.before, after = excluded.after, facts = excluded.facts"
)
DROP_VIEWS: Final = f"DELETE FROM _pylon_crdt_views {_OF_ROW} AND number < $3"
FORGET_VIEWS: Final = (
    "DELETE FROM _pylon_crdt_views WHERE entity = $1",
    "INSERT INTO _pylon_crdt_views (entity, row_id, number, before, after, facts) "
    "SELECT entity, row_id, 0, '', '', $2 FROM _pylon_crdt_snapshots WHERE entity = $1",
)
DELETE: Final = tuple(f"DELETE FROM {table} {_OF_ROW}" for table in TABLES)
DROP_ENTITY: Final = tuple(f"DELETE FROM {table} WHERE entity = $1" for table in TABLES)
KEYS: Final = "SELECT entity, row_id FROM _pylon_crdt_snapshots"
NEWEST_NUMBER: Final = (
    f"(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {DOCUMENT_SEQUENCE})"
)
SET_NUMBER: Final = f"SELECT setval('{DOCUMENT_SEQUENCE}', $1)"


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
