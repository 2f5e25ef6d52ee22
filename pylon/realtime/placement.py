"""Placement: finds the process that runs a shard, or that is to run it.

On a store that one node uses, the home of a shard is a worker of this node. Where nodes share the
store, it is a worker of any living node:

1. the worker that has claimed the shard, while the lease of its node lasts;
2. else the worker to which an administrator has moved it (`_pylon_shards.home`), while that lives;
3. else the worker that had it last, while its node lives: that may have a newer state than the
   store, which it could not save in an outage;
4. else the default home of the id, among the nodes of its region.

The default home comes from rendezvous hashing: every process computes the same one, and a change of
the workers moves as few shards as possible. Two nodes may know different nodes for some seconds.
So a home that has no lease is a proposal: the claim in the database decides.

Called for each connection and command, by `pylon.bus.shards` and `workers.shards`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from pylon.errors import SubscribeFailed
from pylon.storage.interface import Store
from pylon.storage.nodes import SHARDS_ROLE, NodeFacts
from pylon.storage.records import StoredPlace

MATCHMAKER: Final = ":matchmaker"  # no shard has this id


class ShardHome(msgspec.Struct, frozen=True):
    """A shards worker as the home of a shard."""

    node: str  # its node; "" on a store that only one node uses
    worker: str  # its name on that node: "1", "2" and so on
    is_here: bool  # whether this process is of that node
    generation: int | None = None  # of the lease that it has; None: it has to claim one
    cluster_url: str = ""  # where this node reaches the other one; "": it cannot
    curve_key: str = ""  # the public key of that address

    @property
    def name(self) -> str:
        """The name of the worker in the store."""
        return f"{self.node}/{self.worker}" if self.node else self.worker


def elsewhere_error(shard_id: str, home: ShardHome) -> SubscribeFailed:
    """Return the refusal of a shard that lives on a node which this one cannot reach."""
    return SubscribeFailed(
        f'shard "{shard_id}" lives on node {home.node}, which this node cannot reach',
        hint="Set PYLON_CLUSTER_URL on every node with shards, or have the load balancer send "
        "shards to their nodes",
    )


class Placement:
    """The placement of shards, as one process knows it."""

    def __init__(self, store: Store, workers: int, *, is_shared: bool = False) -> None:
        """
        Args:
            workers: the number of shards workers of this node; their names are "1", "2" and so on.
            is_shared: whether other nodes may use the store; then `update` must be called.
        """
        self._store = store
        self._workers = workers
        self._is_shared = is_shared
        self._node = ""
        self._region = ""
        self._living: dict[str, NodeFacts] = {}  # by name: those with shards workers
        self._nodes: dict[str, NodeFacts] = {}  # of these, those that take new shards

    def update(self, node: str, living: Iterable[NodeFacts]) -> None:
        """Take the nodes that live. `node` is the name of this one."""
        self._node = node
        self._living = {}
        for facts in living:
            if facts.name == node:
                self._region = facts.region
            if facts.workers.get(SHARDS_ROLE, 0):
                self._living[facts.name] = facts
        taking = {n: facts for n, facts in self._living.items() if SHARDS_ROLE in facts.roles}
        self._nodes = taking or self._living  # the last node serves until it ends

    def find(self, shard_id: str, region: str | None = None) -> ShardHome:
        """Return the worker that runs a shard. May switch greenlets, as `Store.point` does.

        Args:
            region: of a shard that is to be made; None: that of this node.

        Raises:
            SubscribeFailed: no node with shards workers is known.
            QueryTimeout, StoreUnavailable.
        """
        if not self._is_shared and self._workers == 1:
            return ShardHome("", "1", is_here=True)
        return self.of_stored(
            shard_id, self._store.point(lambda reader: reader.shard_place(shard_id)), region
        )

    def of_stored(
        self, shard_id: str, place: StoredPlace | None, region: str | None = None
    ) -> ShardHome:
        """Return the worker that runs a shard of which the store has `place`."""
        if not self._is_shared:
            return self._in_this_node(shard_id, place)
        if place is not None:
            if place.is_held and place.owner is not None:
                return self._home(place.owner, place.generation)
            named = self._named(shard_id, place.home)
            if named is not None:
                return named
            if place.owner_lives and place.owner is not None and self.has_worker(place.owner):
                return self._home(place.owner, None)
            region = place.region if place.region is not None else region
        return self._home(self._rendezvous(shard_id, region), None)

    def target(
        self, shard_id: str, home: str | None, place: StoredPlace | None
    ) -> ShardHome:
        """Return the worker that a shard of `place` is to have after a move to `home`."""
        moved = StoredPlace(home, region=None if place is None else place.region)
        return self.of_stored(shard_id, moved)

    def matchmaker(self) -> ShardHome:
        """Return the worker that runs the matchmaker. Raises: as `find`."""
        if not self._is_shared:
            return self._in_this_node(MATCHMAKER, None)
        return self.find(MATCHMAKER, "")  # one region for all nodes, so that they agree

    def all_workers(self) -> list[ShardHome]:
        """Return every shards worker of the nodes that live."""
        if not self._is_shared:
            return [ShardHome("", str(n), is_here=True) for n in range(1, self._workers + 1)]
        return [self._home(name, None) for name in self._candidates(self._living.values())]

    @property
    def has_workers(self) -> bool:
        """Whether any node runs shards, or may run some as far as this process knows."""
        return bool(self._living or not self._node) if self._is_shared else self._workers > 0

    def has_worker(self, name: str) -> bool:
        """Return whether an administrator may move a shard to this worker: "2" or "node/2"."""
        node, _, number = name.rpartition("/")
        if not (number.isascii() and number.isdigit() and str(int(number)) == number):
            return False
        if not self._is_shared:
            return not node and 1 <= int(number) <= self._workers
        nodes = self._nodes.values() if not node else filter(None, [self._nodes.get(node)])
        return any(1 <= int(number) <= facts.workers[SHARDS_ROLE] for facts in nodes)

    # --- Internals -------------------------------------------------------------------------

    def _in_this_node(self, shard_id: str, place: StoredPlace | None) -> ShardHome:
        if place is not None and place.home is not None and self.has_worker(place.home):
            return ShardHome("", place.home, is_here=True)
        names = map(str, range(1, self._workers + 1))
        return ShardHome("", max(names, key=lambda name: _weight(shard_id, name)), is_here=True)

    def _named(self, shard_id: str, home: str | None) -> ShardHome | None:
        """Return the worker that an administrator has named, if it lives. A name without a node,
        which a store of one node has, means this worker of any node."""
        if home is None or not self.has_worker(home):
            return None
        if "/" in home:
            return self._home(home, None)
        names = [f"{n.name}/{home}" for n in self._nodes.values()
                 if int(home) <= n.workers[SHARDS_ROLE]]
        return self._home(max(names, key=lambda name: _weight(shard_id, name)), None)

    def _rendezvous(self, shard_id: str, region: str | None) -> str:
        """
        Raises:
            SubscribeFailed: no node with shards workers is known.
        """
        region = self._region if region is None else region
        nodes = self._nodes.values()
        # Without a node in its region a shard runs elsewhere: late is better than not at all.
        names = self._candidates(n for n in nodes if n.region == region) or self._candidates(nodes)
        if not names:
            raise SubscribeFailed(
                "no node with shards workers lives, or this one does not know of it yet",
                hint="Connect again",
            )
        return max(names, key=lambda name: _weight(shard_id, name))

    def _candidates(self, nodes: Iterable[NodeFacts]) -> list[str]:
        return [
            f"{facts.name}/{number}"
            for facts in nodes for number in range(1, facts.workers[SHARDS_ROLE] + 1)
        ]

    def _home(self, name: str, generation: int | None) -> ShardHome:
        node, _, worker = name.rpartition("/")
        facts = self._living.get(node)
        return ShardHome(
            node, worker, node == self._node, generation,
            "" if facts is None else facts.cluster_url, "" if facts is None else facts.curve_key,
        )


def _weight(shard_id: str, worker: str) -> bytes:
    return hashlib.blake2b(f"{worker}:{shard_id}".encode(), digest_size=8).digest()
