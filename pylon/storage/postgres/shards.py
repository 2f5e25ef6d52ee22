"""Shards of the writer: the statements on `_pylon_shards`, the saved states, the placements and the
claims of shards.

A claim names the lease of a node (`registry`). It lasts while the row of that node has this lease
and its end lies ahead. `_JUDGE` locks the row before it looks at the end. So a renewal either comes
before it and counts, or comes after the claim, and finds the lease ended. Writers exclude each
other by their lock, so no two claims meet.

A write under a claim is *fenced*: its statement fails, as a guard does, if the shard has another
generation. Generations never repeat, also for a shard that was dropped and made again: a new one is
at least the number of microseconds since 1970.

Implements `pylon.storage.core.transaction.ShardRows`. Made by `transaction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import errors

from pylon.errors import InternalError, PylonError
from pylon.storage.core.transaction import lease_lost
from pylon.storage.postgres.batch import Batch

# The generation until now, the lowest new one, and whether the worker may claim the shard.
_JUDGE: Final = (
    "WITH before AS (SELECT owner, lease, generation FROM _pylon_shards WHERE id = $1), "
    "holder AS MATERIALIZED (SELECT n.lease_until FROM _pylon_nodes AS n "
    "WHERE n.lease = (SELECT lease FROM before) FOR SHARE) "
    "SELECT (SELECT generation FROM before), "
    "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint, "
    "NOT EXISTS (SELECT 1 FROM holder WHERE lease_until > clock_timestamp()) "
    "OR EXISTS (SELECT 1 FROM before WHERE owner = $2 AND lease = $3)"
)
_CLAIM: Final = (
    "INSERT INTO _pylon_shards (id, tick, saved_at, region, owner, lease, generation) "
    "VALUES ($1, 0, $2, $3, $4, $5, $6) ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, "
    "lease = excluded.lease, generation = excluded.generation, "
    "region = coalesce(_pylon_shards.region, excluded.region)"
)
_FENCED: Final = (
    "WITH kept AS (UPDATE _pylon_shards SET {} RETURNING 1) "
    "SELECT CASE WHEN count(*) = 1 THEN 0 "
    "ELSE ('pylon: another worker has claimed this shard ' || count(*))::int END FROM kept"
)
_PUT: Final = (
    "INSERT INTO _pylon_shards (id, tick, data, saved_at) VALUES ($1, $2, $3, $4) "
    "ON CONFLICT (id) DO UPDATE SET tick = excluded.tick, data = excluded.data, "
    "saved_at = excluded.saved_at"
)
_PUT_FENCED: Final = _FENCED.format(
    "tick = $2, data = $3, saved_at = $4 WHERE id = $1 AND generation = $5"
)
_MOVE: Final = (
    "INSERT INTO _pylon_shards (id, tick, home, saved_at) VALUES ($1, 0, $2, $3) "
    "ON CONFLICT (id) DO UPDATE SET home = excluded.home"
)
_MOVE_FENCED: Final = _FENCED.format("home = $2 WHERE id = $1 AND generation = $3")
_GENERATION: Final = "SELECT generation FROM _pylon_shards WHERE id = $1"
_DROP: Final = "DELETE FROM _pylon_shards WHERE id = $1"
_RELEASE: Final = (
    "DELETE FROM _pylon_shards WHERE id = $1 AND generation = $2 AND data IS NULL "
    "AND home IS NULL",
    "UPDATE _pylon_shards SET owner = NULL, lease = NULL WHERE id = $1 AND generation = $2",
)


@dataclass(frozen=True, slots=True)
class _Fence:
    """`pylon.storage.postgres.flush.RefusalSource` of a fenced statement."""

    shard_id: str

    def refuse(self, error: psycopg.Error, row_json: bytes) -> PylonError:
        """Return the request's error of the database's."""
        if isinstance(error, errors.InvalidTextRepresentation):
            return lease_lost(self.shard_id)
        return InternalError(f'the database refused to store the shard "{self.shard_id}"')


class PostgresShards:
    """See the module."""

    __slots__ = ("_batch",)

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def claim_shard(
        self, shard_id: str, owner: str, lease: str, region: str, now_s: int
    ) -> int:
        """See `ShardRows`."""
        found = self._batch.scan(_JUDGE, (shard_id, owner, lease))
        if found.get_value(0, 2) != b"t":
            return 0
        before, lowest = (int(found.get_value(0, column) or 0) for column in (0, 1))
        generation = max(before + 1, lowest)
        self._batch.gather(_CLAIM, (shard_id, now_s, region, owner, lease, generation))
        return generation

    def put_shard(
        self, shard_id: str, tick: int, data: bytes, now_s: int, generation: int | None
    ) -> None:
        """See `ShardRows`."""
        if generation is None:
            self._batch.gather(_PUT, (shard_id, tick, data, now_s))
        else:
            self._batch.gather(
                _PUT_FENCED, (shard_id, tick, data, now_s, generation), _Fence(shard_id)
            )

    def place_shard(
        self, shard_id: str, home: str | None, now_s: int, generation: int | None
    ) -> None:
        """See `ShardRows`."""
        if generation is None:
            self._batch.gather(_MOVE, (shard_id, home, now_s))
        else:
            self._batch.gather(_MOVE_FENCED, (shard_id, home, generation), _Fence(shard_id))

    def drop_shard(self, shard_id: str, generation: int | None) -> int:
        """See `ShardRows`."""
        found = self._batch.scan(_GENERATION, (shard_id,))
        if not found.ntuples:
            return 0
        if generation is not None and int(found.get_value(0, 0) or 0) != generation:
            raise lease_lost(shard_id)
        self._batch.gather(_DROP, (shard_id,))
        return 1

    def release_shard(self, shard_id: str, generation: int) -> None:
        """See `ShardRows`."""
        for text in _RELEASE:
            self._batch.gather(text, (shard_id, generation))
