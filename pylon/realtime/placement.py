"""Where a shard lives: at which of the shards workers.

By rendezvous hashing of its id, so that every process finds the same worker without asking, and
a change of the number of workers moves as few shards as can be; unless it was moved by hand,
which the store knows (`_pylon_shards.home`). Called for each connection and command.
"""

from __future__ import annotations

import hashlib

from pylon.storage.interface import PointRead


def home_of(shard_id: str, workers: int) -> str:
    """The worker, "1" to `workers`, that an id belongs to by itself."""
    return str(max(range(1, workers + 1), key=lambda number: _weight(shard_id, number)))


def placement_of(shard_id: str, workers: int, point: PointRead) -> str:
    """The worker that a shard lives at.

    Args:
        point: `Store.point`, or `Store.point_inline` where no other greenlet may run meanwhile.

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
