"""Request bodies of rooms, channels, shards and the matchmaker (spec/realtime.md §4, §5).

Called by the resources of `pylon.api.realtime`; `pylon.openapi` derives their schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon import limits
from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingChannel, MissingMessage, MissingRoom, MissingTopic
from pylon.values import INT_MAX, INT_MIN

USER_ID_CHARS: Final = 200

_RoomName = Annotated[
    str, Meta(min_length=1, max_length=limits.ROOM_NAME_CHARS), Refusal(MissingRoom)
]
# Any type: `useRoom` always sends it, and the server ignores it unless the caller is admin.
_ActingUser = Annotated[Any, Meta(
    description="For admins: act for this user; ignored for all other callers",
    extra_json_schema={"anyOf": [
        {"type": "string", "minLength": 1, "maxLength": USER_ID_CHARS}, {"type": "null"},
    ]},
)]
_Data = Annotated[
    Any, Meta(description=f"Any value; at most {limits.ROOM_DATA_BYTES} bytes of JSON")
]


class JoinBody(msgspec.Struct, frozen=True, kw_only=True):
    """The room to join, and the data that the other members see."""

    room: _RoomName
    user_id: _ActingUser = None
    data: _Data = None


class LeaveBody(msgspec.Struct, frozen=True, kw_only=True):
    """The room to leave."""

    room: _RoomName
    user_id: _ActingUser = None


class PresenceBody(msgspec.Struct, frozen=True, kw_only=True):
    """A room, and the data that its other members see from now on."""

    room: _RoomName
    user_id: _ActingUser = None
    data: _Data = msgspec.field(default_factory=dict)


class BroadcastBody(msgspec.Struct, frozen=True, kw_only=True):
    """A message for all subscribers of a room."""

    room: _RoomName
    user_id: _ActingUser = None
    topic: Annotated[
        str, Meta(min_length=1, max_length=limits.ROOM_TOPIC_CHARS), Refusal(MissingTopic)
    ]
    data: _Data = msgspec.field(default_factory=dict)


class PublishBody(msgspec.Struct, frozen=True, kw_only=True):
    """A message for a channel."""

    channel: Annotated[
        str, Meta(min_length=1, max_length=limits.CHANNEL_NAME_CHARS), Refusal(MissingChannel)
    ]
    message: Annotated[
        str, Meta(description=f"At most {limits.CHANNEL_MESSAGE_BYTES} bytes in UTF-8"),
        Refusal(MissingMessage, hint="A message is a text"),
    ]


class MakeShardBody(msgspec.Struct, frozen=True, kw_only=True):
    """The shard to make, and the parameters for its kind."""

    id: Annotated[
        str,
        # The shards worker checks the length, together with the kind.
        Meta(min_length=1, extra_json_schema={"maxLength": limits.SHARD_ID_CHARS}),
        Refusal(hint='Send {"id": "arena:42"}'),
    ]
    params: Annotated[
        dict[str, Any], Refusal(wrong=InvalidData, expected="an object")
    ] = msgspec.field(default_factory=dict)


class ShardInputBody(msgspec.Struct, frozen=True, kw_only=True):
    """An input for the next tick of a shard."""

    input: Annotated[
        Any, Meta(description="Of the type that the simulation declares"),
        Refusal(hint='Send {"input": ...}'),
    ]
    subscriber_id: Annotated[
        str | None, Refusal(wrong=InvalidData, expected="a text")
    ] = None
    client_seq: Annotated[
        Annotated[int, Meta(ge=INT_MIN, le=INT_MAX)] | None,
        Refusal(wrong=InvalidData, expected="a whole number of 64 bits"),
    ] = None


class MoveShardBody(msgspec.Struct, frozen=True, kw_only=True):
    """The worker to move a shard to."""

    worker: Annotated[Any, Meta(
        description="Its number, as text; null: the worker that the shard's id selects",
        extra_json_schema={"anyOf": [{"type": "string"}, {"type": "null"}]},
    )] = None


class EnqueueBody(msgspec.Struct, frozen=True, kw_only=True):
    """The criteria that all players of a match must share."""

    criteria: Annotated[
        dict[str, Any],
        Refusal(wrong=InvalidData, expected="an object", hint='Send {"criteria": {}}'),
    ] = msgspec.field(default_factory=dict)


_ROOM_EXAMPLE: Final = '{"room": "...", ...}'
JOIN: Final = BodyType(JoinBody, _ROOM_EXAMPLE)
LEAVE: Final = BodyType(LeaveBody, _ROOM_EXAMPLE)
PRESENCE: Final = BodyType(PresenceBody, _ROOM_EXAMPLE)
BROADCAST: Final = BodyType(BroadcastBody, _ROOM_EXAMPLE)
PUBLISH: Final = BodyType(PublishBody, '{"channel", "message"}')
MAKE_SHARD: Final = BodyType(MakeShardBody, '{"id": "arena:42"}')
SHARD_INPUT: Final = BodyType(ShardInputBody, '{"input": ...}')
MOVE_SHARD: Final = BodyType(MoveShardBody, '{"worker": "2"}')
ENQUEUE: Final = BodyType(EnqueueBody, '{"criteria": {}}')
