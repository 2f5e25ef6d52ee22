"""Two nodes in one process: B with a cluster port, and A that links to it, over real sockets.

Used by the tests of `pylon.cluster` and of the tunnels of shards workers.
"""

from __future__ import annotations

import socket

from gevent.event import Event

from pylon.clock import ManualClock, SystemRandom
from pylon.cluster.addresses import bind_endpoint
from pylon.cluster.envelopes import OpenTunnel
from pylon.cluster.keys import KeyPair, make_key_pair
from pylon.cluster.links import Link, Links
from pylon.cluster.peers import Peers
from pylon.cluster.port import ClusterPort, TunnelExits
from pylon.cluster.tunnels import Tunnel
from pylon.errors import PylonError, ShardNotFound
from pylon.realtime.placement import ShardHome
from pylon.storage.nodes import NodeFacts
from tests.support.wait import run_greenlets_until

A, B = make_key_pair(), make_key_pair()
NODE_A = NodeFacts("a", "a1", ("http", "shards"), "1", curve_key=A.public)
HEAD = b"GET /?shard=arena HTTP/1.1\r\n\r\n"


class User:
    """The connection at one end of a tunnel."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.tunnel: Tunnel | None = None
        self.ends: list[tuple[PylonError | None, bool]] = []
        self.opening: OpenTunnel | None = None
        self.was_writable = 0

    def received(self, data: bytes) -> None:
        self.data.append(data)

    def writable(self) -> None:
        self.was_writable += 1

    def ended(self, error: PylonError | None, *, is_lost: bool) -> None:
        self.ends.append((error, is_lost))


class Exits:
    """The worker behind a port."""

    def __init__(self) -> None:
        self.users: list[User] = []
        self.refusal: PylonError | None = None

    def open(self, tunnel: Tunnel, opening: OpenTunnel) -> None:
        if self.refusal is not None:
            raise self.refusal
        user = User()
        user.tunnel, user.opening = tunnel, opening
        tunnel.user = user
        self.users.append(user)


class Nodes:
    """Node B with a port, and node A that links to it."""

    def __init__(self, exits: TunnelExits | None = None) -> None:
        self.clock = ManualClock()
        self.peers = Peers()
        self.peers.replace([NODE_A])
        self.exits = Exits()
        self._served_by = exits or self.exits
        self.release = Event()
        self.port_number = free_port()
        self.url = f"tcp://127.0.0.1:{self.port_number}"
        self.port = self.new_port()
        self.links = Links(A, self.clock, SystemRandom())

    def new_port(self, keys: KeyPair = B) -> ClusterPort:
        return ClusterPort(
            bind_endpoint("127.0.0.1", self.url, "1"), keys, self.peers, self.clock,
            SystemRandom(), answer=self.answer, exits=self._served_by,
        )

    def answer(self, command: bytes) -> bytes:
        if command == b"wait":
            self.release.wait()
        if command == b"fail":
            raise ShardNotFound("no such shard")
        if command == b"break":
            raise RuntimeError("a defect")
        return command.upper()

    @property
    def home(self) -> ShardHome:
        """A shard on node B, as node A sees it."""
        return ShardHome("b", "1", is_here=False, cluster_url=self.url, curve_key=B.public)

    def link(self) -> Link:
        return self.links.find(self.url, B.public, "1")

    def tunnel(self) -> tuple[User, User]:
        """A tunnel: the users of its entry and of its exit."""
        entry, before = User(), len(self.exits.users)
        entry.tunnel = self.link().open_tunnel(entry, OpenTunnel("192.0.2.7", True, HEAD))
        run_greenlets_until("a tunnel came", lambda: len(self.exits.users) > before)
        return entry, self.exits.users[before]

    def close(self) -> None:
        self.links.close()
        self.port.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
