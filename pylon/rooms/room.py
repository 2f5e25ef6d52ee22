"""A room and its members, with the JSON texts that all answers are joined from.

A member is here (`is_here`) while it has a part on this node; `parts` has its parts on other nodes
(`pylon.rooms.node_news`). Made and changed by `pylon.rooms.members` alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pylon.rooms.node_news import MemberPart, Raw
from pylon.rooms.updates import NULL, Socket, json_text

NEVER_S: Final = float("-inf")


class NodePart(NamedTuple):
    """A part of a member on another node."""

    stamp: int
    data: bytes
    joined_at_s: int


class Member:
    """A member of one room."""

    __slots__ = (
        "data", "is_here", "joined_at_s", "network", "parts", "peer", "polled_s", "sockets",
        "stamp", "user_id",
    )

    def __init__(self, user_id: str, network: str) -> None:
        self.user_id = user_id
        self.network = network
        self.data = NULL
        self.joined_at_s = 0  # Unix
        self.peer = b""  # the member as JSON text
        self.polled_s = NEVER_S  # monotonic time of its last poll
        self.sockets: set[Socket] = set()
        self.is_here = False
        self.stamp = 0  # of its data
        self.parts: dict[str, NodePart] = {}  # by the incarnation of the node

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the JSON text and its comma."""
        return len(self.peer) + 1 if self.peer else 0


class Room:
    """The members of one room."""

    __slots__ = ("_line", "_peers", "members", "name", "network", "size_bytes", "subscribers")

    def __init__(self, name: str, network: str) -> None:
        self.name = json_text(name)
        self.network = network
        self.members: dict[str, Member] = {}
        self.size_bytes = 0
        self.subscribers = 0
        self._peers: bytes | None = None
        self._line: bytes | None = None

    def changed(self, delta_bytes: int) -> None:
        """Note that the members have changed."""
        self.size_bytes += delta_bytes
        self._peers = self._line = None

    def peers(self) -> bytes:
        """Return all members as a JSON array."""
        if self._peers is None:
            self._peers = b"[%b]" % b",".join([m.peer for m in self.members.values()])
        return self._peers

    def line(self) -> bytes:
        """Return the room's entry in the list of rooms."""
        if self._line is None:
            self._line = b'{"members":%d,"name":%b}' % (len(self.members), self.name)
        return self._line

    def snapshot(self) -> bytes:
        """Return the room's `room-snapshot`."""
        return snapshot_text(self.name, self.peers())

    def answer(self) -> bytes:
        """Return the body of ``GET /api/rooms/<room>``."""
        return answer_text(len(self.members), self.peers(), self.name)


def node_part(name: str, member: Member) -> MemberPart:
    """Return the part of a member on this node, for the others."""
    return MemberPart(
        name, member.user_id, Raw(member.data), member.joined_at_s, member.stamp,
        bool(member.sockets),
    )


def peer_text(user_id: str, data: bytes, joined_at_s: int) -> bytes:
    """Return a member as JSON text."""
    return b'{"data":%b,"joined_at":"%dZ","user_id":%b}' % (data, joined_at_s, json_text(user_id))


def snapshot_text(name: bytes, peers: bytes) -> bytes:
    """Return a `room-snapshot`; both arguments are JSON."""
    return b'{"type":"room-snapshot","room":%b,"members":%b}' % (name, peers)


def answer_text(count: int, peers: bytes, name: bytes) -> bytes:
    """Return the body of ``GET /api/rooms/<room>``."""
    return b'{"count":%d,"members":%b,"room":%b}' % (count, peers, name)
