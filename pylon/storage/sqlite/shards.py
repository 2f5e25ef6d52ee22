"""Shards in SQL: stores the saved states and the placements of shards, in `_pylon_shards`.

A row has the saved state (`data`, NULL for a shard that was only moved) and the worker that the
shard was moved to (`home`, NULL for the worker that its id maps to). Functions on a connection; the
caller translates apsw's errors. Called by `transaction` and `reader`.
"""

from __future__ import annotations

from typing import Final

import apsw

from pylon.storage.core.transaction import lease_lost
from pylon.storage.records import StoredPlace, StoredShard
from pylon.storage.sqlite import meta

_GENERATION: Final = "shard_generation"  # a fact: the newest of all shards


def claim(conn: apsw.Connection, shard_id: str, now_s: int) -> int:
    """Give a shard a generation that is higher than all before, and return it. No other node uses
    the file, so no other worker can have a lease that lasts."""
    generation = int(meta.get(conn, _GENERATION) or 0) + 1
    meta.put(conn, _GENERATION, str(generation))
    conn.execute(
        "INSERT INTO _pylon_shards (id, tick, saved_at, generation) VALUES (?, 0, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET generation = excluded.generation",
        (shard_id, now_s, generation),
    )
    return generation


def put(
    conn: apsw.Connection, shard_id: str, tick: int, data: bytes, now_s: int,
    generation: int | None,
) -> None:
    """Store the state of a shard; it replaces the previous one.

    Raises:
        ShardLeaseLost: the shard has another generation.
    """
    _check(conn, shard_id, generation)
    conn.execute(
        "INSERT INTO _pylon_shards (id, tick, data, saved_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET tick = excluded.tick, data = excluded.data, "
        "saved_at = excluded.saved_at",
        (shard_id, tick, data, now_s),
    )


def move(
    conn: apsw.Connection, shard_id: str, home: str | None, now_s: int, generation: int | None
) -> None:
    """Store the worker that runs a shard; None: the worker that its id maps to.

    Raises:
        ShardLeaseLost: as `put`.
    """
    _check(conn, shard_id, generation)
    conn.execute(
        "INSERT INTO _pylon_shards (id, tick, home, saved_at) VALUES (?, 0, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET home = excluded.home",
        (shard_id, home, now_s),
    )


def drop(conn: apsw.Connection, shard_id: str, generation: int | None) -> int:
    """Remove a shard. Return how many were removed (0 or 1).

    Raises:
        ShardLeaseLost: the shard has another generation.
    """
    found = place(conn, shard_id)
    if found is not None:
        _check(conn, shard_id, generation)
    conn.execute("DELETE FROM _pylon_shards WHERE id = ?", (shard_id,))
    return conn.changes()


def release(conn: apsw.Connection, shard_id: str, generation: int) -> None:
    """Remove a shard of this generation if it has no state and no placement."""
    conn.execute(
        "DELETE FROM _pylon_shards WHERE id = ? AND generation = ? AND data IS NULL "
        "AND home IS NULL",
        (shard_id, generation),
    )


def _check(conn: apsw.Connection, shard_id: str, generation: int | None) -> None:
    if generation is None:
        return
    found = place(conn, shard_id)
    if found is None or found.generation != generation:
        raise lease_lost(shard_id)


def find(conn: apsw.Connection, shard_id: str) -> StoredShard | None:
    """Return a stored shard, or None."""
    row = conn.execute(
        "SELECT id, tick, data, home, saved_at FROM _pylon_shards WHERE id = ?", (shard_id,)
    ).fetchone()
    return None if row is None else StoredShard(*row)


def place(conn: apsw.Connection, shard_id: str) -> StoredPlace | None:
    """Return the placement of a stored shard, or None."""
    row = conn.execute(
        "SELECT home, generation FROM _pylon_shards WHERE id = ?", (shard_id,)
    ).fetchone()
    return None if row is None else StoredPlace(*row)


def listed(conn: apsw.Connection, limit: int) -> list[StoredShard]:
    """Return at most `limit` stored shards by id, without their states."""
    return [
        StoredShard(shard_id, tick, None, home, saved_at)
        for shard_id, tick, home, saved_at in conn.execute(
            "SELECT id, tick, home, saved_at FROM _pylon_shards ORDER BY id LIMIT ?", (limit,)
        )
    ]
