"""Placement: finds the process that runs a shard, or that is to run it.

The default home of an id comes from rendezvous hashing: every process computes the same one, and a
change of the number of workers moves as few shards as possible. The store has the worker of a shard
that an administrator moved (`_pylon_shards.home`); it comes first while that worker exists.

Called for each connection and command, by `pylon.bus.shards` and `workers.shards`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pylon.errors import SubscribeFailed
from pylon.storage.interface import PointRead
from pylon.storage.records import StoredShard


@dataclass(frozen=True, slots=True)
class ShardHome:
    """A shards worker as the home of a shard."""

    node: str  # its node; "" on a store that only one node uses
    worker: str  # its name on that node: "1", "2" and so on
    is_here: bool  # whether this process is of that node
    generation: int | None = None  # of the lease that it has; None: it has to claim one
    cluster_url: str = ""  # where this node reaches the other one; "": it cannot
    curve_key: str = ""  # the public key of that address


def elsewhere_error(shard_id: str, home: ShardHome) -> SubscribeFailed:
    """Return the refusal of a shard that lives on a node which this one cannot reach."""
    return SubscribeFailed(
        f'shard "{shard_id}" lives on node {home.node}, which this node cannot reach',
        hint="Set PYLON_CLUSTER_URL on every node with shards, or have the load balancer send "
        "shards to their nodes",
    )


def home_of(shard_id: str, workers: int) -> str:
    """Return the default worker of an id: "1" to `workers`."""
    return str(max(range(1, workers + 1), key=lambda number: _weight(shard_id, number)))


def placement_of(shard_id: str, workers: int, point: PointRead) -> ShardHome:
    """Return the worker that runs a shard. May switch greenlets, as `Store.point` does.

    Raises:
        QueryTimeout, StoreUnavailable.
    """
    if workers == 1:
        return ShardHome("", "1", is_here=True)
    stored = point(lambda reader: reader.shard(shard_id))
    return ShardHome("", home_of_stored(shard_id, workers, stored), is_here=True)


def home_of_stored(shard_id: str, workers: int, stored: StoredShard | None) -> str:
    """Return the worker that runs a shard of which the store has `stored`."""
    if stored is not None and stored.home is not None and int(stored.home) <= workers:
        return stored.home
    return home_of(shard_id, workers)


def _weight(shard_id: str, number: int) -> bytes:
    return hashlib.blake2b(f"{number}:{shard_id}".encode(), digest_size=8).digest()
