"""Placement: finds the shards worker that runs a shard.

The default worker comes from rendezvous hashing of the id: every process computes the same worker,
and a change of the number of workers moves as few shards as possible. The store has the worker of
a shard that an administrator moved (`_pylon_shards.home`); it comes first while that worker exists.

Called for each connection and command, by `pylon.bus.shards` and `workers.shards`.
"""

from __future__ import annotations

import hashlib

from pylon.storage.interface import PointRead
from pylon.storage.records import StoredShard


def home_of(shard_id: str, workers: int) -> str:
    """Return the default worker of an id: "1" to `workers`."""
    return str(max(range(1, workers + 1), key=lambda number: _weight(shard_id, number)))


def placement_of(shard_id: str, workers: int, point: PointRead) -> str:
    """Return the worker that runs a shard. May switch greenlets, as `Store.point` does.

    Raises:
        QueryTimeout, StoreUnavailable.
    """
    if workers == 1:
        return "1"
    return home_of_stored(shard_id, workers, point(lambda reader: reader.shard(shard_id)))


def home_of_stored(shard_id: str, workers: int, stored: StoredShard | None) -> str:
    """Return the worker that runs a shard of which the store has `stored`."""
    if stored is not None and stored.home is not None and int(stored.home) <= workers:
        return stored.home
    return home_of(shard_id, workers)


def _weight(shard_id: str, number: int) -> bytes:
    return hashlib.blake2b(f"{number}:{shard_id}".encode(), digest_size=8).digest()
