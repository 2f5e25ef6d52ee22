"""Rooms over WebSocket: subscribes this worker's sockets to rooms, and sends them the updates.

A member's ``room-subscribe`` gets a `room-snapshot`, and then every `room-update` of the room until
``room-unsubscribe`` (spec/realtime.md §5). A ``presence`` or ``topic`` message with a room goes to
all sockets that have subscribed to it, in every worker. The module drops one without a room. With
PYLON_WS_UNSCOPED_PRESENCE it goes to every client instead, and so does a message for every
disconnect.

The rules of rooms (`pylon.policy.room_rules`) decide about each subscription and each relayed
message. A subscriber who may no longer join a room leaves it (`room_watch`), and receives the error
`POLICY_DENIED` for ``room-subscribe``.

The supervisor has the rooms (`supervisor.rooms`). The module makes the frames of a tick of a room
once, and sends them to each socket in one write.

Invariants: a socket receives all updates after its snapshot and none before it; updates that arrive
before a requested snapshot wait for it. After a lost message (ZeroMQ drops messages for a slow
worker) all subscribers get new snapshots. Bounds: `limits.ROOM_RELAYS` for each connection,
`BUS_ROOM_UPDATES_BYTES`. A feature of `workers.ws.conversation`; `workers.ws.server` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

import gevent
from gevent.event import Event

from pylon import limits, log, metrics
from pylon.bus.room_updates import RoomUpdatesSubscriber
from pylon.bus.rooms_client import RoomsClient
from pylon.bus.rooms_messages import (
    Alive,
    LeaveRoom,
    Relay,
    RoomTick,
    RoomUpdates,
    Snapshots,
    SocketClosed,
    Subscribe,
    Unsubscribe,
)
from pylon.errors import (
    LimitExceeded,
    MissingRoom,
    NotInRoom,
    PolicyDenied,
    Unavailable,
)
from pylon.limiter import RateLimiter
from pylon.policy.related import RelatedRows
from pylon.policy.room_rules import RoomAction, RoomRules
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
from workers.ws.conversation import error_message, send_json
from workers.ws.room_texts import disconnected_text, relayed_text
from workers.ws.room_watch import RoomWatch
from workers.ws.shared_frames import SharedFrames

_SUBSCRIBE: Final = "room-subscribe"
_UNSUBSCRIBE: Final = "room-unsubscribe"
_RULED_ACTION: Final[dict[str, RoomAction]] = {"presence": "presence", "topic": "broadcast"}
_JSON_SLACK_BYTES: Final = 2_048  # for `type`, `room`, `topic` and `from` around a message's data

_IDLE_ALIVE_S: Final = 5.0  # without a subscription; the lease (limits.ROOM_LEASE_S) is longer

_log = log.get_logger("rooms")


class _Subscription:
    """One socket's subscription to one room.

    `counter` is the counter of the newest updates in its snapshot. Until the snapshot arrives,
    `waiting` holds later updates: (counter, frames, whether they end the subscription).
    """

    __slots__ = ("connection", "counter", "waiting")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.counter = 0
        self.waiting: list[tuple[int, SharedFrames, bool]] | None = []


class Rooms:
    """`workers.ws.conversation.Feature` for rooms. One for each worker."""

    message_types: tuple[str, ...] = (_SUBSCRIBE, _UNSUBSCRIBE, "presence", "topic")

    def __init__(
        self, hub: Hub, client: RoomsClient, updates: RoomUpdatesSubscriber,
        limiter: RateLimiter, rules: RoomRules, related: RelatedRows, *,
        unscoped: bool,
    ) -> None:
        """Args: `related` are the rows that rules ask, as stored."""
        self._hub = hub
        self._client = client
        self._updates = updates
        self._limiter = limiter
        self._unscoped = unscoped
        self._rules = rules
        self._related = related
        self._watch = RoomWatch(rules, related, self._put_out)
        if rules.asked:
            hub.on_published(self._watch.on_published)
        self._rooms: dict[str, dict[int, _Subscription]] = {}  # by the connection's number
        self._rooms_by_connection: dict[Connection, set[str]] = {}
        self._generation: str | None = None
        self._counter: int | None = None  # of the newest updates received
        self._relays: list[Relay] = []  # that wait for the next message to the supervisor
        self._relays_bytes = 0
        self._relay_count: dict[Connection, int] = {}  # number of waiting relays by sender
        self._relays_emptied = Event()
        self._relaying = False
        self._missed_to = 0  # counter of the newest updates known to be lost
        self._repairing = False

    def start(self, spawn: Callable[[Callable[[], NoReturn]], None]) -> None:
        """Start to receive updates, and to renew this worker's lease."""
        spawn(self._listen)
        spawn(self._renew_lease)

    # --- Messages of clients -----------------------------------------------------------------

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """Answer one message.

        Raises:
            MissingRoom, NotInRoom, InvalidData, LimitExceeded, RateLimited, PolicyDenied,
            Unavailable, StoreUnavailable.
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

    def drop_connection(self, connection: Connection) -> None:
        """End all subscriptions of a socket that has closed or changes identity."""
        rooms = self._rooms_by_connection.get(connection)
        if rooms is not None:
            for room in list(rooms):
                self._remove(connection, room)
            self._client.send(SocketClosed(connection.number))
        if self._unscoped and not connection.is_open:
            self._client.send(Relay(None, "", disconnected_text(connection)))

    def _subscribe(self, connection: Connection, room: str) -> None:
        user_id = connection.caller.auth.user_id
        if user_id is None:
            raise NotInRoom("You are not a member of this room", hint="Sign in and join it first")
        self._spend(connection, ROOM_SUBSCRIPTIONS_BY_USER, ROOM_SUBSCRIPTIONS_BY_ADDRESS)
        subscription = _Subscription(connection)
        self._rooms.setdefault(room, {})[connection.number] = subscription
        self._rooms_by_connection.setdefault(connection, set()).add(room)
        self._watch.add(connection, room)
        try:
            self._rules.require("join", connection.caller.auth, room, self._related)
            reply = self._client.submit(Subscribe(room, user_id, connection.number))
        except Exception as ex:
            if isinstance(ex, PolicyDenied):
                self._client.send(LeaveRoom(room, user_id))
            if self._is_current(room, subscription):
                self._remove(connection, room)
            raise
        if self._is_current(room, subscription):  # otherwise it has ended meanwhile
            self._begin(room, subscription, reply.counter, reply.body)
            self._hub.transport.charge(connection, len(reply.body))

    def _relay(self, connection: Connection, message: dict[str, Any]) -> None:
        user_id = connection.caller.auth.user_id
        room = message.get("room")
        if user_id is None or (room is None and not self._unscoped):
            return
        if room is not None and not isinstance(room, str):
            raise MissingRoom("room must be a text")
        text = relayed_text(message, room, user_id)
        if len(text) > limits.ROOM_DATA_BYTES + _JSON_SLACK_BYTES:
            raise LimitExceeded(
                f"The message is too large to pass on (limit {limits.ROOM_DATA_BYTES} bytes)"
            )
        self._spend(connection, ROOM_MESSAGES_BY_USER, ROOM_MESSAGES_BY_ADDRESS)
        if room is not None:
            action = _RULED_ACTION[message["type"]]
            self._rules.require(action, connection.caller.auth, room, self._related)
        while (
            self._relay_count.get(connection, 0) >= limits.ROOM_RELAYS
            or self._relays_bytes > limits.BUS_ROOM_UPDATES_BYTES
        ):
            self._relays_emptied.wait()  # the transport does not read the client meanwhile
            if not connection.is_open:
                return
        self._relay_count[connection] = self._relay_count.get(connection, 0) + 1
        self._relays.append(Relay(room, user_id, text))
        self._relays_bytes += len(text)
        if not self._relaying:
            self._relaying = True
            gevent.spawn(self._send_relays)

    def _send_relays(self) -> None:
        """Send the waiting relays in one message, at once and then every `limits.ROOM_RELAY_S`.

        So the number of messages to the supervisor does not grow with the clients' messages.
        """
        while self._relays:
            for relay in self._relays:
                self._client.send(relay)
            self._relays = []
            self._relays_bytes = 0
            self._relay_count = {}
            emptied, self._relays_emptied = self._relays_emptied, Event()
            emptied.set()
            gevent.sleep(limits.ROOM_RELAY_S)
        self._relaying = False

    # --- Updates of rooms --------------------------------------------------------------------

    def _listen(self) -> NoReturn:
        while True:
            self._apply_updates(self._updates.receive())

    def _apply_updates(self, updates: RoomUpdates) -> None:
        last_counter = self._counter
        if updates.generation != self._generation:
            self._generation = updates.generation
            last_counter = last_counter if last_counter == updates.counter - 1 else None
        is_next = last_counter is not None and updates.counter == last_counter + 1
        if last_counter is not None and updates.counter <= last_counter:
            return
        self._counter = updates.counter
        for tick in updates.ticks:
            self._deliver(updates.counter, tick)
        if not is_next and self._rooms:
            self._repair(updates.counter - 1)

    def _deliver(self, counter: int, tick: RoomTick) -> None:
        if tick.room is None:
            tick_frames = self._make_frames(tick.texts)
            for connection in self._hub.connections:
                tick_frames.send(connection)
            return
        subscriptions = self._rooms.get(tick.room)
        if not subscriptions:
            return
        own_name = self._client.name
        dropped = {number for worker, number in tick.dropped if worker == own_name}
        tick_frames = self._make_frames(tick.texts)
        for number, subscription in list(subscriptions.items()):
            is_dropped = number in dropped
            if subscription.waiting is not None:
                subscription.waiting.append((counter, tick_frames, is_dropped))
            elif counter > subscription.counter:
                tick_frames.send(subscription.connection)
                if is_dropped:
                    self._remove(subscription.connection, tick.room)

    def _begin(
        self, room: str, subscription: _Subscription, counter: int, snapshot: bytes
    ) -> None:
        """Send a snapshot, and the updates that waited for it. Does not switch greenlets."""
        waiting, subscription.waiting = subscription.waiting or [], None
        subscription.counter = counter
        connection = subscription.connection
        self._make_frames([snapshot]).send(connection)
        for update_counter, tick_frames, is_dropped in waiting:
            if update_counter <= counter:
                continue
            tick_frames.send(connection)
            if is_dropped:
                self._remove(connection, room)
                return

    # --- Lost updates ------------------------------------------------------------------------

    def _renew_lease(self) -> NoReturn:
        """Renew the lease of this worker, and detect lost updates that no later ones follow.

        A gap in the counters shows other lost updates; here the replies' counters show them.
        """
        expected_counter = 0
        while True:
            try:
                reply = self._client.submit(Alive())
            except Unavailable as ex:  # the loop tries again; the lease is many times longer
                _log.warning("rooms.unavailable", why=ex.message)
            else:
                if self._counter is None:
                    self._counter = reply.counter
                if self._counter < expected_counter:  # published a whole period ago
                    self._counter = expected_counter
                    self._repair(expected_counter)
                expected_counter = reply.counter
            gevent.sleep(limits.ROOM_ALIVE_S if self._rooms else _IDLE_ALIVE_S)

    def _repair(self, missed_to: int) -> None:
        """Send new snapshots to all subscribers. Updates wait for them meanwhile."""
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
                requested = {
                    room: list(subscriptions.values())
                    for room, subscriptions in self._rooms.items()
                }
                try:
                    reply = self._client.submit(Snapshots(list(requested)))
                    if reply.counter >= self._missed_to:  # otherwise more was lost meanwhile
                        break
                except Unavailable as ex:
                    _log.warning("rooms.unavailable", why=ex.message)
                    gevent.sleep(limits.ROOM_ALIVE_S)
        finally:
            self._repairing = False
        for snapshot in reply.snapshots:
            numbers = set(snapshot.sockets)
            for subscription in requested[snapshot.room]:
                if not self._is_current(snapshot.room, subscription):
                    continue
                self._begin(snapshot.room, subscription, reply.counter, snapshot.text)
                if subscription.connection.number not in numbers:
                    self._remove(subscription.connection, snapshot.room)

    # --- Internals ---------------------------------------------------------------------------

    def _put_out(self, connection: Connection, room: str) -> None:
        """End the membership of a connection's user, who may no longer join the room."""
        user_id = connection.caller.auth.user_id
        if self._remove(connection, room) and user_id is not None:
            self._client.send(LeaveRoom(room, user_id))
            error = PolicyDenied("You may no longer be in this room")
            send_json(connection, error_message(error, {"type": _SUBSCRIBE, "room": room}))

    def _spend(self, connection: Connection, of_user: Rate, of_address: Rate) -> None:
        auth = connection.caller.auth
        if auth.user_id is not None and not auth.is_admin:
            self._limiter.require(of_user, user_subject(auth.user_id))
            self._limiter.require(of_address, address_subject(connection.address))

    def _make_frames(self, texts: list[bytes]) -> SharedFrames:
        return SharedFrames(texts, self._hub.transport.compress)

    def _is_current(self, room: str, subscription: _Subscription) -> bool:
        number = subscription.connection.number
        return self._rooms.get(room, {}).get(number) is subscription

    def _remove(self, connection: Connection, room: str) -> bool:
        """Remove one subscription, and return whether there was one."""
        subscriptions = self._rooms.get(room)
        if subscriptions is None or subscriptions.pop(connection.number, None) is None:
            return False
        self._watch.end(connection, room)
        if not subscriptions:
            del self._rooms[room]
        rooms = self._rooms_by_connection[connection]
        rooms.discard(room)
        if not rooms:
            del self._rooms_by_connection[connection]
        return True
