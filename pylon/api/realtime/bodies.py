"""Request bodies of rooms, channels, shards and the matchmaker (spec/realtime.md §4, §5).

Called by the resources of `pylon.api.realtime`; `pylon.openapi` derives their schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon import limits
from pylon.api.http.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingChannel, MissingMessage, MissingRoom, MissingTopic
from pylon.values import INT_MAX, INT_MIN

USER_ID_CHARS: Final = 200

_RoomName = Annotated[
    str, Meta(min_length=1, max_length=limits.ROOM_NAME_CHARS), Refusal(MissingRoom)
]
# A caller who is no admin may send any value here: `useRoom` does, and it is ignored.
_ActingUser = Annotated[Any, Meta(
    description="For admins: act for this user; of others it is ignored",
    extra_json_schema={"anyOf": [
        {"type": "string", "minLength": 1, "maxLength": USER_ID_CHARS}, {"type": "null"},
    ]},
)]
_Data = Annotated[
    Any, Meta(description=f"Any value; at most {limits.ROOM_DATA_BYTES} bytes of JSON")
]


class JoinBody(msgspec.Struct, frozen=True, kw_only=True):
    """The room to join, and what the others shall see of the member."""

    room: _RoomName
    user_id: _ActingUser = None
    data: _Data = None


class LeaveBody(msgspec.Struct, frozen=True, kw_only=True):
    """The room to leave."""

    room: _RoomName
    user_id: _ActingUser = None


class PresenceBody(msgspec.Struct, frozen=True, kw_only=True):
    """What the other members shall see of the member from now on."""

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
    """The shard to make, and what its kind is told of it."""

    id: Annotated[
        str,
        # The shards worker refuses a longer id: it knows the kinds.
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
    """The worker that a shard shall live at."""

    worker: Annotated[Any, Meta(
        description="Its number, as text; null: where the shard's id says",
        extra_json_schema={"anyOf": [{"type": "string"}, {"type": "null"}]},
    )] = None


class EnqueueBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a match has to agree on."""

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
