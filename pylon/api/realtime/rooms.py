"""Rooms and presence over HTTP (spec/realtime.md §5.2): the routes of the official `useRoom`.

The acting user is the user of the session. An admin may name another one as `user_id` in the
body; from all other callers this module ignores `user_id`, because `useRoom` always sends it. The
rooms service returns the JSON of every response.

The rules of rooms (`pylon.policy.room_rules`) decide about each request but `leave`. Only those who
may join a room see its members, or its name in the list. A member who may no longer join leaves at
their next request.

Bounds: the names and data of a request (limits.ROOM_*), and, except for admins, the requests of
a user and of an address (pylon.rates).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import falcon
import orjson

from pylon import limits
from pylon.api.http.body import read_typed
from pylon.api.http.callers import address_of, caller_of
from pylon.api.http.responses import send_text
from pylon.api.realtime.bodies import (
    BROADCAST,
    JOIN,
    LEAVE,
    PRESENCE,
    USER_ID_CHARS,
    BroadcastBody,
    JoinBody,
    LeaveBody,
    PresenceBody,
)
from pylon.api.services import RealtimeServices
from pylon.auth.forwarded import network_of
from pylon.auth_context import AuthContext
from pylon.body_types import BodyType
from pylon.bus.rooms_messages import (
    Broadcast,
    GetRoom,
    GetRooms,
    JoinRoom,
    LeaveRoom,
    RoomCommand,
    SetPresence,
)
from pylon.errors import AuthRequired, InvalidData, LimitExceeded, PolicyDenied
from pylon.policy.room_rules import RoomAction as RuledAction
from pylon.rates import (
    ROOM_JOINS_BY_ADDRESS,
    ROOM_JOINS_BY_USER,
    ROOM_MESSAGES_BY_ADDRESS,
    ROOM_MESSAGES_BY_USER,
    ROOM_READS_BY_ADDRESS,
    ROOM_READS_BY_USER,
    Rate,
    address_subject,
    user_subject,
)
from pylon.storage.interface import Reader
from pylon.storage.related import StoredRelated

B = TypeVar("B", JoinBody, LeaveBody, PresenceBody, BroadcastBody)


class RoomAction(Generic[B]):
    """``POST /api/rooms/<action>``. A room may have the name of an action: ``GET`` reads it."""

    def __init__(
        self, services: RealtimeServices, name: str, body_type: BodyType[B],
        command: Callable[[B, str, str], RoomCommand], rates: tuple[Rate, Rate] | None = None,
        ruled: RuledAction | None = None,
    ) -> None:
        """
        Args:
            command: makes the room command of the body, the acting user and the client's
                network ("" for an admin).
            rates: of the caller's requests, by user and by address; None: unlimited.
            ruled: what the rules of rooms must allow; None: nothing.
        """
        self._services = services
        self._name = name
        self._body_type: BodyType[B] = body_type
        self._command: Callable[[B, str, str], RoomCommand] = command
        self._rates = rates
        self._ruled = ruled

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        _send_room(self._services, req, resp, self._name)

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        auth = caller_of(req, self._services.requests).auth
        if auth.user_id is None:
            raise AuthRequired("Authentication required")
        address = "" if auth.is_admin else address_of(req, self._services.requests)
        if self._rates is not None and not auth.is_admin:
            _spend(self._services, self._rates, auth.user_id, address)
        body = read_typed(req, self._services.requests, self._body_type)
        if self._ruled is not None:
            _require(self._services, self._ruled, auth, body.room)
        network = network_of(address) if address else ""
        command = self._command(body, _acting_user(auth, body.user_id), network)
        send_text(resp, self._services.rooms.submit(command).body)


def join(services: RealtimeServices) -> RoomAction[JoinBody]:
    """``POST /api/rooms/join``."""

    def command(body: JoinBody, user_id: str, network: str) -> RoomCommand:
        return JoinRoom(body.room, user_id, _encode_data(body.data), network)

    rates = (ROOM_JOINS_BY_USER, ROOM_JOINS_BY_ADDRESS)
    return RoomAction(services, "join", JOIN, command, rates, "join")


def leave(services: RealtimeServices) -> RoomAction[LeaveBody]:
    """``POST /api/rooms/leave``."""

    def command(body: LeaveBody, user_id: str, network: str) -> RoomCommand:
        return LeaveRoom(body.room, user_id)

    return RoomAction(services, "leave", LEAVE, command)


def set_presence(services: RealtimeServices) -> RoomAction[PresenceBody]:
    """``POST /api/rooms/presence``."""

    def command(body: PresenceBody, user_id: str, network: str) -> RoomCommand:
        return SetPresence(body.room, user_id, _encode_data(body.data))

    rates = (ROOM_MESSAGES_BY_USER, ROOM_MESSAGES_BY_ADDRESS)
    return RoomAction(services, "presence", PRESENCE, command, rates, "presence")


def broadcast(services: RealtimeServices) -> RoomAction[BroadcastBody]:
    """``POST /api/rooms/broadcast``."""

    def command(body: BroadcastBody, user_id: str, network: str) -> RoomCommand:
        return Broadcast(body.room, user_id, body.topic, _encode_data(body.data))

    rates = (ROOM_MESSAGES_BY_USER, ROOM_MESSAGES_BY_ADDRESS)
    return RoomAction(services, "broadcast", BROADCAST, command, rates, "broadcast")


class RoomList:
    """``GET /api/rooms``."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        auth = _admit_reader(self._services, req)
        text = self._services.rooms.submit(GetRooms()).body
        if self._services.app.rules.rooms and not auth.is_admin:
            text = self._services.store.scan(
                partial(_joinable, services=self._services, auth=auth, text=text),
                caller=str(auth.user_id),
            )
        send_text(resp, text)

    on_head = on_get


