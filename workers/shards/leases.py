"""Leases of shards: the claims of one worker, where nodes share a database.

A worker claims a shard before it makes it. A claim raises the shard's *generation*, and everything
that the worker then stores of the shard carries it: the store refuses an older one
(`ShardLeaseLost`). Claims last as long as the lease of the node, which the supervisor renews and
reports (`pylon.storage.nodes`). A report with another lease means that the claims under the former
one may be another node's by now.

Invariants: `is_valid` is true only while no other node can claim. It compares the machine's
monotonic clock, so it is false at once in a process that was frozen. Called by
`workers.shards.registry`, `matchmaking` and `server`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pylon.bus.messages import NodeState
from pylon.clock import Clock
from pylon.errors import SubscribeFailed
from pylon.storage.nodes import NodeLease
from pylon.storage.ops import ClaimShard, WriteOp, WriteReply

# After an outage a node is back within this time: it tries each second (`LEASE_RETRY_S` of
# `pylon.storage.postgres.node_link`), and its writer as often.
SETTLING_S: Final = 4.0


class ClaimWriter(Protocol):
    """Stores claims: `pylon.bus.writer_client.WriterClient`."""

    def submit(self, op: WriteOp) -> WriteReply:
        """Have the writer execute one write; raise its error."""


class ShardLeases:
    """The claims of one worker."""

    def __init__(self, writer: ClaimWriter, clock: Clock, worker: str) -> None:
        """Args: `worker` is the name of this process on its node."""
        self._writer = writer
        self._clock = clock
        self._worker = worker
        self._node = ""
        self._region = ""
        self._lease = NodeLease()
        self._settled_at_s = 0.0
        self._generations: dict[str, int] = {}  # by shard id
        self._on_lost: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        """The name of this worker among those of all nodes; "" before the first report."""
        return f"{self._node}/{self._worker}" if self._node else ""

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call this before the claims are forgotten, when they may be another node's."""
        self._on_lost.append(callback)

    def take_report(self, report: NodeState) -> None:
        """Take the newest report of the supervisor."""
        if self._lease.id and report.lease != self._lease.id:
            self.lose_all()
            self._settled_at_s = self._clock.monotonic_s() + SETTLING_S
        self._node = report.node
        self._region = next((n.region for n in report.nodes if n.name == report.node), "")
        self._lease = NodeLease(report.lease, report.lease_until_s)

    def is_valid(self) -> bool:
        """Return whether the shards that this worker has claimed are certainly its own now."""
        return self._clock.monotonic_s() < self._lease.until_s

    def is_settling(self) -> bool:
        """Return whether this node has lost a lease a moment ago, as all nodes do in an outage."""
        return self._clock.monotonic_s() < self._settled_at_s

    def check(self) -> None:
        """Raise if this worker may run no shards now.

        Raises:
            SubscribeFailed
        """
        if not self.is_valid():
            raise SubscribeFailed(
                "this node may run no shards now: it cannot renew its lease in the database",
                hint="Connect again",
            )

    def claim(self, shard_id: str, region: str | None = None) -> int:
        """Claim a shard, and return the generation. Blocks this greenlet.

        Args:
            region: of a shard that is not stored yet; None: that of this node.

        Raises:
            SubscribeFailed: another worker has it, or this node has no lease.
            PylonError: the writer cannot store the claim now.
        """
        self.check()
        lease = self._lease.id
        region = self._region if region is None else region
        reply = self._writer.submit(ClaimShard(shard_id, self.name, lease, region))
        if not reply.count:
            raise SubscribeFailed("shard lives in another process now", hint="Connect again")
        if self._lease.id != lease:
            raise SubscribeFailed("the lease of this node has ended", hint="Connect again")
        self.check()
        self._generations[shard_id] = reply.seq
        return reply.seq

    def generation_of(self, shard_id: str) -> int | None:
        """Return the generation of a claimed shard; None if this worker has no claim."""
        return self._generations.get(shard_id)

    def claimed_ids(self) -> list[str]:
        """Return the ids of all that this worker has claimed."""
        return list(self._generations)

    def forget(self, shard_id: str) -> int | None:
        """Forget a claim, and return its generation, if there was one."""
        return self._generations.pop(shard_id, None)

    def lose_all(self) -> None:
        """Forget all claims, because the lease has ended."""
        for callback in self._on_lost:
            callback()
        self._generations.clear()
