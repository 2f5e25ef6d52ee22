"""Meta table: stores facts about a database that outlive a run, in `_pylon_meta`.

Keys: `lineage` (made with the database, kept by its backups), `schema_format`, `schema_writes` and
`indexes` (see `pylon.storage.postgres.schema.history`), `shape:<Entity>` (see
`pylon.storage.postgres.schema.backfill`), `search:<Entity>` (see
`pylon.storage.postgres.schema.search`), `references` (see `pylon.manifest.references`),
`constraints:<Entity>` (see `pylon.storage.core.broken_rows`), `document_rules:<Entity>`
(see `pylon.storage.core.stored_documents`), `key_probe` (see `key_probe`).
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres.statements import Session

PUT: Final = (
    "INSERT INTO _pylon_meta (key, value) VALUES ($1, $2) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


def get(session: Session, key: str) -> str | None:
    """Return the value of a key, or None."""
    result = session.execute("SELECT value FROM _pylon_meta WHERE key = $1", (key,))
    value = result.get_value(0, 0) if result.ntuples else None
    return None if value is None else value.decode()


def put(session: Session, key: str, value: str) -> None:
    """Set the value of a key, within the open transaction or in one of its own."""
    session.execute(PUT, (key, value))


def remove(session: Session, key: str) -> None:
    """Remove a key."""
    session.execute("DELETE FROM _pylon_meta WHERE key = $1", (key,))
