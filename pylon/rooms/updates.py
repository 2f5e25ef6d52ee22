"""What subscribers of rooms are told: gathered for a tick, coalesced, and encoded once.

A member who changes several times within a tick is told of once, as it is in the end; one who
comes and goes within a tick is not told of, unless a snapshot was given out meanwhile. Where
many change, a fresh snapshot of the room is sent instead, if it is smaller than the changes. So
a thousand who join at once cost each subscriber about one snapshot, and the server one encoding.

Invariants: the news of a tick, applied to the room as it was at the tick before, give the room
as it is; a broadcast comes after the join of its sender and before its leave; news may repeat
what a snapshot that was given out during the tick has already. Every text is one JSON object.
Used by `pylon.rooms.members` and `pylon.rooms.service`.
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
    was_there: bool  # at the end of the last tick, as subscribers know it


class _Pending:
    """A room's news of this tick, in order: changes by user id, other texts by their number."""

    __slots__ = ("dropped", "entries", "said_bytes", "was_shown")

    def __init__(self) -> None:
        self.entries: dict[str | int, _Change | bytes] = {}
        self.said_bytes = 0
        self.was_shown = False  # somebody has a snapshot of within this tick
        self.dropped: dict[Socket, None] = {}


class Updates:
    """The news of all rooms."""

    def __init__(self) -> None:
        self._pending: dict[str | None, _Pending] = {}  # None: for every client there is
        self._said = 0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._pending)

    def has(self, room: str) -> bool:
        """Whether the room has any."""
        return room in self._pending

    def changed(
        self, room: str, user_id: str, action: Action, data: bytes, *, was_member: bool
    ) -> None:
        """A member has come, gone or changed.

        Args:
            data: JSON text.
            was_member: before this change.
        """
        pending = self._of(room)
        entries = pending.entries
        last = entries.get(user_id)
        if not isinstance(last, _Change):
            entries[user_id] = _Change(action, data, was_member)
            return
        _COALESCED.inc()
        if action == "leave" or last.action == "leave":
            del entries[user_id]  # it belongs at the end: after what it said
            if action == "leave":
                if last.was_there or pending.was_shown:
                    entries[user_id] = _Change("leave", NULL, True)
                return
        joined = action == "join" or last.action in ("join", "leave")
        entries[user_id] = _Change("join" if joined else action, data, last.was_there)

    def say(self, room: str | None, text: bytes) -> None:
        """Something for all subscribers of the room, or for every client.

        Raises:
            RoomLimitReached: more than `limits.ROOM_TICK_BYTES` in one tick.
        """
        pending = self._of(room)
        if pending.said_bytes + len(text) > limits.ROOM_TICK_BYTES:
            _DROPPED.inc()
            raise RoomLimitReached(
                f"Too much is said at once (limit {limits.ROOM_TICK_BYTES} bytes in "
                f"{limits.ROOM_TICK_S:g} s for each room)"
            )
        pending.said_bytes += len(text)
        self._said += 1
        pending.entries[self._said] = text

    def drop(self, room: str, socket: Socket) -> None:
        """Let the socket hear no more after this tick."""
        self._of(room).dropped[socket] = None

    def keep(self, room: str, socket: Socket) -> None:
        """It has subscribed again."""
        pending = self._pending.get(room)
        if pending is not None:
            pending.dropped.pop(socket, None)

    def shown(self, room: str) -> None:
        """A snapshot was given out: who has come in this tick is known to somebody."""
        pending = self._pending.get(room)
        if pending is not None:
            pending.was_shown = True

    def take(self, snapshot_of: Callable[[str], bytes]) -> list[RoomTick]:
        """End the tick: its news. `snapshot_of` gives a room's `room-snapshot` text."""
        ticks = [
            RoomTick(room, _texts(room, pending, snapshot_of), list(pending.dropped))
            for room, pending in self._pending.items()
        ]
        self._pending = {}
        _SENT.inc(sum(len(tick.texts) for tick in ticks))
        return [tick for tick in ticks if tick.texts or tick.dropped]

    def _of(self, room: str | None) -> _Pending:
        pending = self._pending.get(room)
        if pending is None:
            pending = self._pending[room] = _Pending()
        return pending


def broadcast_text(room: str, user_id: str, topic: str, data: bytes) -> bytes:
    """A member's broadcast as subscribers get it; `data` is JSON text."""
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
            said = [entry for entry in entries.values() if isinstance(entry, bytes)]
            return [snapshot, *said]
    return texts


def _update_text(name: bytes, user_id: str, action: bytes, data: bytes) -> bytes:
    """`name` is the room's as JSON text; no data where `data` is empty."""
    tail = b',"data":%b}' % data if data else b"}"
    return b'{"type":"room-update","room":%b,"action":"%b","member":{"user_id":%b}%b' % (
        name, action, json_text(user_id), tail
    )
