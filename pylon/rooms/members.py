"""Members of rooms, their presence data and their subscribed sockets (spec/realtime.md §5.2).

A subscribed socket keeps its member in the room. So does activity: a join, a change of presence, a
broadcast, or a poll of the room. A member without a socket leaves after `limits.ROOM_IDLE_S`
without activity. When its last socket closes, a member leaves at once unless it also polls: the
official `useRoom` opens no socket and polls the room every 5 s.

Invariants: a room exists while it has members. A socket is subscribed only to rooms of its user,
and never after the user has left. A member counts for the network of its last join, a room for the
network of its first member. Each member keeps its JSON text, from which all answers are joined.

Bounds: rooms, members and bytes in all, for each user and for each network address
(`limits.ROOM*`). The bytes of a room are those of its snapshot. Called by `pylon.rooms.service`.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.bus.rooms_messages import RoomSnapshot
from pylon.clock import NS_PER_S, Clock
from pylon.errors import NotInRoom, RoomFull, RoomLimitReached
from pylon.rooms.networks import Networks
from pylon.rooms.updates import NULL, Socket, Updates, broadcast_text, json_text

_NEVER_S: Final = float("-inf")


class _Member:
    __slots__ = ("data", "joined_at_s", "network", "peer", "polled_s", "sockets", "user_id")

    def __init__(self, user_id: str, network: str) -> None:
        self.user_id = user_id
        self.network = network
        self.data = NULL
        self.joined_at_s = 0  # Unix
        self.peer = b""  # the member as JSON text
        self.polled_s = _NEVER_S  # monotonic time of its last poll
        self.sockets: set[Socket] = set()


class _Room:
    __slots__ = ("_line", "_peers", "members", "name", "network", "size_bytes", "subscribers")

    def __init__(self, name: str, network: str) -> None:
        self.name = json_text(name)
        self.network = network
        self.members: dict[str, _Member] = {}
        self.size_bytes = 0
        self.subscribers = 0
        self._peers: bytes | None = None
        self._line: bytes | None = None

    def changed(self, delta_bytes: int) -> None:
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
        return _snapshot(self.name, self.peers())


class Rooms:
    """All rooms. Callers check names and user ids; data is JSON text."""

    def __init__(self, clock: Clock, updates: Updates) -> None:
        self._clock = clock
        self._updates = updates
        self._rooms: dict[str, _Room] = {}
        self._size_bytes = 0
        self._rooms_of: dict[str, set[str]] = {}  # by user id
        self._networks = Networks()
        self._subscriptions: dict[Socket, dict[str, str]] = {}  # room: user id
        # (room, user id) of members without sockets: last activity, the oldest first.
        self._silent: dict[tuple[str, str], float] = {}
        self.members = 0

    def __len__(self) -> int:
        return len(self._rooms)

    # --- Members ---------------------------------------------------------------------------

    def join(self, name: str, user_id: str, data: bytes, network: str = "") -> bytes:
        """Add or replace a member, which counts for `network` (`pylon.rooms.networks`).

        Returns:
            The members before the join, as a JSON array.

        Raises:
            RoomLimitReached, RoomFull: a limit forbids the join; nothing has changed.
        """
        room = self._rooms.get(name)
        member = None if room is None else room.members.get(user_id)
        joined_at_s = self._clock.wall_ns() // NS_PER_S
        peer = _peer(user_id, data, joined_at_s)
        if member is None:
            self._check_new_member(room, user_id)
        self._check_size(room, len(peer) + 1 - _size(member))
        is_new = member is None or member.network != network
        self._networks.check(
            network, rooms=int(room is None), members=int(is_new),
            size_bytes=len(peer) + 1 - (0 if is_new else _size(member)),
        )
        before = b"[]" if room is None else room.peers()
        was_member = member is not None
        if room is None:
            room = self._rooms[name] = _Room(name, network)
            self._networks.add(network, rooms=1)
        if member is None:
            member = room.members[user_id] = _Member(user_id, network)
            self._networks.add(network, members=1)
            self._rooms_of.setdefault(user_id, set()).add(name)
            self.members += 1
        elif is_new:
            size_bytes = _size(member)
            self._networks.add(member.network, members=-1, size_bytes=-size_bytes)
            self._networks.add(network, members=1, size_bytes=size_bytes)
            member.network = network
        member.joined_at_s = joined_at_s
        self._put(room, member, data, peer)
        self._note_activity(name, member)
        if self._has_listeners(name, room):
            self._updates.changed(name, user_id, "join", data, was_member=was_member)
        return before

    def leave(self, name: str, user_id: str) -> bool:
        """Remove a member; return whether the user was a member."""
        room = self._rooms.get(name)
        member = None if room is None else room.members.pop(user_id, None)
        if room is None or member is None:
            return False
        if self._has_listeners(name, room):
            self._updates.changed(name, user_id, "leave", NULL, was_member=True)
        for socket in list(member.sockets):
            self._forget(name, room, member, socket)
            self._updates.drop(name, socket)
        self._silent.pop((name, user_id), None)
        self._size_bytes -= _size(member)
        room.changed(-_size(member))
        self._networks.add(member.network, members=-1, size_bytes=-_size(member))
        self.members -= 1
        mine = self._rooms_of[user_id]
        mine.discard(name)
        if not mine:
            del self._rooms_of[user_id]
        if not room.members:
            del self._rooms[name]
            self._networks.add(room.network, rooms=-1)
        return True

    def set_presence(self, name: str, user_id: str, data: bytes) -> bool:
        """Replace a member's data; return False if the user is not a member.

        Raises:
            RoomLimitReached, RoomFull: a limit forbids the data; nothing has changed.
        """
        room = self._rooms.get(name)
        member = None if room is None else room.members.get(user_id)
        if room is None or member is None:
            return False
        peer = _peer(user_id, data, member.joined_at_s)
        delta_bytes = len(peer) + 1 - _size(member)
        self._check_size(room, delta_bytes)
        self._networks.check(member.network, rooms=0, members=0, size_bytes=delta_bytes)
        self._put(room, member, data, peer)
        self._note_activity(name, member)
        if self._has_listeners(name, room):
            self._updates.changed(name, user_id, "presence", data, was_member=True)
        return True

    def add_message(self, name: str, user_id: str, text: bytes) -> bool:
        """Send a whole message to the subscribers; return False if the user is not a member.

        Raises:
            RoomLimitReached: the messages of this tick are too large.
        """
        room = self._rooms.get(name)
        member = None if room is None else room.members.get(user_id)
        if room is None or member is None:
            return False
        self._note_activity(name, member)
        if self._has_listeners(name, room):
            self._updates.add_message(name, text)
        return True

    def broadcast(self, name: str, user_id: str, topic: str, data: bytes) -> bool:
        """Send a broadcast to the subscribers; return and raise as `add_message`."""
        return self.add_message(name, user_id, broadcast_text(name, user_id, topic, data))

    def expire(self) -> None:
        """Remove the members without activity for `limits.ROOM_IDLE_S`."""
        since_s = self._clock.monotonic_s() - limits.ROOM_IDLE_S
        late = []
        for key, heard_s in self._silent.items():
            if heard_s > since_s:
                break
            late.append(key)
        for name, user_id in late:
            self.leave(name, user_id)

    # --- Reading ---------------------------------------------------------------------------

    def poll(self, name: str, user_id: str) -> bytes:
        """Return the body of ``GET /api/rooms/<room>``. A poll of a member counts as activity."""
        room = self._rooms.get(name)
        if room is None:
            return _answer(0, b"[]", json_text(name))
        member = room.members.get(user_id)
        if member is not None:
            member.polled_s = self._clock.monotonic_s()
            self._note_activity(name, member)
        return _answer(len(room.members), room.peers(), room.name)

    def list_json(self) -> bytes:
        """Return the body of ``GET /api/rooms``."""
        return b"[%b]" % b",".join([room.line() for room in self._rooms.values()])

    def snapshot(self, name: str) -> bytes:
        """Return a room's `room-snapshot`; an unknown room has no members."""
        room = self._rooms.get(name)
        return _snapshot(json_text(name), b"[]") if room is None else room.snapshot()

    def snapshot_for(self, name: str, source: bytes) -> RoomSnapshot:
        """Return a room's snapshot and the numbers of a worker's subscribed sockets."""
        room = self._rooms.get(name)
        members = () if room is None else room.members.values()
        self._updates.note_snapshot(name)
        numbers = [n for m in members for whose, n in m.sockets if whose == source]
        return RoomSnapshot(name, self.snapshot(name), numbers)

    # --- Sockets ---------------------------------------------------------------------------

    def subscribe(self, name: str, user_id: str, socket: Socket) -> bytes:
        """Subscribe a member's socket to the room.

        Returns:
            The text of a `room-snapshot`.

        Raises:
            NotInRoom: the user is not a member.
        """
        room = self._rooms.get(name)
        member = None if room is None else room.members.get(user_id)
        if room is None or member is None:
            raise NotInRoom("You are not a member of this room", hint="Join it first")
        before = self._subscriptions.get(socket, {}).get(name)
        if before is not None and before != user_id:  # the socket's user has changed
            self.unsubscribe(name, socket)
        if socket not in member.sockets:
            member.sockets.add(socket)
            room.subscribers += 1
            self._subscriptions.setdefault(socket, {})[name] = user_id
        self._silent.pop((name, user_id), None)
        self._updates.keep(name, socket)
        self._updates.note_snapshot(name)
        return room.snapshot()

    def unsubscribe(self, name: str, socket: Socket) -> None:
        """Unsubscribe a socket. Its user stays a member while there is activity."""
        user_id = self._subscriptions.get(socket, {}).get(name)
        if user_id is None:
            return
        room = self._rooms[name]
        member = room.members[user_id]
        self._forget(name, room, member, socket)
        self._note_activity(name, member)

    def remove_socket(self, socket: Socket) -> None:
        """Remove a closed socket. A member without another socket or a recent poll leaves."""
        since_s = self._clock.monotonic_s() - limits.ROOM_POLL_S
        for name, user_id in list(self._subscriptions.get(socket, {}).items()):
            room = self._rooms[name]
            member = room.members[user_id]
            self._forget(name, room, member, socket)
            if member.sockets:
                continue
            if member.polled_s > since_s:
                self._note_activity(name, member)
            else:
                self.leave(name, user_id)

    def remove_worker(self, source: bytes) -> None:
        """Remove all sockets of a worker; the next tick tells the worker, if it still lives."""
        for socket in [s for s in self._subscriptions if s[0] == source]:
            for name in self._subscriptions[socket]:
                self._updates.drop(name, socket)
            self.remove_socket(socket)

    # --- Internals -------------------------------------------------------------------------

    def _put(self, room: _Room, member: _Member, data: bytes, peer: bytes) -> None:
        delta_bytes = len(peer) + 1 - _size(member)
        member.data = data
        member.peer = peer
        self._size_bytes += delta_bytes
        self._networks.add(member.network, size_bytes=delta_bytes)
        room.changed(delta_bytes)

    def _note_activity(self, name: str, member: _Member) -> None:
        if not member.sockets:
            key = (name, member.user_id)
            self._silent.pop(key, None)  # to the end of the order
            self._silent[key] = self._clock.monotonic_s()

    def _has_listeners(self, name: str, room: _Room) -> bool:
        """Whether updates reach a socket, or one that left within this tick."""
        return room.subscribers > 0 or self._updates.has(name)

    def _forget(self, name: str, room: _Room, member: _Member, socket: Socket) -> None:
        member.sockets.discard(socket)
        room.subscribers -= 1
        rooms = self._subscriptions[socket]
        del rooms[name]
        if not rooms:
            del self._subscriptions[socket]

    def _check_new_member(self, room: _Room | None, user_id: str) -> None:
        if room is None and len(self._rooms) >= limits.ROOMS:
            raise RoomLimitReached(f"Too many rooms (limit {limits.ROOMS})")
        if len(self._rooms_of.get(user_id, ())) >= limits.ROOMS_OF_USER:
            raise RoomLimitReached(
                f"You are in too many rooms (limit {limits.ROOMS_OF_USER})", hint="Leave one"
            )
        if room is not None and len(room.members) >= limits.ROOM_MEMBERS:
            raise RoomFull(f"The room is full (limit {limits.ROOM_MEMBERS} members)")

    def _check_size(self, room: _Room | None, delta_bytes: int) -> None:
        if delta_bytes <= 0:
            return
        if (0 if room is None else room.size_bytes) + delta_bytes > limits.ROOM_BYTES:
            raise RoomFull(f"The room's members hold too much (limit {limits.ROOM_BYTES} bytes)")
        if self._size_bytes + delta_bytes > limits.ROOMS_BYTES:
            raise RoomLimitReached(f"All rooms hold too much (limit {limits.ROOMS_BYTES} bytes)")


def _size(member: _Member | None) -> int:
    """Return the bytes of a member's JSON text and its comma."""
    return len(member.peer) + 1 if member is not None and member.peer else 0


def _peer(user_id: str, data: bytes, joined_at_s: int) -> bytes:
    return b'{"data":%b,"joined_at":"%dZ","user_id":%b}' % (data, joined_at_s, json_text(user_id))


def _snapshot(name: bytes, peers: bytes) -> bytes:
    return b'{"type":"room-snapshot","room":%b,"members":%b}' % (name, peers)


def _answer(count: int, peers: bytes, name: bytes) -> bytes:
    return b'{"count":%d,"members":%b,"room":%b}' % (count, peers, name)
