"""Peers: the other nodes that live, as a process of this node knows them.

The supervisor has them from the registry, and tells its workers (`pylon.bus.messages`). A cluster
port admits their keys and nobody else's.

Invariant: before the first report nobody is admitted. Called by `zap`, `port` and the workers.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pylon.cluster.keys import is_key


class Peer(msgspec.Struct, frozen=True, array_like=True):
    """Another node that lives."""

    node: str
    incarnation: str
    key: str  # the public half of its key pair; "": of a version without one
    url: str  # PYLON_CLUSTER_URL; "": nobody reaches it
    workers: int  # shards workers


class Peers:
    """The newest report."""

    __slots__ = ("_node_by_key", "peer_by_node")

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self.peer_by_node: dict[str, Peer] = {}
        self._node_by_key: dict[str, str] = {}
        self.replace(peers)

    def replace(self, peers: Iterable[Peer]) -> None:
        """Take a report."""
        self.peer_by_node = {peer.node: peer for peer in peers}
        self._node_by_key = {
            peer.key: peer.node for peer in self.peer_by_node.values() if is_key(peer.key)
        }

    def find_node(self, key: str) -> str | None:
        """Return the node of a public key; None if no living node has it."""
        return self._node_by_key.get(key)
