"""Updates of rooms: gathered for a tick, coalesced for each member, and encoded once.

Several changes of a member within a tick produce one update with the last state. A member who joins
and leaves within one tick produces no update, unless a snapshot was sent in between. If many
members change, the tick carries a snapshot of the room instead, provided that it is smaller. So a
thousand joins at once cost each subscriber about one snapshot, and the server one encoding.

Invariants: the updates of a tick turn the room of the previous tick into the present one. A
broadcast follows the join of its sender and precedes its leave. Updates may repeat changes that a
snapshot of the same tick contains. Every text is one JSON object. Bounds: `limits.ROOM_TICK_BYTES`
of messages for each room and tick. Metric: pylon_room_updates_total. Called by
`pylon.rooms.members` and `pylon.rooms.service`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from pylon import limits, metrics
from pylon.bus.rooms_messages import RoomTick
from pylon.errors import RoomLimitReached

Socket = tuple[bytes, int]  # of a worker, by its routing id and the socket's number there
Action = Literal["join", "leave", "presence"]

NULL: Final = b"null"

_SENT: Final = metrics.ROOM_EVENTS.labels("sent")
_COALESCED: Final = metrics.ROOM_EVENTS.labels("coalesced")
_DROPPED: Final = metrics.ROOM_EVENTS.labels("dropped")

json_text: Final = msgspec.json.Encoder().encode


class _Change(NamedTuple):
    action: Action
    data: bytes
    was_there: bool  # at the end of the previous tick, which subscribers know


class _Pending:
    """A room's updates of this tick, in order: changes by user id, messages by their number."""

    __slots__ = ("dropped", "entries", "had_snapshot", "message_bytes")

    def __init__(self) -> None:
        self.entries: dict[str | int, _Change | bytes] = {}
        self.message_bytes = 0
        self.had_snapshot = False  # a client received a snapshot within this tick
        self.dropped: dict[Socket, None] = {}


class Updates:
    """The updates of all rooms."""

    def __init__(self) -> None:
        self._pending: dict[str | None, _Pending] = {}  # None: for every connected client
        self._messages = 0

    def __bool__(self) -> bool:
        """Whether any update waits for the end of the tick."""
        return bool(self._pending)

    def has(self, room: str) -> bool:
        """Whether an update of the room waits for the end of the tick."""
        return room in self._pending

    def changed(
        self, room: str, user_id: str, action: Action, data: bytes, *, was_member: bool
    ) -> None:
        """Record a join, a leave or a change of presence.

        Args:
            data: the member's data as JSON text.
            was_member: whether the user was a member before this change.
        """
        pending = self._pending_of(room)
        entries = pending.entries
        last = entries.get(user_id)
        if not isinstance(last, _Change):
            entries[user_id] = _Change(action, data, was_member)
            return
        _COALESCED.inc()
        if action == "leave" or last.action == "leave":
            del entries[user_id]  # to the end of the order, behind the member's own messages
            if action == "leave":
                if last.was_there or pending.had_snapshot:
                    entries[user_id] = _Change("leave", NULL, True)
                return
        joined = action == "join" or last.action in ("join", "leave")
        entries[user_id] = _Change("join" if joined else action, data, last.was_there)

    def add_message(self, room: str | None, text: bytes) -> None:
        """Add a message for all subscribers of a room; without a room, for every client.

        Raises:
            RoomLimitReached: the messages of the tick exceed `limits.ROOM_TICK_BYTES`.
        """
        pending = self._pending_of(room)
        if pending.message_bytes + len(text) > limits.ROOM_TICK_BYTES:
            _DROPPED.inc()
            raise RoomLimitReached(
                f"Too much is said at once (limit {limits.ROOM_TICK_BYTES} bytes in "
                f"{limits.ROOM_TICK_S:g} s for each room)"
            )
        pending.message_bytes += len(text)
        self._messages += 1
        pending.entries[self._messages] = text

    def drop(self, room: str, socket: Socket) -> None:
        """Unsubscribe a socket at the end of this tick."""
        self._pending_of(room).dropped[socket] = None

    def keep(self, room: str, socket: Socket) -> None:
        """Cancel `drop`: the socket has subscribed again."""
        pending = self._pending.get(room)
        if pending is not None:
            pending.dropped.pop(socket, None)

    def note_snapshot(self, room: str) -> None:
        """Record that a client received a snapshot, and so knows the joins of this tick."""
        pending = self._pending.get(room)
        if pending is not None:
            pending.had_snapshot = True

    def take(self, snapshot_of: Callable[[str], bytes]) -> list[RoomTick]:
        """End the tick and return its updates.

        Args:
            snapshot_of: returns the text of a room's `room-snapshot`.
        """
        ticks = [
            RoomTick(room, _texts(room, pending, snapshot_of), list(pending.dropped))
            for room, pending in self._pending.items()
        ]
        self._pending = {}
        _SENT.inc(sum(len(tick.texts) for tick in ticks))
        return [tick for tick in ticks if tick.texts or tick.dropped]

    def _pending_of(self, room: str | None) -> _Pending:
        pending = self._pending.get(room)
        if pending is None:
            pending = self._pending[room] = _Pending()
        return pending


def broadcast_text(room: str, user_id: str, topic: str, data: bytes) -> bytes:
    """Return the text of a member's broadcast; `data` is JSON text."""
    payload = b'{"topic":%b,"payload":%b}' % (json_text(topic), data)
    return _update_text(json_text(room), user_id, b"broadcast", payload)


def _texts(
    room: str | None, pending: _Pending, snapshot_of: Callable[[str], bytes]
) -> list[bytes]:
    entries = pending.entries
    if room is None:
        return [entry for entry in entries.values() if isinstance(entry, bytes)]
    name = json_text(room)
    texts: list[bytes] = []
    changes_bytes = changes = 0
    for key, entry in entries.items():
        if isinstance(entry, bytes):
            texts.append(entry)
            continue
        data = b"" if entry.action == "leave" else entry.data
        if entry.action == "join" and data == NULL:
            data = b""
        text = _update_text(name, str(key), entry.action.encode(), data)
        texts.append(text)
        changes += 1
        changes_bytes += len(text)
    if changes > limits.ROOM_TICK_UPDATES:
        snapshot = snapshot_of(room)
        if len(snapshot) < changes_bytes:
            messages = [entry for entry in entries.values() if isinstance(entry, bytes)]
            return [snapshot, *messages]
    return texts


def _update_text(name: bytes, user_id: str, action: bytes, data: bytes) -> bytes:
    """Return the text of a `room-update`.

    Args:
        name: the room's name as JSON text.
        data: JSON text; empty: the update has no data.
    """
    tail = b',"data":%b}' % data if data else b"}"
    return b'{"type":"room-update","room":%b,"action":"%b","member":{"user_id":%b}%b' % (
        name, action, json_text(user_id), tail
    )
