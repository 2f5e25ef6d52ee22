"""Operations of rooms and of pub/sub (spec/realtime.md §5.2, §5.3)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pylon import errors, limits
from pylon.api.realtime.bodies import (
    BroadcastBody,
    JoinBody,
    LeaveBody,
    PresenceBody,
    PublishBody,
)
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    ADMIN_ONLY,
    STORE_ERRORS,
    ErrorClass,
    Paths,
    Schema,
    listed,
    obj,
    operation,
    path,
    query,
    ref,
    response,
)

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_YES: Final[Schema] = {"type": "boolean"}
_TAG: Final = "rooms"
_ROOM: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": limits.ROOM_NAME_CHARS}
_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}, {"CookieAuth": []}]
_ERRORS: Final[tuple[ErrorClass, ...]] = (
    *STORE_ERRORS, errors.AuthRequired, errors.Unavailable, errors.LimitExceeded,
    errors.PolicyDenied,
)
_FULL: Final[tuple[ErrorClass, ...]] = (errors.RoomLimitReached, errors.RoomFull)


def room_schemas() -> dict[str, Schema]:
    """Return the schema of a member, as other members see it."""
    return {
        "Peer": obj({
            "user_id": _TEXT,
            "data": {"description": "The data of the member; null if it gave none"},
            "joined_at": {"type": "string", "pattern": "^[0-9]+Z$"},
        })
    }


def room_paths() -> Paths:
    """Return the paths under /api/rooms and /api/pubsub."""
    not_in_room = {"reason": {"const": "not_in_room"}}
    verbs = {
        "join": _verb(
            "join", "Join a room, or replace the data of the member", JoinBody,
            obj({"joined": _TEXT, "snapshot": obj({
                "type": {"const": "snapshot"}, "room": _TEXT, "peers": listed(ref("Peer")),
            })}),
            "Joined; the members before this request", _FULL,
        ),
        "leave": _verb(
            "leave", "Leave a room", LeaveBody,
            obj({"left": _TEXT, "was_present": _YES}), "Not a member now",
        ),
        "presence": _verb(
            "presence", "Replace the data of the member", PresenceBody,
            obj({"updated": _YES, **not_in_room}, ("updated",)),
            "Whether the room has the data: that of a member", _FULL,
        ),
        "broadcast": _verb(
            "broadcast", "Send a message to all subscribers of the room; for members",
            BroadcastBody,
            obj({"broadcasted": _YES, **not_in_room}, ("broadcasted",)),
            "Whether the room has the message: that of a member",
            (errors.MissingTopic, errors.RoomLimitReached),
        ),
    }
    return {
        "/api/rooms": operation(
            "get", "rooms", _TAG, "All rooms",
            {200: response("The rooms", listed(obj({"name": _TEXT, "members": _COUNT})))},
            raises=_ERRORS, security=_SIGNED_IN,
        ),
        **{f"/api/rooms/{verb}": operations for verb, operations in verbs.items()},
        "/api/rooms/{room}": _get_room("room", [path("room", "The room's name", _ROOM)]),
        **_pubsub_paths(),
    }


def _verb(
    verb: str, summary: str, body: type[msgspec.Struct], schema: Schema, about: str,
    raises: tuple[ErrorClass, ...] = (),
) -> dict[str, Any]:
    return {
        **operation(
            "post", f"{verb}Room", _TAG, summary, {200: response(about, schema)},
            raises=(*_ERRORS, errors.MissingRoom, *raises), security=_SIGNED_IN,
            body=body_schema(body),
        ),
        **_get_room(f"roomCalled{verb.capitalize()}", []),
    }


def _get_room(operation_id: str, parameters: list[Schema]) -> dict[str, Any]:
    return operation(
        "get", operation_id, _TAG, "The members of a room; keeps the caller a member",
        {200: response("The room; a room that does not exist has no members", obj({
            "room": _TEXT, "members": listed(ref("Peer")), "count": _COUNT,
        }))},
        raises=_ERRORS, parameters=parameters, security=_SIGNED_IN,
    )


def _pubsub_paths() -> Paths:
    raises = (*STORE_ERRORS, errors.Forbidden, errors.Unavailable)
    channel: Schema = {"type": "string", "minLength": 1, "maxLength": limits.CHANNEL_NAME_CHARS}
    return {
        "/api/pubsub/publish": operation(
            "post", "publish", "pubsub", "Add a message to the history of a channel",
            {200: response("Done", obj({"ok": {"const": True}, "subscribers": _COUNT}))},
            raises=(*raises, errors.MissingChannel, errors.MissingMessage), security=ADMIN_ONLY,
            body=body_schema(PublishBody),
        ),
        "/api/pubsub/channels": operation(
            "get", "channels", "pubsub", "All channels that have a history",
            {200: response("The channels", obj({
                "ok": {"const": True},
                "result": listed(obj({"channel": _TEXT, "subscribers": _COUNT})),
            }))},
            raises=raises, security=ADMIN_ONLY,
        ),
        "/api/pubsub/history/{channel}": operation(
            "get", "history", "pubsub", "The newest messages of a channel, oldest first",
            {200: response("The messages", obj({
                "ok": {"const": True},
                "result": listed(obj({
                    "channel": _TEXT, "message": _TEXT,
                    "timestamp": {"type": "string", "format": "date-time"},
                })),
            }))},
            raises=(*raises, errors.InvalidQuery, errors.LimitExceeded), security=ADMIN_ONLY,
            parameters=[
                path("channel", "The channel's name", channel),
                query("limit", _COUNT, "How many; 50 if not given"),
            ],
        ),
    }
