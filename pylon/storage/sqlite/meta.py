"""Meta table: stores facts about a database that outlive a run, in `_pylon_meta`.

Keys: `lineage` (made with the database, kept by its backups), `history_rows`, `schema_format`
and `indexes` (see `pylon.storage.sqlite.schema.history`), `shape:<Entity>` (see
`pylon.storage.sqlite.schema.apply`), `search:<Entity>` (see `pylon.storage.sqlite.schema.search`),
`references` (see `pylon.manifest.references`), `short_rows:<Entity>` (see `short_rows`),
`instants:<Entity>` (see `instants`), `constraints:<Entity>` (see
`pylon.storage.sqlite.schema.broken_rows`), `document_rules:<Entity>` (see
`pylon.storage.core.stored_documents`), `shard_generation` (see `shards`), `boot_id`, `clean` and
`durability` of the newest run (see `epochs`), `key_probe` (see `key_probe`).
"""

from __future__ import annotations

import apsw


def get(conn: apsw.Connection, key: str) -> str | None:
    """Return the value of a key, or None."""
    value = conn.execute("SELECT value FROM _pylon_meta WHERE key = ?", (key,)).get
    return None if value is None else str(value)


def put(conn: apsw.Connection, key: str, value: str) -> None:
    """Set the value of a key, within the open transaction."""
    conn.execute("INSERT OR REPLACE INTO _pylon_meta (key, value) VALUES (?, ?)", (key, value))


def delete(conn: apsw.Connection, key: str) -> None:
    """Delete a key, within the open transaction, if it is there."""
    conn.execute("DELETE FROM _pylon_meta WHERE key = ?", (key,))
