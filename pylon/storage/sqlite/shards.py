"""Shards in SQL: stores the saved states and the placements of shards, in `_pylon_shards`.

A row has the saved state (`data`, NULL for a shard that was only moved) and the worker that the
shard was moved to (`home`, NULL for the worker that its id maps to). Functions on a connection; the
caller translates apsw's errors. Called by `transaction` and `reader`.
"""

from __future__ import annotations

import apsw

from pylon.storage.records import StoredShard


def put(conn: apsw.Connection, shard_id: str, tick: int, data: bytes, now_s: int) -> None:
    """Store the state of a shard; it replaces the previous one."""
    conn.execute(
        "INSERT INTO _pylon_shards (id, tick, data, saved_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET tick = excluded.tick, data = excluded.data, "
        "saved_at = excluded.saved_at",
        (shard_id, tick, data, now_s),
    )


def move(conn: apsw.Connection, shard_id: str, home: str | None, now_s: int) -> None:
    """Store the worker that runs a shard; None: the worker that its id maps to."""
    conn.execute(
        "INSERT INTO _pylon_shards (id, tick, home, saved_at) VALUES (?, 0, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET home = excluded.home",
        (shard_id, home, now_s),
    )


def drop(conn: apsw.Connection, shard_id: str) -> int:
    """Remove a shard. Return how many were removed (0 or 1)."""
    conn.execute("DELETE FROM _pylon_shards WHERE id = ?", (shard_id,))
    return conn.changes()


def find(conn: apsw.Connection, shard_id: str) -> StoredShard | None:
    """Return a stored shard, or None."""
    row = conn.execute(
        "SELECT id, tick, data, home, saved_at FROM _pylon_shards WHERE id = ?", (shard_id,)
    ).fetchone()
    return None if row is None else StoredShard(*row)


def listed(conn: apsw.Connection, limit: int) -> list[StoredShard]:
    """Return at most `limit` stored shards by id, without their states."""
    return [
        StoredShard(shard_id, tick, None, home, saved_at)
        for shard_id, tick, home, saved_at in conn.execute(
            "SELECT id, tick, home, saved_at FROM _pylon_shards ORDER BY id LIMIT ?", (limit,)
        )
    ]
