"""Texts of the messages that rooms relay from WebSocket clients (spec/realtime.md §2.2, §3).

Invariant: a relayed message has only the members of its type and `from`, because published clients
treat any message with `seq`, `entity` and `kind` as a change. Called by `workers.ws.rooms`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pylon import limits
from pylon.errors import InvalidData, LimitExceeded
from workers.hub.connection import Connection

_NAME_MEMBER: Final = {"presence": "event", "topic": "topic"}


def relayed_text(message: dict[str, Any], room: str | None, user_id: str) -> bytes:
    """Return the relayed form of a `presence` or `topic` message: its known members, with `from`.

    Raises:
        InvalidData: `event` or `topic` is no text.
        LimitExceeded: `event` or `topic` is too long.
    """
    kind: str = message["type"]
    relayed: dict[str, Any] = {"type": kind}
    if room is not None:
        relayed["room"] = room
    name = _NAME_MEMBER[kind]
    if name in message:
        value = message[name]
        if not isinstance(value, str):
            raise InvalidData(f"{name} must be a text", hint="Data of the app go under `data`")
        if len(value) > limits.ROOM_TOPIC_CHARS:
            raise LimitExceeded(
                f"{name} has {len(value)} characters (limit {limits.ROOM_TOPIC_CHARS})"
            )
        relayed[name] = value
    if "data" in message:
        relayed["data"] = message["data"]
    relayed["from"] = user_id
    return msgspec.json.encode(relayed)


def disconnected_text(connection: Connection) -> bytes:
    """Return the message for a disconnect. `clientId` counts from 0 in each process.

    Source: spec/realtime.md §2.2 and §3.
    """
    return b'{"type":"presence","event":"disconnect","clientId":%d}' % (connection.number - 1)
