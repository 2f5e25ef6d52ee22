"""Networks: counts the rooms, members and bytes of each network address.

The server has a fixed number of rooms and a fixed number of bytes for members. One client that
makes guest after guest would take all of them, so an address may hold a part: enough for the
people of an office or a school behind one router, each in some rooms (`limits.ROOM*_OF_ADDRESS`).

Invariants: members of no network (`""`: an administrator made them) are not counted. A network
that holds nothing takes no memory. Used by `pylon.rooms.members`.
"""

from __future__ import annotations

from pylon import limits
from pylon.errors import RoomLimitReached


class _Held:
    """The counts of one network."""

    __slots__ = ("members", "rooms", "size_bytes")

    def __init__(self) -> None:
        self.rooms = 0
        self.members = 0
        self.size_bytes = 0


class Networks:
    """The counts of all networks."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def __len__(self) -> int:
        """The number of networks that hold something."""
        return len(self._held)

    def check(self, network: str, *, rooms: int, members: int, size_bytes: int) -> None:
        """Pass if a network may hold so much more.

        Raises:
            RoomLimitReached: the error says which limit.
        """
        held = self._held.get(network)
        if held is None:
            return
        if rooms and held.rooms + rooms > limits.ROOMS_OF_ADDRESS:
            raise RoomLimitReached(
                f"Your network address has begun {held.rooms} rooms that are still open, which is "
                "the limit", hint="Join a room that exists, or let others leave",
            )
        if members and held.members + members > limits.ROOM_MEMBERS_OF_ADDRESS:
            raise RoomLimitReached(
                f"From your network address there are {held.members} members in rooms, which is "
                "the limit", hint="Leave rooms that are not used",
            )
        if size_bytes > 0 and held.size_bytes + size_bytes > limits.ROOMS_BYTES_OF_ADDRESS:
            raise RoomLimitReached(
                "The members from your network address hold too much in all rooms "
                f"(limit {limits.ROOMS_BYTES_OF_ADDRESS} bytes)",
                hint="Put less into the members' data",
            )

    def add(
        self, network: str, *, rooms: int = 0, members: int = 0, size_bytes: int = 0
    ) -> None:
        """Add to the counts of a network; negative numbers subtract."""
        if not network:
            return
        held = self._held.setdefault(network, _Held())
        held.rooms += rooms
        held.members += members
        held.size_bytes += size_bytes
        if not held.members and not held.rooms:
            del self._held[network]
