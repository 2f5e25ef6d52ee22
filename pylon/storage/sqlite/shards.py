"""`_pylon_shards`: simulations at rest, and where moved shards live.

A row has the saved state (`data`, NULL for a shard that was only moved) and the worker that the
shard was moved to (`home`, NULL for one that lives where its id says). Rows are written by the
engine and read by the shards workers. Functions on a connection; apsw's errors are the caller's
to translate.
"""

from __future__ import annotations

import apsw

from pylon.storage.records import StoredShard


def put(conn: apsw.Connection, shard_id: str, tick: int, data: bytes, now_s: int) -> None:
    """Keep a state in place of the one before."""
    conn.execute(
        "INSERT INTO _pylon_shards (id, tick, data, saved_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET tick = excluded.tick, data = excluded.data, "
        "saved_at = excluded.saved_at",
        (shard_id, tick, data, now_s),
    )


def move(conn: apsw.Connection, shard_id: str, home: str | None, now_s: int) -> None:
    """Have a shard live at worker `home`; None: where its id says."""
    conn.execute(
        "INSERT INTO _pylon_shards (id, tick, home, saved_at) VALUES (?, 0, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET home = excluded.home",
        (shard_id, home, now_s),
    )


def drop(conn: apsw.Connection, shard_id: str) -> int:
    """Forget a shard; how many there were (0 or 1)."""
    conn.execute("DELETE FROM _pylon_shards WHERE id = ?", (shard_id,))
    return conn.changes()


def find(conn: apsw.Connection, shard_id: str) -> StoredShard | None:
    """What is known of a shard."""
    row = conn.execute(
        "SELECT id, tick, data, home, saved_at FROM _pylon_shards WHERE id = ?", (shard_id,)
    ).fetchone()
    return None if row is None else StoredShard(*row)


def listed(conn: apsw.Connection, limit: int) -> list[StoredShard]:
    """All that are known, by id, without their states."""
    return [
        StoredShard(shard_id, tick, None, home, saved_at)
        for shard_id, tick, home, saved_at in conn.execute(
            "SELECT id, tick, home, saved_at FROM _pylon_shards ORDER BY id LIMIT ?", (limit,)
        )
    ]
