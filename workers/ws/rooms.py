"""Rooms over WebSocket: which sockets of this worker hear of which rooms (spec/realtime.md §5).

``room-subscribe`` of a member is answered with a `room-snapshot`, after which the socket gets
every `room-update` of the room; ``room-unsubscribe`` ends that. A ``presence`` or ``topic``
message with a room goes to all sockets that have subscribed to it, those of other workers too.
One without a room goes nowhere, or with PYLON_WS_UNSCOPED_PRESENCE to every client there is; so
does the news of every disconnect.

The rooms themselves are in the supervisor (`supervisor.rooms`). A tick's news of a room are
framed once here and leave in one write for each socket.

Invariants: a relayed message has the members of its type and `from`, and no other, because
published clients take any message with `seq`, `entity` and `kind` for a change. A socket gets all
news after its snapshot and none before it; what came while the snapshot was on the way waits for
it. When news are missed (ZeroMQ drops them for a slow worker) all subscribers get new snapshots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

import gevent
import msgspec
from gevent.event import Event

from pylon import limits, log, metrics
from pylon.bus.room_updates import RoomUpdatesSubscriber
from pylon.bus.rooms_client import RoomsClient
from pylon.bus.rooms_messages import (
    Alive,
    Relay,
    RoomTick,
    RoomUpdates,
    Snapshots,
    SocketClosed,
    Subscribe,
    Unsubscribe,
)
from pylon.errors import InvalidData, LimitExceeded, MissingRoom, NotInRoom, Unavailable
from pylon.limiter import RateLimiter
from pylon.rates import (
    ROOM_MESSAGES_BY_ADDRESS,
    ROOM_MESSAGES_BY_USER,
    ROOM_SUBSCRIPTIONS_BY_ADDRESS,
    ROOM_SUBSCRIPTIONS_BY_USER,
    Rate,
    address_subject,
    user_subject,
)
from workers.hub.connection import Connection
from workers.hub.hub import Hub
from workers.ws import frames

_SUBSCRIBE: Final = "room-subscribe"
_UNSUBSCRIBE: Final = "room-unsubscribe"
_NAME_MEMBER: Final = {"presence": "event", "topic": "topic"}
_JSON_SLACK_BYTES: Final = 2_048  # for type, room, topic and from around a message's data

_IDLE_ALIVE_S: Final = 5.0  # without a subscription; the lease (limits.ROOM_LEASE_S) is longer

_log = log.get_logger("rooms")


class _Subscription:
    """One socket's place in one room.

    `counter` is of the newest news that its snapshot has. While the snapshot is on its way,
    `waiting` has what has come meanwhile: (counter, news, whether it is dropped after them).
    """

    __slots__ = ("connection", "counter", "waiting")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.counter = 0
        self.waiting: list[tuple[int, _Framed, bool]] | None = []


class _Framed:
    """A tick's news of one room as frames, each text in one of its own: made once for all who
    agreed to the same compression."""

    __slots__ = ("_by_packing", "_frames", "_pack", "count")

    def __init__(self, texts: list[bytes], pack: Callable[[bytes, int], bytes]) -> None:
        self.count = len(texts)
        self._pack = pack
        self._frames = [frames.encode(frames.TEXT, text) for text in texts]
        self._by_packing = {0: b"".join(self._frames)}

    def send(self, connection: Connection) -> None:
        """Send all of them in one write."""
        deflate_window = connection.deflate_window
        data = self._by_packing.get(deflate_window)
        if data is None:
            packed = [self._pack(frame, deflate_window) for frame in self._frames]
            data = self._by_packing[deflate_window] = b"".join(packed)
        if data and connection.send(data, self.count):
            metrics.MESSAGES_SENT.inc(self.count)


class Rooms:
    """`workers.ws.conversation.Feature` for rooms. One for each worker."""

    message_types: tuple[str, ...] = (_SUBSCRIBE, _UNSUBSCRIBE, "presence", "topic")

    def __init__(
        self, hub: Hub, client: RoomsClient, updates: RoomUpdatesSubscriber,
        limiter: RateLimiter, *,
        unscoped: bool,
    ) -> None:
        self._hub = hub
        self._client = client
        self._updates = updates
        self._limiter = limiter
        self._unscoped = unscoped
        self._rooms: dict[str, dict[int, _Subscription]] = {}  # by the connection's number
        self._rooms_of: dict[Connection, set[str]] = {}
        self._generation: str | None = None
        self._counter: int | None = None  # of the newest news heard
        self._relays: list[Relay] = []  # that wait for their message
        self._relays_bytes = 0
        self._relayed: dict[Connection, int] = {}  # how many of them are whose
        self._relays_left = Event()
        self._relaying = False
        self._missed_to = 0  # counter of the newest news that are known to be missed
        self._repairing = False

    def start(self, spawn: Callable[[Callable[[], NoReturn]], None]) -> None:
        """Begin to listen, and to say that this worker is alive."""
        spawn(self._listen)
        spawn(self._live)

    # --- What clients say --------------------------------------------------------------------

    def take(self, connection: Connection, message: dict[str, Any]) -> None:
        """Answer one message.

        Raises:
            MissingRoom, NotInRoom, InvalidData, LimitExceeded, RateLimited, Unavailable.
        """
        kind = message["type"]
        if kind not in (_SUBSCRIBE, _UNSUBSCRIBE):
            self._relay(connection, message)
            return
        room = message.get("room")
        if not isinstance(room, str) or not room:
            raise MissingRoom("room is required")
        if kind == _SUBSCRIBE:
            self._subscribe(connection, room)
        elif self._remove(connection, room):
            self._client.send(Unsubscribe(room, connection.number))

    def gone(self, connection: Connection) -> None:
        """Forget the socket, and tell the rooms. Also when it now speaks for somebody else."""
        rooms = self._rooms_of.get(connection)
        if rooms is not None:
            for room in list(rooms):
                self._remove(connection, room)
            self._client.send(SocketClosed(connection.number))
        if self._unscoped and not connection.is_open:
            self._client.send(Relay(None, "", _disconnected(connection)))

    def _subscribe(self, connection: Connection, room: str) -> None:
        user_id = connection.caller.auth.user_id
        if user_id is None:
            raise NotInRoom("You are not a member of this room", hint="Sign in and join it first")
        self._spend(connection, ROOM_SUBSCRIPTIONS_BY_USER, ROOM_SUBSCRIPTIONS_BY_ADDRESS)
        subscription = _Subscription(connection)
        self._rooms.setdefault(room, {})[connection.number] = subscription
        self._rooms_of.setdefault(connection, set()).add(room)
        try:
            reply = self._client.submit(Subscribe(room, user_id, connection.number))
        except Exception:
            if self._is_current(room, subscription):
                self._remove(connection, room)
            raise
        if self._is_current(room, subscription):  # else it has closed, which the rooms know
            self._begin(room, subscription, reply.counter, reply.body)
            self._hub.transport.charge(connection, len(reply.body))

    def _relay(self, connection: Connection, message: dict[str, Any]) -> None:
        user_id = connection.caller.auth.user_id
        room = message.get("room")
        if user_id is None or (room is None and not self._unscoped):
            return
        if room is not None and not isinstance(room, str):
            raise MissingRoom("room must be a text")
        text = _relayed(message, room, user_id)
        if len(text) > limits.ROOM_DATA_BYTES + _JSON_SLACK_BYTES:
            raise LimitExceeded(
                f"The message is too large to pass on (limit {limits.ROOM_DATA_BYTES} bytes)"
            )
        self._spend(connection, ROOM_MESSAGES_BY_USER, ROOM_MESSAGES_BY_ADDRESS)
        while (
            self._relayed.get(connection, 0) >= limits.ROOM_RELAYS
            or self._relays_bytes > limits.BUS_ROOM_UPDATES_BYTES
        ):
            self._relays_left.wait()  # meanwhile the client is not read
            if not connection.is_open:
                return
        self._relayed[connection] = self._relayed.get(connection, 0) + 1
        self._relays.append(Relay(room, user_id, text))
        self._relays_bytes += len(text)
        if not self._relaying:
            self._relaying = True
            gevent.spawn(self._send_relays)

    def _send_relays(self) -> None:
        """What was gathered leaves in one message, at once after a quiet time and then every
        `limits.ROOM_RELAY_S`: what a message costs the supervisor does not grow with what
        clients say."""
        while self._relays:
            for relay in self._relays:
                self._client.send(relay)
            self._relays = []
            self._relays_bytes = 0
            self._relayed = {}
            left, self._relays_left = self._relays_left, Event()
            left.set()
            gevent.sleep(limits.ROOM_RELAY_S)
        self._relaying = False

    # --- What the rooms say ------------------------------------------------------------------

    def _listen(self) -> NoReturn:
        while True:
            self._hear(self._updates.receive())

    def _hear(self, updates: RoomUpdates) -> None:
        known = self._counter
        if updates.generation != self._generation:
            self._generation = updates.generation
            known = known if known == updates.counter - 1 else None
        is_next = known is not None and updates.counter == known + 1
        if known is not None and updates.counter <= known:
            return
        self._counter = updates.counter
        for tick in updates.ticks:
            self._deliver(updates.counter, tick)
        if not is_next and self._rooms:
            self._repair(updates.counter - 1)

    def _deliver(self, counter: int, tick: RoomTick) -> None:
        if tick.room is None:
            framed = self._framed(tick.texts)
            for connection in self._hub.connections:
                framed.send(connection)
            return
        subscriptions = self._rooms.get(tick.room)
        if not subscriptions:
            return
        me = self._client.name
        dropped = {number for whose, number in tick.dropped if whose == me}
        framed = self._framed(tick.texts)
        for number, subscription in list(subscriptions.items()):
            is_dropped = number in dropped
            if subscription.waiting is not None:
                subscription.waiting.append((counter, framed, is_dropped))
            elif counter > subscription.counter:
                framed.send(subscription.connection)
                if is_dropped:
                    self._remove(subscription.connection, tick.room)

    def _begin(
        self, room: str, subscription: _Subscription, counter: int, snapshot: bytes
    ) -> None:
        """The snapshot has come: send it, and what came after it. Does not switch greenlets."""
        waiting, subscription.waiting = subscription.waiting or [], None
        subscription.counter = counter
        connection = subscription.connection
        self._framed([snapshot]).send(connection)
        for at, framed, is_dropped in waiting:
            if at <= counter:
                continue
            framed.send(connection)
            if is_dropped:
                self._remove(connection, room)
                return

    # --- Missed news -------------------------------------------------------------------------

    def _live(self) -> NoReturn:
        """Show that this worker lives, and see whether the newest news have been missed: where
        none follow, no gap shows that."""
        owed = 0
        while True:
            try:
                reply = self._client.submit(Alive())
            except Unavailable as ex:  # asked again below; the lease is many times longer
                _log.warning("rooms.unavailable", why=ex.message)
            else:
                if self._counter is None:
                    self._counter = reply.counter
                if self._counter < owed:  # published a whole period ago
                    self._counter = owed
                    self._repair(owed)
                owed = reply.counter
            gevent.sleep(limits.ROOM_ALIVE_S if self._rooms else _IDLE_ALIVE_S)

    def _repair(self, missed_to: int) -> None:
        """Send new snapshots to all subscribers; what comes meanwhile waits for them."""
        metrics.BUS_DROPPED.labels("room_updates").inc()
        self._missed_to = max(self._missed_to, missed_to)
        for subscriptions in self._rooms.values():
            for subscription in subscriptions.values():
                if subscription.waiting is None:
                    subscription.waiting = []
        if not self._repairing:
            self._repairing = True
            gevent.spawn(self._fetch_snapshots)

    def _fetch_snapshots(self) -> None:
        try:
            while True:
                asked = {
                    room: list(subscriptions.values())
                    for room, subscriptions in self._rooms.items()
                }
                try:
                    reply = self._client.submit(Snapshots(list(asked)))
                    if reply.counter >= self._missed_to:  # else more was missed meanwhile
                        break
                except Unavailable as ex:
                    _log.warning("rooms.unavailable", why=ex.message)
                    gevent.sleep(limits.ROOM_ALIVE_S)
        finally:
            self._repairing = False
        for snapshot in reply.snapshots:
            numbers = set(snapshot.sockets)
            for subscription in asked[snapshot.room]:
                if not self._is_current(snapshot.room, subscription):
                    continue
                self._begin(snapshot.room, subscription, reply.counter, snapshot.text)
                if subscription.connection.number not in numbers:
                    self._remove(subscription.connection, snapshot.room)

    # --- Within ------------------------------------------------------------------------------

    def _spend(self, connection: Connection, of_user: Rate, of_address: Rate) -> None:
        auth = connection.caller.auth
        if auth.user_id is not None and not auth.is_admin:
            self._limiter.require(of_user, user_subject(auth.user_id))
            self._limiter.require(of_address, address_subject(connection.address))

    def _framed(self, texts: list[bytes]) -> _Framed:
        return _Framed(texts, self._hub.transport.packed)

    def _is_current(self, room: str, subscription: _Subscription) -> bool:
        number = subscription.connection.number
        return self._rooms.get(room, {}).get(number) is subscription

    def _remove(self, connection: Connection, room: str) -> bool:
        """Forget one subscription; whether there was one."""
        subscriptions = self._rooms.get(room)
        if subscriptions is None or subscriptions.pop(connection.number, None) is None:
            return False
        if not subscriptions:
            del self._rooms[room]
        rooms = self._rooms_of[connection]
        rooms.discard(room)
        if not rooms:
            del self._rooms_of[connection]
        return True


def _relayed(message: dict[str, Any], room: str | None, user_id: str) -> bytes:
    """The message for receivers of a `presence` or `topic`: its known members, with `from`.

    Raises:
        InvalidData, LimitExceeded: the name in it is no text, or too long.
    """
    kind: str = message["type"]
    told: dict[str, Any] = {"type": kind}
    if room is not None:
        told["room"] = room
    name = _NAME_MEMBER[kind]
    if name in message:
        value = message[name]
        if not isinstance(value, str):
            raise InvalidData(f"{name} must be a text", hint="Data of the app go under `data`")
        if len(value) > limits.ROOM_TOPIC_CHARS:
            raise LimitExceeded(
                f"{name} has {len(value)} characters (limit {limits.ROOM_TOPIC_CHARS})"
            )
        told[name] = value
    if "data" in message:
        told["data"] = message["data"]
    told["from"] = user_id
    return msgspec.json.encode(told)


def _disconnected(connection: Connection) -> bytes:
    """spec/realtime.md §2.2, 3: the number counts from 0 within its process."""
    return b'{"type":"presence","event":"disconnect","clientId":%d}' % (connection.number - 1)
