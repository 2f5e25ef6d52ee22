"""Placement: finds the shards worker that runs a shard.

The default worker comes from rendezvous hashing of the id: every process computes the same worker,
and a change of the number of workers moves as few shards as possible. The store has the worker of
a shard that an administrator moved (`_pylon_shards.home`); it comes first while that worker exists.

Called for each connection and command, by `pylon.bus.shards` and `workers.shards`.
"""

from __future__ import annotations

import hashlib

from pylon.storage.interface import PointRead


def home_of(shard_id: str, workers: int) -> str:
    """Return the default worker of an id: "1" to `workers`."""
    return str(max(range(1, workers + 1), key=lambda number: _weight(shard_id, number)))


def placement_of(shard_id: str, workers: int, point: PointRead) -> str:
    """Return the worker that runs a shard.

    Args:
        point: `Store.point`, or `Store.point_inline` if no other greenlet may run meanwhile.

    Raises:
        QueryTimeout, StoreUnavailable.
    """
    if workers == 1:
        return "1"
    known = point(lambda reader: reader.shard(shard_id))
    if known is not None and known.home is not None and int(known.home) <= workers:
        return known.home
    return home_of(shard_id, workers)


def _weight(shard_id: str, number: int) -> bytes:
    return hashlib.blake2b(f"{number}:{shard_id}".encode(), digest_size=8).digest()