class Room:
    """``GET /api/rooms/{room}``; the name is decoded and may hold slashes."""

    def __init__(self, services: RealtimeServices) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response, room: str) -> None:
        _send_room(self._services, req, resp, room)

    on_head = on_get


def _send_room(
    services: RealtimeServices, req: falcon.Request, resp: falcon.Response, room: str
) -> None:
    auth = _admit_reader(services, req)
    _check_room_name(room)
    _require(services, "join", auth, room)
    send_text(resp, services.rooms.submit(GetRoom(room, str(auth.user_id))).body)


def _joinable(
    reader: Reader, services: RealtimeServices, auth: AuthContext, text: bytes
) -> bytes:
    """Return those rooms of a list that the caller may join."""
    related = StoredRelated(lambda read: read(reader))
    rules = services.app.rules.rooms
    return orjson.dumps([
        room for room in orjson.loads(text) if rules.may("join", auth, room["name"], related)
    ])


def _require(
    services: RealtimeServices, action: RuledAction, auth: AuthContext, room: str
) -> None:
    """Check that the caller may do this in the room. One who may not join it leaves it.

    Raises:
        PolicyDenied: the policies of rooms do not allow it.
    """
    rules, related = services.app.rules.rooms, StoredRelated(services.store.point)
    try:
        rules.require(action, auth, room, related)
    except PolicyDenied:
        if action == "join" or not rules.may("join", auth, room, related):
            services.rooms.submit(LeaveRoom(room, str(auth.user_id)))
        raise


def _admit_reader(services: RealtimeServices, req: falcon.Request) -> AuthContext:
    """Return a caller who reads rooms and has a user, and charge the request.

    Raises:
        AuthRequired: the caller has no user.
        RateLimited: the caller or the address has read too often.
    """
    auth = caller_of(req, services.requests).auth
    if auth.user_id is None:
        raise AuthRequired("Authentication required")
    if not auth.is_admin:
        rates = (ROOM_READS_BY_USER, ROOM_READS_BY_ADDRESS)
        _spend(services, rates, auth.user_id, address_of(req, services.requests))
    return auth


def _spend(
    services: RealtimeServices, rates: tuple[Rate, Rate], user_id: str, address: str
) -> None:
    user_rate, address_rate = rates
    services.requests.limiter.require(user_rate, user_subject(user_id))
    services.requests.limiter.require(address_rate, address_subject(address))


def _acting_user(auth: AuthContext, named: object) -> str:
    """Return the user for whom the caller acts: an admin may name another one."""
    if not auth.is_admin or named is None:
        return str(auth.user_id)
    if not isinstance(named, str) or not 0 < len(named) <= USER_ID_CHARS:
        raise InvalidData(f"user_id must be a text of 1 to {USER_ID_CHARS} characters")
    return named


def _encode_data(value: object) -> bytes:
    data = orjson.dumps(value)
    if len(data) > limits.ROOM_DATA_BYTES:
        raise LimitExceeded(
            f"data has {len(data)} bytes as JSON (limit {limits.ROOM_DATA_BYTES})"
        )
    return data


def _check_room_name(name: str) -> None:
    if len(name) > limits.ROOM_NAME_CHARS:
        raise LimitExceeded(
            f"room has {len(name)} characters (limit {limits.ROOM_NAME_CHARS})"
        )
