"""Room service: executes the room commands of all workers and produces the updates of each tick.

Invariants: every request with an id gets one reply, also if its command raises an unforeseen error.
A reply carries the counter of the newest updates before it. A worker with subscribed sockets holds
a lease: after `limits.ROOM_LEASE_S` without a message the service drops the worker's sockets. One
thread at a time uses the service. Called by `supervisor.rooms`, and by tests in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from pylon import limits, log, metrics
from pylon.bus.rooms_messages import (
    Alive,
    Broadcast,
    GetChannels,
    GetHistory,
    GetRoom,
    GetRooms,
    JoinRoom,
    LeaveRoom,
    Publish,
    Relay,
    RoomCommand,
    RoomReply,
    RoomRequest,
    RoomTick,
    RoomUpdates,
    SetPresence,
    Snapshots,
    SocketClosed,
    Subscribe,
    Unsubscribe,
)
from pylon.clock import Clock
from pylon.errors import InternalError, PylonError, RoomLimitReached
from pylon.errors.wire import WireError
from pylon.rooms.channels import PUBLISHED, Channels
from pylon.rooms.members import Rooms
from pylon.rooms.node_news import NEWS_BYTES, NodeChanges, Raw, RoomNews, portions
from pylon.rooms.updates import Updates, json_text

_NOT_IN_ROOM: Final = b'{"%b":false,"reason":"not_in_room"}'
_STRANGER_BODIES: Final = (_NOT_IN_ROOM % b"updated", _NOT_IN_ROOM % b"broadcasted")

_log = log.get_logger("rooms")


class RoomService:
    """All rooms and channels of a server."""

    def __init__(self, clock: Clock, generation: str) -> None:
        """Args: `generation` is unique for each service, so that workers notice a restart."""
        self._clock = clock
        self._generation = generation
        self._updates = Updates()
        self._changes = NodeChanges()
        self._rooms = Rooms(clock, self._updates, self._changes)
        self._channels = Channels(clock)
        self._counter = 0
        self._heard_s: dict[bytes, float] = {}  # routing id of a worker with sockets: last message

    @property
    def has_updates(self) -> bool:
        """Whether updates wait for the end of the tick."""
        return bool(self._updates)

    @property
    def shares(self) -> bool:
        """Whether there are other nodes, for which the service gathers what it has to tell."""
        return self._changes.is_on

    @shares.setter
    def shares(self, shares: bool) -> None:
        self._changes.is_on = shares

    @property
    def is_empty(self) -> bool:
        """Whether there is no room and no channel, so that nobody notices a late `expire`."""
        return not (len(self._rooms) or len(self._channels))

    @property
    def workers(self) -> list[bytes]:
        """Return the routing ids of the workers that may have subscribed sockets."""
        return list(self._heard_s)

    def apply(self, source: bytes, requests: Sequence[RoomRequest]) -> list[RoomReply]:
        """Execute the requests of one message.

        Args:
            source: the worker's routing id.

        Returns:
            The replies to the requests with an id, in order.
        """
        replies = []
        for request in requests:
            reply = self._reply(source, request)
            if request.id:
                replies.append(reply)
        metrics.ROOMS.set(len(self._rooms))
        metrics.ROOM_MEMBERS.set(self._rooms.members)
        return replies

    def remove_worker(self, source: bytes) -> None:
        """Remove a worker that has ended, and all its sockets."""
        self._heard_s.pop(source, None)
        self._rooms.remove_worker(source)

    def expire(self) -> None:
        """Remove the workers, members and channels whose time is over."""
        since_s = self._clock.monotonic_s() - limits.ROOM_LEASE_S
        for source in [s for s, heard_s in self._heard_s.items() if heard_s <= since_s]:
            _log.error("rooms.worker_silent", worker=source.decode())
            self.remove_worker(source)
        self._rooms.expire()
        self._channels.expire()

    def take_updates(self) -> Iterator[RoomUpdates]:
        """End the tick: yield its updates, in messages of at most `BUS_ROOM_UPDATES_BYTES`."""
        ticks: list[RoomTick] = []
        size_bytes = 0
        for tick in self._updates.take(self._rooms.snapshot):
            tick_bytes = sum(len(text) for text in tick.texts)
            if ticks and size_bytes + tick_bytes > limits.BUS_ROOM_UPDATES_BYTES:
                yield self._message(ticks)
                ticks, size_bytes = [], 0
            ticks.append(tick)
            size_bytes += tick_bytes
        if ticks:
            yield self._message(ticks)

    # --- Other nodes -----------------------------------------------------------------------

    @property
    def has_news(self) -> bool:
        """Whether other nodes are to be told something at the end of the tick."""
        return bool(self._changes)

    def take_news(self) -> Iterator[RoomNews]:
        """End the tick for the other nodes: yield what they are to know."""
        return self._changes.take(self._rooms.table.part_of)

    def state(self) -> Iterator[RoomNews]:
        """Yield all members of this node and the history of its channels, for a node that knows
        nothing of them. The caller may execute other commands meanwhile, and tells what they change
        (`take_news`) before it takes the next item."""
        yield RoomNews(begins=True)
        for members in portions(self._rooms.table.own_parts()):
            yield RoomNews(members=members)
        for part in self._channels.history_parts(NEWS_BYTES):
            yield RoomNews(history=[
                (channel, [Raw(text) for text in texts]) for channel, texts in part
            ])
        yield RoomNews(ends=True)

    def apply_news(self, incarnation: str, news: RoomNews) -> None:
        """Take over what another node has told."""
        rooms = self._rooms
        if news.begins:
            rooms.begin_copy(incarnation)
        for part in news.members:
            rooms.put_part(incarnation, part)
        for room, text in news.texts:
            if room is None:
                self._relay_to_all(bytes(text))
            else:
                rooms.add_remote_message(room, bytes(text))
        for ended in news.ended:
            rooms.end_part(incarnation, ended)
        for channel, text in news.published:
            self._channels.keep(channel, bytes(text))
        if news.history:
            self._channels.merge([
                (channel, [bytes(text) for text in texts]) for channel, texts in news.history
            ])
        if news.ends:
            rooms.end_copy(incarnation)

    def remove_node(self, incarnation: str) -> None:
        """Remove the members of a node that has ended."""
        self._rooms.remove_node(incarnation)

    def _relay_to_all(self, text: bytes) -> None:
        with suppress(RoomLimitReached):
            self._updates.add_message(None, text)

    def _message(self, ticks: list[RoomTick]) -> RoomUpdates:
        self._counter += 1
        return RoomUpdates(self._generation, self._counter, ticks)

    def _reply(self, source: bytes, request: RoomRequest) -> RoomReply:
        command = request.command
        try:
            if isinstance(command, Snapshots):
                snapshots = [self._rooms.snapshot_for(name, source) for name in command.rooms]
                return RoomReply(request.id, self._counter, snapshots=snapshots)
            body = self._execute(source, command)
            return RoomReply(
                request.id, self._counter, body, is_stranger=body in _STRANGER_BODIES
            )
        except PylonError as ex:
            error = WireError.from_error(ex)
        except Exception as ex:  # noqa: BLE001  other rooms must not fail with this one
            _log.exception("rooms.failed", error=ex, command=type(command).__name__)
            error = WireError.from_error(InternalError("It failed; the server's log says why"))
        return RoomReply(request.id, self._counter, error=error)

    def _execute(self, source: bytes, command: RoomCommand) -> bytes:
        """Return the reply's body as JSON text."""
        rooms = self._rooms
        match command:
            case GetRoom(room, user_id):
                return rooms.poll(room, user_id)
            case SetPresence(room, user_id, data):
                done = rooms.set_presence(room, user_id, data)
                return b'{"updated":true}' if done else _NOT_IN_ROOM % b"updated"
            case Relay(None, _, text):
                self._updates.add_message(None, text)
                self._changes.said(None, text)
            case Relay(str(room), user_id, text):
                rooms.add_message(room, user_id, text)
            case Broadcast(room, user_id, topic, data):
                done = rooms.broadcast(room, user_id, topic, data)
                return b'{"broadcasted":true}' if done else _NOT_IN_ROOM % b"broadcasted"
            case JoinRoom(room, user_id, data, network):
                name, peers = json_text(room), rooms.join(room, user_id, data, network)
                snapshot = b'{"peers":%b,"room":%b,"type":"snapshot"}' % (peers, name)
                return b'{"joined":%b,"snapshot":%b}' % (name, snapshot)
            case LeaveRoom(room, user_id):
                found = b"true" if rooms.leave(room, user_id) else b"false"
                return b'{"left":%b,"was_present":%b}' % (json_text(room), found)
            case GetRooms():
                return rooms.list_json()
            case Subscribe(room, user_id, socket):
                self._heard_s[source] = self._clock.monotonic_s()
                return rooms.subscribe(room, user_id, (source, socket))
            case Unsubscribe(room, socket):
                rooms.unsubscribe(room, (source, socket))
            case SocketClosed(socket):
                rooms.remove_socket((source, socket))
            case Alive():
                self._heard_s[source] = self._clock.monotonic_s()
            case Publish(channel, message):
                text = self._channels.publish(channel, message)
                self._changes.published(channel, text)
                return PUBLISHED
            case GetChannels():
                return self._channels.list_json()
            case GetHistory(channel, limit):
                return self._channels.history(channel, limit)
        return b""
