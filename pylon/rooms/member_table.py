"""Member table: the rooms of a node with their members, and what they count for.

Invariants: a room exists while it has members. A member counts for the network of its last join, a
room for the network of its first member. Bounds: rooms, members and bytes in all, for each user
and for each network address (`limits.ROOM*`). The bytes of a room are those of its snapshot. Called
by `pylon.rooms.members`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pylon import limits
from pylon.errors import RoomFull, RoomLimitReached
from pylon.rooms.networks import Networks
from pylon.rooms.node_news import MemberPart
from pylon.rooms.room import Member, Room, node_part


class MemberTable:
    """All rooms by name."""

    def __init__(self) -> None:
        self.rooms: Final[dict[str, Room]] = {}
        self.members = 0
        self._size_bytes = 0
        self._rooms_of: dict[str, set[str]] = {}  # by user id
        self._networks = Networks()

    def find(self, name: str, user_id: str) -> tuple[Room, Member] | tuple[None, None]:
        """Return a member and its room, or neither."""
        room = self.rooms.get(name)
        member = None if room is None else room.members.get(user_id)
        return (None, None) if room is None or member is None else (room, member)

    def part_of(self, name: str, user_id: str) -> MemberPart | None:
        """Return the part of a member on this node, or None."""
        _, member = self.find(name, user_id)
        return None if member is None or not member.is_here else node_part(name, member)

    def own_parts(self) -> Iterator[MemberPart]:
        """Yield all parts of this node, each as it is when it is taken. Members that join
        meanwhile are left out, and so are those that leave."""
        keys = [(name, user_id) for name, room in self.rooms.items() for user_id in room.members]
        for name, user_id in keys:
            part = self.part_of(name, user_id)
            if part is not None:
                yield part

    def check_member(self, room: Room | None, user_id: str) -> None:
        """Pass if a user may become a member of a room; None: of a new one.

        Raises:
            RoomLimitReached, RoomFull
        """
        if room is None and len(self.rooms) >= limits.ROOMS:
            raise RoomLimitReached(f"Too many rooms (limit {limits.ROOMS})")
        if len(self._rooms_of.get(user_id, ())) >= limits.ROOMS_OF_USER:
            raise RoomLimitReached(
                f"You are in too many rooms (limit {limits.ROOMS_OF_USER})", hint="Leave one"
            )
        if room is not None and len(room.members) >= limits.ROOM_MEMBERS:
            raise RoomFull(f"The room is full (limit {limits.ROOM_MEMBERS} members)")

    def check_size(
        self, room: Room | None, delta_bytes: int, network: str, *, network_bytes: int,
        rooms: int = 0, members: int = 0,
    ) -> None:
        """Pass if the members may grow.

        Args:
            room: that grows; None: a new one.
            delta_bytes: by which it grows.
            network_bytes, rooms, members: by which the counts of the network grow.

        Raises:
            RoomLimitReached, RoomFull
        """
        if delta_bytes > 0:
            if (0 if room is None else room.size_bytes) + delta_bytes > limits.ROOM_BYTES:
                raise RoomFull(
                    f"The room's members hold too much (limit {limits.ROOM_BYTES} bytes)"
                )
            if self._size_bytes + delta_bytes > limits.ROOMS_BYTES:
                raise RoomLimitReached(
                    f"All rooms hold too much (limit {limits.ROOMS_BYTES} bytes)"
                )
        self._networks.check(network, rooms=rooms, members=members, size_bytes=network_bytes)

    def add(self, name: str, user_id: str, network: str) -> tuple[Room, Member]:
        """Make a member, which has no data yet, and its room if there is none."""
        room = self.rooms.get(name)
        if room is None:
            room = self.rooms[name] = Room(name, network)
            self._networks.add(network, rooms=1)
        member = room.members[user_id] = Member(user_id, network)
        self._networks.add(network, members=1)
        self._rooms_of.setdefault(user_id, set()).add(name)
        self.members += 1
        return room, member

    def move(self, member: Member, network: str) -> None:
        """Count a member for another network."""
        size_bytes = member.size_bytes
        self._networks.add(member.network, members=-1, size_bytes=-size_bytes)
        self._networks.add(network, members=1, size_bytes=size_bytes)
        member.network = network

    def put(self, room: Room, member: Member, data: bytes, peer: bytes) -> None:
        """Set a member's data, and its JSON text."""
        delta_bytes = len(peer) + 1 - member.size_bytes
        member.data = data
        member.peer = peer
        self._size_bytes += delta_bytes
        self._networks.add(member.network, size_bytes=delta_bytes)
        room.changed(delta_bytes)

    def remove(self, name: str, room: Room, member: Member) -> None:
        """Remove a member, which is not in `room.members` any more, and the room without others."""
        self._size_bytes -= member.size_bytes
        room.changed(-member.size_bytes)
        self._networks.add(member.network, members=-1, size_bytes=-member.size_bytes)
        self.members -= 1
        mine = self._rooms_of[member.user_id]
        mine.discard(name)
        if not mine:
            del self._rooms_of[member.user_id]
        if not room.members:
            del self.rooms[name]
            self._networks.add(room.network, rooms=-1)
