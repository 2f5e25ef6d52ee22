"""Rooms and presence over HTTP (spec/realtime.md §5.2): what the official `useRoom` speaks.

The acting user is the session's; only an admin's body may name another one as `user_id`, which
other callers' bodies may have and which is ignored there, for `useRoom` sends it. Invariants:
names and data of a request have bounds here. So have the requests of an identity and of an
address, except for admins, who act for others. The answers are the rooms' own texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import falcon
import orjson

from pylon import limits
from pylon.api.answers import send_raw
from pylon.api.body import read_json
from pylon.api.callers import address_of, caller_of
from pylon.api.services import Services
from pylon.auth.forwarded import network_of
from pylon.auth_context import AuthContext
from pylon.bus.rooms_messages import (
    Broadcast,
    GetRoom,
    GetRooms,
    JoinRoom,
    LeaveRoom,
    RoomCommand,
    SetPresence,
)
from pylon.errors import (
    AuthRequired,
    InvalidData,
    InvalidJson,
    LimitExceeded,
    MissingRoom,
    MissingTopic,
)
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

_Body = dict[str, Any]
_USER_ID_CHARS: Final = 200


class _Asked(NamedTuple):
    """A request for a room, checked."""

    room: str
    user_id: str
    body: _Body
    network: str  # that the request comes from; "" for an admin


class Verb:
    """A ``POST /api/rooms/<verb>``. A room may be called like the verb: ``GET`` asks for it."""

    def __init__(
        self, services: Services, name: str, command: Callable[[_Asked], RoomCommand],
        rates: tuple[Rate, Rate] | None,
    ) -> None:
        """
        Args:
            command: makes the command out of what was asked.
            rates: how often an identity and an address may ask; None: for ever.
        """
        self._services = services
        self._name = name
        self._command = command
        self._rates = rates

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        _send_room(self._services, req, resp, self._name)

    on_head = on_get

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        auth = caller_of(req, self._services).auth
        if auth.user_id is None:
            raise AuthRequired("Authentication required")
        address = "" if auth.is_admin else address_of(req, self._services)
        if self._rates is not None and not auth.is_admin:
            _spend(self._services, self._rates, auth.user_id, address)
        body = read_json(req, self._services)
        if not isinstance(body, dict):
            raise InvalidJson("Invalid request body", hint='Send {"room": "...", ...}')
        room = body.get("room")
        if not isinstance(room, str) or not room:
            raise MissingRoom("room is required")
        _check_chars("room", room, limits.ROOM_NAME_CHARS)
        network = network_of(address) if address else ""
        command = self._command(_Asked(room, _acting(auth, body), body, network))
        send_raw(resp, self._services.rooms.submit(command).body)


def verbs(services: Services) -> list[tuple[str, object]]:
    """The routes of what can be done in a room."""
    joins = (ROOM_JOINS_BY_USER, ROOM_JOINS_BY_ADDRESS)
    messages = (ROOM_MESSAGES_BY_USER, ROOM_MESSAGES_BY_ADDRESS)
    return [
        (f"/api/rooms/{name}", Verb(services, name, command, rates))
        for name, command, rates in (
            ("join", _join, joins), ("leave", _leave, None), ("presence", _presence, messages),
            ("broadcast", _broadcast, messages),
        )
    ]


def _join(asked: _Asked) -> RoomCommand:
    return JoinRoom(asked.room, asked.user_id, _data(asked.body.get("data")), asked.network)


def _leave(asked: _Asked) -> RoomCommand:
    return LeaveRoom(asked.room, asked.user_id)


def _presence(asked: _Asked) -> RoomCommand:
    return SetPresence(asked.room, asked.user_id, _data(asked.body.get("data", {})))


def _broadcast(asked: _Asked) -> RoomCommand:
    topic = asked.body.get("topic")
    if not isinstance(topic, str) or not topic:
        raise MissingTopic("topic is required")
    _check_chars("topic", topic, limits.ROOM_TOPIC_CHARS)
    return Broadcast(asked.room, asked.user_id, topic, _data(asked.body.get("data", {})))


class RoomList:
    """``GET /api/rooms``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        _reader_of(self._services, req)
        send_raw(resp, self._services.rooms.submit(GetRooms()).body)

    on_head = on_get


class Room:
    """``GET /api/rooms/{room}``; the name is decoded, and may have slashes."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response, room: str) -> None:
        _send_room(self._services, req, resp, room)

    on_head = on_get


def _send_room(
    services: Services, req: falcon.Request, resp: falcon.Response, room: str
) -> None:
    user_id = _reader_of(services, req)
    _check_chars("room", room, limits.ROOM_NAME_CHARS)
    send_raw(resp, services.rooms.submit(GetRoom(room, user_id)).body)


def _reader_of(services: Services, req: falcon.Request) -> str:
    """The user id of a caller who reads rooms; counts the request."""
    auth = caller_of(req, services).auth
    if auth.user_id is None:
        raise AuthRequired("Authentication required")
    if not auth.is_admin:
        rates = (ROOM_READS_BY_USER, ROOM_READS_BY_ADDRESS)
        _spend(services, rates, auth.user_id, address_of(req, services))
    return auth.user_id


def _spend(services: Services, rates: tuple[Rate, Rate], user_id: str, address: str) -> None:
    of_user, of_address = rates
    services.limiter.require(of_user, user_subject(user_id))
    services.limiter.require(of_address, address_subject(address))


def _acting(auth: AuthContext, body: _Body) -> str:
    """For whom the caller acts."""
    named = body.get("user_id")
    if not auth.is_admin or named is None:
        return str(auth.user_id)
    if not isinstance(named, str) or not 0 < len(named) <= _USER_ID_CHARS:
        raise InvalidData(f"user_id must be a text of 1 to {_USER_ID_CHARS} characters")
    return named


def _data(value: Any) -> bytes:
    data = orjson.dumps(value)
    if len(data) > limits.ROOM_DATA_BYTES:
        raise LimitExceeded(
            f"data has {len(data)} bytes as JSON (limit {limits.ROOM_DATA_BYTES})"
        )
    return data


def _check_chars(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise LimitExceeded(f"{what} has {len(text)} characters (limit {most})")
