"""Shards of the writer: the statements on `_pylon_shards`, the saved states and the placements of
shards.

Implements `pylon.storage.core.transaction.ShardRows`. Made by `transaction`.
"""

from __future__ import annotations

from typing import Final

from pylon.storage.postgres.batch import Batch

_PUT: Final = (
    "INSERT INTO _pylon_shards (id, tick, data, saved_at) VALUES ($1, $2, $3, $4) "
    "ON CONFLICT (id) DO UPDATE SET tick = excluded.tick, data = excluded.data, "
    "saved_at = excluded.saved_at"
)
_MOVE: Final = (
    "INSERT INTO _pylon_shards (id, tick, home, saved_at) VALUES ($1, 0, $2, $3) "
    "ON CONFLICT (id) DO UPDATE SET home = excluded.home"
)
_COUNT: Final = "SELECT count(*) FROM _pylon_shards WHERE id = $1"
_DROP: Final = "DELETE FROM _pylon_shards WHERE id = $1"


class PostgresShards:
    """See the module."""

    __slots__ = ("_batch",)

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def put_shard(self, shard_id: str, tick: int, data: bytes, now_s: int) -> None:
        """See `ShardRows`."""
        self._batch.gather(_PUT, (shard_id, tick, data, now_s))

    def place_shard(self, shard_id: str, home: str | None, now_s: int) -> None:
        """See `ShardRows`."""
        self._batch.gather(_MOVE, (shard_id, home, now_s))

    def drop_shard(self, shard_id: str) -> int:
        """See `ShardRows`."""
        found = self._batch.scan(_COUNT, (shard_id,))
        self._batch.gather(_DROP, (shard_id,))
        return int(found.get_value(0, 0) or 0)
