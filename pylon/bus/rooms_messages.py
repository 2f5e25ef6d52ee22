"""What travels between the workers and the rooms, msgpack-encoded. See `pylon.bus`.

    rooms      worker DEALER -> rooms ROUTER   one frame: list[RoomRequest]
               rooms ROUTER -> worker DEALER   one frame: list[RoomReply]
    room_updates  rooms PUB -> SUB, ws workers    one frame: RoomUpdates

Invariants: a request whose id is 0 gets no reply, every other gets exactly one; requests of one
worker are carried out in the order sent. `RoomUpdates.counter` grows by one with each message, and
replies carry the counter of the newest message before them: so whoever misses one can tell, and
whoever gets a snapshot knows which news are in it already. Data of members and whole messages
are JSON texts, made once and never parsed again.
"""

from __future__ import annotations

import msgspec

from pylon.errors.wire import WireError


class JoinRoom(msgspec.Struct, frozen=True, array_like=True, tag="join", gc=False):
    """Be a member, with this data (JSON text). The answer has the peers before that.

    The member counts for the network `network` (`pylon.auth.forwarded.network_of`); "" is of none.
    """

    room: str
    user_id: str
    data: bytes
    network: str = ""


class LeaveRoom(msgspec.Struct, frozen=True, array_like=True, tag="leave", gc=False):
    room: str
    user_id: str


class SetPresence(msgspec.Struct, frozen=True, array_like=True, tag="presence", gc=False):
    """Replace the data (JSON text) of a member."""

    room: str
    user_id: str
    data: bytes


class Broadcast(msgspec.Struct, frozen=True, array_like=True, tag="broadcast", gc=False):
    """Tell every subscriber of the room something (JSON text); for members."""

    room: str
    user_id: str
    topic: str
    data: bytes


class GetRooms(msgspec.Struct, frozen=True, array_like=True, tag="rooms", gc=False):
    """All rooms with the number of their members."""


class GetRoom(msgspec.Struct, frozen=True, array_like=True, tag="room", gc=False):
    """A room's members. For a member it is a sign of life."""

    room: str
    user_id: str


class Subscribe(msgspec.Struct, frozen=True, array_like=True, tag="subscribe", gc=False):
    """A member's socket, by its number within the worker, wants the news of a room. The answer
    is the text of a `room-snapshot`; the error is `NotInRoom`."""

    room: str
    user_id: str
    socket: int


class Unsubscribe(msgspec.Struct, frozen=True, array_like=True, tag="unsubscribe", gc=False):
    room: str
    socket: int


class SocketClosed(msgspec.Struct, frozen=True, array_like=True, tag="closed", gc=False):
    """A socket that had subscribed is gone, and with it the members that only it held."""

    socket: int


class Relay(msgspec.Struct, frozen=True, array_like=True, tag="relay", gc=False):
    """Pass a whole message on to the subscribers of the room, if the user is a member; without
    a room, to every WebSocket client there is."""

    room: str | None
    user_id: str
    text: bytes


class Snapshots(msgspec.Struct, frozen=True, array_like=True, tag="snapshots", gc=False):
    """News were missed: the rooms as they are now, and which of the worker's sockets are
    subscribed to them."""

    rooms: list[str]


class Alive(msgspec.Struct, frozen=True, array_like=True, tag="alive", gc=False):
    """A socket worker's sign of life; the reply's counter tells it whether it missed news."""


class Publish(msgspec.Struct, frozen=True, array_like=True, tag="publish", gc=False):
    channel: str
    message: str


class GetChannels(msgspec.Struct, frozen=True, array_like=True, tag="channels", gc=False):
    """All channels that are remembered."""


class GetHistory(msgspec.Struct, frozen=True, array_like=True, tag="history", gc=False):
    """The newest `limit` messages of a channel, oldest first."""

    channel: str
    limit: int


RoomCommand = (
    JoinRoom | LeaveRoom | SetPresence | Broadcast | GetRooms | GetRoom | Subscribe | Unsubscribe
    | SocketClosed | Relay | Snapshots | Alive | Publish | GetChannels | GetHistory
)


class RoomRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`id` is unique within its worker; 0 wants no reply."""

    id: int
    command: RoomCommand


class RoomSnapshot(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A room for one worker: the text of a `room-snapshot`, and the worker's sockets in it."""

    room: str
    text: bytes
    sockets: list[int]


class RoomReply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`body` is the JSON text that the client gets; `snapshots` is of `Snapshots` only."""

    id: int
    counter: int
    body: bytes = b""
    error: WireError | None = None
    snapshots: list[RoomSnapshot] = []


class RoomTick(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What happened in a room during a tick: JSON texts for its subscribers, and the sockets
    (worker's routing id, number) that are subscribers no longer, once they have these texts.

    Without a room: texts for every WebSocket client.
    """

    room: str | None
    texts: list[bytes]
    dropped: list[tuple[bytes, int]] = []


class RoomUpdates(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message of a tick. `generation` is another one after a restart of the rooms."""

    generation: str
    counter: int
    ticks: list[RoomTick]


def client_name(pid: int, token: str) -> bytes:
    """The routing id of a worker: never one that another process has or had. The pid is how the
    supervisor, who sees processes end, knows whose sockets are gone."""
    return f"r{pid}-{token}".encode()


def pid_of(name: bytes) -> int:
    """The process that has this routing id."""
    return int(name.partition(b"-")[0][1:])


requests = msgspec.msgpack.Decoder(list[RoomRequest])
replies = msgspec.msgpack.Decoder(list[RoomReply])
updates = msgspec.msgpack.Decoder(RoomUpdates)
