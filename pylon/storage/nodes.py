"""Nodes: what a node knows of the others that share its database, and how they tell news.

A *node* is one server: a supervisor with its workers. Nodes that share a database find each other
in its registry. One of them leads: it does the upkeep that only one is to do. News are small JSON
messages of one node to all others, for what is not in the database: the members of rooms, cursor
hints, spent rates.

A node with shards workers has a *lease*, which each heartbeat renews for `LEASE_S` by the clock of
the database. The shards that its workers have claimed are theirs while it lasts. A lease that has
ended is never renewed: the node takes another one, with another id, and the shards of the former
are anybody's.

News are delivered in order and at most once. A node that has missed news of another is told so
(`NodesReport.lost`); it then asks for what it needs to know anew. Implemented by
`pylon.storage.postgres.node_link`; used by `supervisor.nodes`.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

HEARTBEAT_S: Final = 2.0
DEAD_AFTER_S: Final = 10.0  # without a heartbeat
LEASE_S: Final = 10.0  # after the heartbeat that renewed it, by the clock of the database
CLOCK_SKEW_S: Final = 30.0  # of a node against the database: beyond it the node is not ready
LEASE_MARGIN_S: Final = 2.0  # shards stop so long before the end, by the clock of the node
SHARDS_ROLE: Final = "shards"
NEWS_TICK_S: Final = 0.05  # news of this time leave together


class NodeFacts(msgspec.Struct, frozen=True):
    """The facts that a node tells of itself. `incarnation` is another one after each start."""

    name: str
    incarnation: str
    roles: tuple[str, ...]
    version: str
    manifest: str = ""  # digest of the manifest that it judges by
    workers: dict[str, int] = {}  # by role
    region: str = ""  # PYLON_REGION
    cluster_url: str = ""  # PYLON_CLUSTER_URL: where other nodes reach it; "": they cannot
    curve_key: str = ""  # the public half of the node's key pair, for that address


class NodeLease(NamedTuple):
    """The right of a node to run the shards that it has claimed under this id."""

    id: str = ""
    until_s: float = 0.0  # monotonic: its shards stop then


class NewsMessage(NamedTuple):
    """A message of another node."""

    incarnation: str
    topic: str
    body: bytes  # JSON


class NodesReport(NamedTuple):
    """The findings of a `NodeLink` in one turn. `gone` and `lost` come before `news`."""

    gone: list[str]  # incarnations that have ended or fallen silent
    lost: list[str]  # incarnations some of whose news this node has not got, new ones among them
    news: list[NewsMessage]


class NodeLink(Protocol):
    """The connection of one node to the others, for one thread; `publish`, `wake` and the
    properties are for any thread."""

    @property
    def others(self) -> tuple[NodeFacts, ...]:
        """The other nodes that live, by the clock of the database."""

    @property
    def leads(self) -> bool:
        """Whether this node does the upkeep of all."""

    @property
    def salt(self) -> bytes:
        """A secret of 16 bytes that all nodes of this store have; after `begin`."""

    @property
    def facts(self) -> NodeFacts:
        """The entry of this node in the registry."""

    @property
    def lease(self) -> NodeLease:
        """The lease of this node. It ends by itself if the database does not answer."""

    @property
    def problem(self) -> str | None:
        """Why this node cannot be one of several: another one has its name."""

    def begin(self) -> None:
        """Connect and register.

        Raises:
            StoreUnavailable
        """

    def receive(self, timeout_s: float) -> NodesReport:
        """Wait for news, `timeout_s` at the longest. Sends heartbeats and queued news meanwhile,
        and reconnects by itself. Raises nothing of the store."""

    def publish(self, topic: str, body: bytes) -> None:
        """Tell all other nodes. Never blocks. News that cannot leave are dropped, and the others
        notice that.

        Args:
            body: JSON.
        """

    def withdraw(self) -> None:
        """Have the other nodes place no shard on this one from now on. It keeps its lease. Never
        blocks."""

    def wake(self) -> None:
        """End the `receive` of another thread."""

    def close(self) -> None:
        """Take this node out of the registry, and close the connection. Idempotent."""
