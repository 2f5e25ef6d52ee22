"""The messages between the workers and the room service, msgpack-encoded. See `pylon.bus`.

    rooms         worker DEALER -> service ROUTER   one frame: list[RoomRequest]
                  service ROUTER -> worker DEALER   one frame: list[RoomReply]
    room_updates  service PUB -> SUB, ws workers    one frame: RoomUpdates

Invariants: a request with id 0 gets no reply, every other gets exactly one. The service executes
the requests of one worker in the order sent. `RoomUpdates.counter` grows by one with each message,
and a reply carries the counter of the newest message before it. So a worker notices a missing
message, and knows which updates a snapshot contains. Members' data and relayed messages are JSON
texts, which nobody parses again. Called by `pylon.rooms`, `pylon.api.realtime`, `workers.ws.rooms`
and `supervisor.rooms`.
"""

from __future__ import annotations

import msgspec

from pylon.errors.wire import WireError


class JoinRoom(msgspec.Struct, frozen=True, array_like=True, tag="join", gc=False):
    """Make the user a member with this data (JSON text). The reply has the members before that.

    The member counts for the network `network` (`pylon.auth.forwarded.network_of`), if not "".
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
    """Send data (JSON text) of a member to every subscriber of the room."""

    room: str
    user_id: str
    topic: str
    data: bytes


class GetRooms(msgspec.Struct, frozen=True, array_like=True, tag="rooms", gc=False):
    """All rooms with the number of their members."""


class GetRoom(msgspec.Struct, frozen=True, array_like=True, tag="room", gc=False):
    """A room's members. It renews the membership of a member who requests it."""

    room: str
    user_id: str


class Subscribe(msgspec.Struct, frozen=True, array_like=True, tag="subscribe", gc=False):
    """Subscribe a member's socket, by its number within the worker, to a room's updates.

    The reply is the text of a `room-snapshot`, or the error `NotInRoom`.
    """

    room: str
    user_id: str
    socket: int


class Unsubscribe(msgspec.Struct, frozen=True, array_like=True, tag="unsubscribe", gc=False):
    room: str
    socket: int


class SocketClosed(msgspec.Struct, frozen=True, array_like=True, tag="closed", gc=False):
    """A subscribed socket has closed; members without another socket leave."""

    socket: int


class Relay(msgspec.Struct, frozen=True, array_like=True, tag="relay", gc=False):
    """Relay a message to the subscribers of the room, if the user is a member.

    Without a room, relay it to every WebSocket client.
    """

    room: str | None
    user_id: str
    text: bytes


class Snapshots(msgspec.Struct, frozen=True, array_like=True, tag="snapshots", gc=False):
    """Return the present state of rooms, with their subscribed sockets of this worker.

    A worker sends it after it missed updates.
    """

    rooms: list[str]


class Alive(msgspec.Struct, frozen=True, array_like=True, tag="alive", gc=False):
    """Renew a ws worker's lease. The counter of the reply shows whether it missed updates."""


class Publish(msgspec.Struct, frozen=True, array_like=True, tag="publish", gc=False):
    channel: str
    message: str


class GetChannels(msgspec.Struct, frozen=True, array_like=True, tag="channels", gc=False):
    """All channels."""


class GetHistory(msgspec.Struct, frozen=True, array_like=True, tag="history", gc=False):
    """The newest `limit` messages of a channel, oldest first."""

    channel: str
    limit: int


RoomCommand = (
    JoinRoom | LeaveRoom | SetPresence | Broadcast | GetRooms | GetRoom | Subscribe | Unsubscribe
    | SocketClosed | Relay | Snapshots | Alive | Publish | GetChannels | GetHistory
)


class RoomRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command. `id` is unique within its worker; 0 requests no reply."""

    id: int
    command: RoomCommand


class RoomSnapshot(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A room for one worker: the text of a `room-snapshot`, and the worker's sockets in it."""

    room: str
    text: bytes
    sockets: list[int]


class RoomReply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reply. `body` is the JSON text for the client; only `Snapshots` sets `snapshots`."""

    id: int
    counter: int
    body: bytes = b""
    error: WireError | None = None
    snapshots: list[RoomSnapshot] = []
    is_stranger: bool = False  # nothing was done, since the user is no member


class RoomTick(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The updates of a room in one tick: JSON texts for its subscribers.

    `dropped` has the sockets (worker's routing id, number) whose subscription ends after these
    texts. Without a room, the texts are for every WebSocket client.
    """

    room: str | None
    texts: list[bytes]
    dropped: list[tuple[bytes, int]] = []


class RoomUpdates(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message of a tick. `generation` changes with a restart of the service."""

    generation: str
    counter: int
    ticks: list[RoomTick]


def routing_id(pid: int, token: str) -> bytes:
    """Return the routing id of a worker. `token` is random, so no two processes share an id.

    The supervisor sees processes end, and finds their sockets by the pid in the id.
    """
    return f"r{pid}-{token}".encode()


def pid_of(name: bytes) -> int:
    """Return the pid in a routing id."""
    return int(name.partition(b"-")[0][1:])


requests = msgspec.msgpack.Decoder(list[RoomRequest])
replies = msgspec.msgpack.Decoder(list[RoomReply])
updates = msgspec.msgpack.Decoder(RoomUpdates)
