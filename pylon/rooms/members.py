"""Members of rooms, their presence data and their subscribed sockets (spec/realtime.md §5.2).

A subscribed socket keeps its member in the room. So does activity: a join, a change of presence, a
broadcast, or a poll of the room. A member without a socket leaves after `limits.ROOM_IDLE_S`
without activity. When its last socket closes, a member leaves at once unless it also polls: the
official `useRoom` opens no socket and polls the room every 5 s.

Invariants: a socket is subscribed only to rooms of its user, and never after the user has left. A
room is the union of its members on all nodes: a member leaves when its last part has ended
(`pylon.rooms.node_news`); an explicit leave ends them all. What a member of another node takes
counts in all bounds but those of networks. `member_table` has the bounds. Called by
`pylon.rooms.service`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from pylon import limits
from pylon.bus.rooms_messages import RoomSnapshot
from pylon.clock import NS_PER_S, Clock
from pylon.errors import NotInRoom, RoomLimitReached
from pylon.rooms.member_table import MemberTable
from pylon.rooms.node_news import MemberPart, NodeChanges, PartEnd
from pylon.rooms.room import Member, NodePart, Room, peer_text
from pylon.rooms.updates import NULL, Socket, Updates, broadcast_text

_NS_PER_US: Final = 1_000


class Rooms:
    """All rooms. Callers check names and user ids; data is JSON text."""

    def __init__(self, clock: Clock, updates: Updates, changes: NodeChanges) -> None:
        """Args: `changes` gathers what other nodes are to know."""
        self._clock = clock
        self._updates = updates
        self._changes = changes
        self._stamp = 0  # the newest that this node knows
        self._remote: dict[str, set[tuple[str, str]]] = {}  # parts by incarnation: (room, user id)
        self._unconfirmed: dict[str, set[tuple[str, str]]] = {}  # those not told anew yet
        self.table = MemberTable()
        self._rooms = self.table.rooms
        self._subscriptions: dict[Socket, dict[str, str]] = {}  # room: user id
        # (room, user id) of members without sockets: last activity, the oldest first.
        self._silent: dict[tuple[str, str], float] = {}

    @property
    def members(self) -> int:
        """Return how many members all rooms have."""
        return self.table.members

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
        peer = peer_text(user_id, data, joined_at_s)
        if member is None:
            self.table.check_member(room, user_id)
        before_bytes = 0 if member is None else member.size_bytes
        is_new = member is None or member.network != network
        self.table.check_size(
            room, len(peer) + 1 - before_bytes, network, rooms=int(room is None),
            members=int(is_new), network_bytes=len(peer) + 1 - (0 if is_new else before_bytes),
        )
        before = b"[]" if room is None else room.peers()
        was_member = member is not None
        if room is None or member is None:
            room, member = self.table.add(name, user_id, network)
        elif is_new:
            self.table.move(member, network)
        member.joined_at_s = joined_at_s
        self.table.put(room, member, data, peer)
        self._tell(name, member)
        self._note_activity(name, member)
        if self._has_listeners(name, room):
            self._updates.changed(name, user_id, "join", data, was_member=was_member)
        return before

    def leave(self, name: str, user_id: str) -> bool:
        """Remove a member, on all nodes; return whether the user was a member as known here.

        The other nodes are told in any case: the user may have joined on one of them just now.
        """
        room, member = self.table.find(name, user_id)
        was_member = room is not None and member is not None
        if room is not None and member is not None:
            self._remove(name, room, member)
        self._changes.ended(name, user_id, self._next_stamp(), everywhere=True)
        return was_member

    def set_presence(self, name: str, user_id: str, data: bytes) -> bool:
        """Replace a member's data; return False if the user is not a member.

        Raises:
            RoomLimitReached, RoomFull: a limit forbids the data; nothing has changed.
        """
        room, member = self.table.find(name, user_id)
        if room is None or member is None:
            return False
        peer = peer_text(user_id, data, member.joined_at_s)
        delta_bytes = len(peer) + 1 - member.size_bytes
        self.table.check_size(room, delta_bytes, member.network, network_bytes=delta_bytes)
        self.table.put(room, member, data, peer)
        self._tell(name, member)
        self._note_activity(name, member)
        if self._has_listeners(name, room):
            self._updates.changed(name, user_id, "presence", data, was_member=True)
        return True

    def add_message(self, name: str, user_id: str, text: bytes) -> bool:
        """Send a whole message to the subscribers; return False if the user is not a member.

        Raises:
            RoomLimitReached: the messages of this tick are too large.
        """
        room, member = self.table.find(name, user_id)
        if room is None or member is None:
            return False
        self._note_activity(name, member)
        if self._has_listeners(name, room):
            self._updates.add_message(name, text)
        self._changes.said(name, text)
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
            self._end_here(name, user_id)

    # --- Reading ---------------------------------------------------------------------------

    def poll(self, name: str, user_id: str) -> bytes:
        """Return the body of ``GET /api/rooms/<room>``. A poll of a member counts as activity."""
        room = self._rooms.get(name)
        if room is None:
            return Room(name, "").answer()
        member = room.members.get(user_id)
        if member is not None:
            member.polled_s = self._clock.monotonic_s()
            self._note_activity(name, member)
        return room.answer()

    def list_json(self) -> bytes:
        """Return the body of ``GET /api/rooms``."""
        return b"[%b]" % b",".join([room.line() for room in self._rooms.values()])

    def snapshot(self, name: str) -> bytes:
        """Return a room's `room-snapshot`; an unknown room has no members."""
        return (self._rooms.get(name) or Room(name, "")).snapshot()

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
        room, member = self.table.find(name, user_id)
        if room is None or member is None:
            raise NotInRoom("You are not a member of this room", hint="Join it first")
        before = self._subscriptions.get(socket, {}).get(name)
        if before is not None and before != user_id:  # the socket's user has changed
            self.unsubscribe(name, socket)
        if socket not in member.sockets:
            if not member.sockets:
                self._changes.changed(name, user_id)
            member.is_here = True
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
                self._end_here(name, user_id)

    def remove_worker(self, source: bytes) -> None:
        """Remove all sockets of a worker; the next tick tells the worker, if it still lives."""
        for socket in [s for s in self._subscriptions if s[0] == source]:
            for name in self._subscriptions[socket]:
                self._updates.drop(name, socket)
            self.remove_socket(socket)

    # --- Other nodes -----------------------------------------------------------------------

    def put_part(self, incarnation: str, part: MemberPart) -> None:
        """Take over a part of another node. Limits do not refuse it: that node has judged it."""
        name, user_id, data = part.room, part.user_id, bytes(part.data)
        self._stamp = max(self._stamp, part.stamp)
        room, member = self.table.find(name, user_id)
        was_member = member is not None
        if room is None or member is None:
            room, member = self.table.add(name, user_id, "")
        member.parts[incarnation] = NodePart(part.stamp, data, part.joined_at_s)
        self._remote.setdefault(incarnation, set()).add((name, user_id))
        self._unconfirmed.get(incarnation, set()).discard((name, user_id))
        newest = max(member.parts.values())
        # Newer data stay while their part is there. A node that has adopted them tells them too.
        # Two nodes may give one stamp, so the data decide.
        held = member.stamp, member.data
        is_orphan = not member.is_here and newest[:2] < held
        if newest[:2] > held or is_orphan or not was_member:
            self._take_over(name, room, member, newest, was_member=was_member)
        since_s = self._clock.monotonic_s() - limits.ROOM_POLL_S
        if (
            part.is_attached and member.is_here and not member.sockets
            and member.polled_s <= since_s and part.stamp >= member.stamp
        ):
            # Its socket is on the other node. When that closes, the member is to leave at once. An
            # older stamp is late news, perhaps of a socket from before its last join here, and the
            # other node lacks the data that were set here.
            self._end_here(name, user_id)

    def _take_over(
        self, name: str, room: Room, member: Member, part: NodePart, *, was_member: bool
    ) -> None:
        """Make the data of a part those of the member."""
        is_join = not was_member or part.joined_at_s != member.joined_at_s
        is_change = part.data != member.data
        member.stamp, member.joined_at_s = part.stamp, part.joined_at_s
        peer = peer_text(member.user_id, part.data, part.joined_at_s)
        self.table.put(room, member, part.data, peer)
        if (is_join or is_change) and self._has_listeners(name, room):
            self._updates.changed(
                name, member.user_id, "join" if is_join else "presence", part.data,
                was_member=was_member,
            )

    def end_part(self, incarnation: str, ended: PartEnd) -> None:
        """End a part of another node; with `everywhere` all parts that are not newer."""
        room, member = self.table.find(ended.room, ended.user_id)
        if room is None or member is None:
            return
        self._stamp = max(self._stamp, ended.stamp)
        for name, part in list(member.parts.items()):
            if name == incarnation or (ended.everywhere and part.stamp <= ended.stamp):
                del member.parts[name]
                self._remote[name].discard((ended.room, ended.user_id))
        ends_here = ended.everywhere and member.is_here and member.stamp <= ended.stamp
        if ends_here:
            member.is_here = False
        if not member.parts and not member.is_here:
            self._remove(ended.room, room, member)
        elif ends_here:
            self._drop_sockets(ended.room, room, member)
            self.table.move(member, "")
        if member.is_here:
            self._changes.changed(ended.room, ended.user_id)  # with data that the part had told
        if ends_here:
            self._changes.ended(ended.room, ended.user_id, ended.stamp, everywhere=False)

    def add_remote_message(self, name: str, text: bytes) -> None:
        """Send a message of another node to the subscribers here."""
        room = self._rooms.get(name)
        if room is not None and self._has_listeners(name, room):
            with suppress(RoomLimitReached):  # the tick is full: it is dropped and counted
                self._updates.add_message(name, text)

    def begin_copy(self, incarnation: str) -> None:
        """A node begins to tell all its parts."""
        self._unconfirmed[incarnation] = set(self._remote.get(incarnation, ()))

    def end_copy(self, incarnation: str) -> None:
        """A node has told all its parts: others that it had have ended."""
        for name, user_id in self._unconfirmed.pop(incarnation, ()):
            self.end_part(incarnation, PartEnd(name, user_id, 0, False))

    def remove_node(self, incarnation: str) -> None:
        """Remove all parts of a node that has ended."""
        self._unconfirmed.pop(incarnation, None)
        for name, user_id in list(self._remote.get(incarnation, ())):
            self.end_part(incarnation, PartEnd(name, user_id, 0, False))
        self._remote.pop(incarnation, None)

    # --- Internals -------------------------------------------------------------------------

    def _next_stamp(self) -> int:
        self._stamp = max(self._stamp + 1, self._clock.wall_ns() // _NS_PER_US)
        return self._stamp

    def _tell(self, name: str, member: Member) -> None:
        """Note that the data of a member was set on this node."""
        member.is_here = True
        member.stamp = self._next_stamp()
        self._changes.changed(name, member.user_id)

    def _end_here(self, name: str, user_id: str) -> None:
        """End the part of a member on this node, where it has no socket any more."""
        room = self._rooms[name]
        member = room.members[user_id]
        if member.parts:
            member.is_here = False
            self._silent.pop((name, user_id), None)
            self.table.move(member, "")
        else:
            self._remove(name, room, member)
        self._changes.ended(name, user_id, member.stamp, everywhere=False)

    def _drop_sockets(self, name: str, room: Room, member: Member) -> None:
        """Unsubscribe all sockets of a member at the end of the tick."""
        for socket in list(member.sockets):
            self._forget(name, room, member, socket)
            self._updates.drop(name, socket)
        self._silent.pop((name, member.user_id), None)

    def _remove(self, name: str, room: Room, member: Member) -> None:
        """Remove a member with all its parts."""
        user_id = member.user_id
        del room.members[user_id]
        if self._has_listeners(name, room):
            self._updates.changed(name, user_id, "leave", NULL, was_member=True)
        self._drop_sockets(name, room, member)
        for incarnation in member.parts:
            self._remote[incarnation].discard((name, user_id))
        self.table.remove(name, room, member)

    def _note_activity(self, name: str, member: Member) -> None:
        if not member.is_here:  # a member on other nodes is active on this one, too
            member.is_here = True
            self._changes.changed(name, member.user_id)
        if not member.sockets:
            key = (name, member.user_id)
            self._silent.pop(key, None)  # to the end of the order
            self._silent[key] = self._clock.monotonic_s()

    def _has_listeners(self, name: str, room: Room) -> bool:
        """Whether updates reach a socket, or one that left within this tick."""
        return room.subscribers > 0 or self._updates.has(name)

    def _forget(self, name: str, room: Room, member: Member, socket: Socket) -> None:
        member.sockets.discard(socket)
        if not member.sockets:
            self._changes.changed(name, member.user_id)
        room.subscribers -= 1
        rooms = self._subscriptions[socket]
        del rooms[name]
        if not rooms:
            del self._subscriptions[socket]
