"""Rooms: the members of a room, their presence, and what they send.

Joining and leaving are requests; the shared socket (`links`) brings the members and the messages.
A connection that ended joins again. `RoomView` keeps the members and a queue of 1,000 events. When
the queue is full, it is replaced by one event of kind ``missed``: the members stay right, while
the messages of the queue are lost, as the server keeps none.

Called by `links` and both shells, under the lock of the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

from pylon_client.effects import Steps
from pylon_client.entities import encode, plain
from pylon_client.errors import PylonError
from pylon_client.requests import Core, decode_object, send_json
from pylon_client.windows import Incoming

QUEUED_EVENTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a room. `data` is what the member has set for others to see."""

    user_id: str
    data: Any = None
    joined_at: str | None = None


@dataclass(frozen=True, slots=True)
class RoomEvent:
    """One event of a room.

    `kind`: snapshot (the members are known anew), join, leave, presence, broadcast, or missed.
    `user_id` is the member; a broadcast has `topic` and `data`.
    """

    kind: Literal["snapshot", "join", "leave", "presence", "broadcast", "missed"]
    user_id: str | None = None
    topic: str | None = None
    data: Any = None


class RoomView:
    """The state of one room for one client. `notify` is called after each change."""

    def __init__(self, name: str, data: Any, notify: Callable[[], None]) -> None:
        self.name = name
        self.data = data  # of this client, sent again with each join
        self.notify = notify
        self.members: dict[str, Member] = {}
        self.is_live = False
        self.error: PylonError | None = None
        self.needs_join = False
        self._events: deque[RoomEvent] = deque()

    def subscribe_text(self) -> bytes:
        """Return the message that subscribes."""
        return encode({"type": "room-subscribe", "room": self.name})

    def unsubscribe_text(self) -> bytes:
        """Return the message that ends the subscription."""
        return encode({"type": "room-unsubscribe", "room": self.name})

    def lose(self) -> None:
        """The connection has ended; the members may be old."""
        self.is_live = False
        self.needs_join = True
        self.notify()

    def fail(self, error: PylonError) -> None:
        """The room has ended with an error."""
        self.error = error
        self.is_live = False
        self.notify()

    def replace_members(self, members: list[Member]) -> None:
        """Take the members that a request has returned, where no socket opens."""
        found = {member.user_id: member for member in members}
        if not self.is_live or found != self.members:
            self.members = found
            self.is_live = True
            self._add(RoomEvent("snapshot"))

    def take_events(self) -> list[RoomEvent]:
        """Return the events since the last call."""
        taken = [*self._events]
        self._events.clear()
        return taken

    def receive(self, message: Incoming) -> None:
        """Apply a message of the server."""
        if message.type == "room-snapshot":
            self.members = {
                str(m["user_id"]): Member(str(m["user_id"]), m.get("data"), m.get("joined_at"))
                for m in message.members
            }
            self.is_live = True
            self._add(RoomEvent("snapshot"))
        elif message.type == "room-update":
            self._update(message.action, str(message.member.get("user_id")), message.json_data())
        elif message.type in ("topic", "presence") and message.sender is not None:
            topic = message.topic if message.type == "topic" else message.event
            self._add(RoomEvent("broadcast", message.sender, topic, message.json_data()))

    def _update(self, action: str, user_id: str, data: Any) -> None:
        if action == "leave":
            self.members.pop(user_id, None)
            self._add(RoomEvent("leave", user_id))
        elif action == "broadcast" and isinstance(data, dict):
            self._add(RoomEvent("broadcast", user_id, data.get("topic"), data.get("payload")))
        elif action in ("join", "presence"):
            known = self.members.get(user_id)
            self.members[user_id] = Member(user_id, data, known.joined_at if known else None)
            self._add(RoomEvent("join" if action == "join" else "presence", user_id, data=data))

    def _add(self, event: RoomEvent) -> None:
        if len(self._events) >= QUEUED_EVENTS:
            self._events.clear()
            self._events.append(RoomEvent("missed"))
        else:
            self._events.append(event)
        self.notify()


def join(core: Core, room: RoomView) -> Steps[None]:
    """Join a room. Raises: PermissionDeniedError: a policy of rooms forbids it."""
    body = {"room": room.name} if room.data is None else {"room": room.name, "data": room.data}
    yield from send_json(core, "POST", "/api/rooms/join", plain(body))


def leave(core: Core, name: str) -> Steps[None]:
    """Leave a room; also one that the caller is not in."""
    yield from send_json(core, "POST", "/api/rooms/leave", {"room": name})


def set_presence(core: Core, room: RoomView, data: Any) -> Steps[None]:
    """Set what others see of this member."""
    room.data = data
    yield from send_json(
        core, "POST", "/api/rooms/presence", plain({"room": room.name, "data": data})
    )


def broadcast(core: Core, name: str, topic: str, data: Any) -> Steps[bool]:
    """Send a message to the members. Return whether this client was one."""
    body = plain({"room": name, "topic": topic, "data": data})
    answer = yield from send_json(
        core, "POST", "/api/rooms/broadcast", body, is_repeatable=False
    )
    return bool(decode_object(answer).get("broadcasted"))


def read_members(core: Core, name: str) -> Steps[list[Member]]:
    """Return the members of a room, without joining it."""
    answer = yield from send_json(core, "GET", f"/api/rooms/{quote(name, safe='')}")
    return [
        Member(str(m["user_id"]), m.get("data"), m.get("joined_at"))
        for m in decode_object(answer).get("members", [])
    ]
