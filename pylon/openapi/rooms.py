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
    answer,
    listed,
    obj,
    operation,
    path,
    query,
    ref,
)

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_YES: Final[Schema] = {"type": "boolean"}
_TAG: Final = "rooms"
_ROOM: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": limits.ROOM_NAME_CHARS}
_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"BearerAuth": []}, {"CookieAuth": []}]
_ERRORS: Final[tuple[ErrorClass, ...]] = (
    *STORE_ERRORS, errors.AuthRequired, errors.Unavailable, errors.LimitExceeded,
)
_FULL: Final[tuple[ErrorClass, ...]] = (errors.RoomLimitReached, errors.RoomFull)


def room_schemas() -> dict[str, Schema]:
    """A member, as others see it."""
    return {
        "Peer": obj({
            "user_id": _TEXT,
            "data": {"description": "What the member gave; null if nothing"},
            "joined_at": {"type": "string", "pattern": "^[0-9]+Z$"},
        })
    }


def room_paths() -> Paths:
    """The paths under /api/rooms and /api/pubsub."""
    not_in_room = {"reason": {"const": "not_in_room"}}
    verbs = {
        "join": _verb(
            "join", "Become a member, or replace what one has given", JoinBody,
            obj({"joined": _TEXT, "snapshot": obj({
                "type": {"const": "snapshot"}, "room": _TEXT, "peers": listed(ref("Peer")),
            })}),
            "Joined; the members there were before", _FULL,
        ),
        "leave": _verb(
            "leave", "Be a member no longer", LeaveBody,
            obj({"left": _TEXT, "was_present": _YES}), "Not a member now",
        ),
        "presence": _verb(
            "presence", "Replace what the member has given", PresenceBody,
            obj({"updated": _YES, **not_in_room}, ("updated",)), "Whether it was done", _FULL,
        ),
        "broadcast": _verb(
            "broadcast", "Tell all subscribers of the room something; for members",
            BroadcastBody,
            obj({"broadcasted": _YES, **not_in_room}, ("broadcasted",)), "Whether it was done",
            (errors.MissingTopic, errors.RoomLimitReached),
        ),
    }
    return {
        "/api/rooms": operation(
            "get", "rooms", _TAG, "All rooms",
            {200: answer("The rooms", listed(obj({"name": _TEXT, "members": _COUNT})))},
            fails=_ERRORS, security=_SIGNED_IN,
        ),
        **{f"/api/rooms/{verb}": operations for verb, operations in verbs.items()},
        "/api/rooms/{room}": _get_room("room", [path("room", "The room's name", _ROOM)]),
        **_pubsub_paths(),
    }


def _verb(
    verb: str, summary: str, body: type[msgspec.Struct], answered: Schema, about: str,
    fails: tuple[ErrorClass, ...] = (),
) -> dict[str, Any]:
    return {
        **operation(
            "post", f"{verb}Room", _TAG, summary, {200: answer(about, answered)},
            fails=(*_ERRORS, errors.MissingRoom, *fails), security=_SIGNED_IN,
            body=body_schema(body),
        ),
        **_get_room(f"roomCalled{verb.capitalize()}", []),
    }


def _get_room(operation_id: str, parameters: list[Schema]) -> dict[str, Any]:
    return operation(
        "get", operation_id, _TAG, "The members of a room; for a member a sign of life",
        {200: answer("The room; without members where there is none", obj({
            "room": _TEXT, "members": listed(ref("Peer")), "count": _COUNT,
        }))},
        fails=_ERRORS, parameters=parameters, security=_SIGNED_IN,
    )


def _pubsub_paths() -> Paths:
    fails = (*STORE_ERRORS, errors.Forbidden, errors.Unavailable)
    channel: Schema = {"type": "string", "minLength": 1, "maxLength": limits.CHANNEL_NAME_CHARS}
    return {
        "/api/pubsub/publish": operation(
            "post", "publish", "pubsub", "Remember a message of a channel",
            {200: answer("Done", obj({"ok": {"const": True}, "subscribers": _COUNT}))},
            fails=(*fails, errors.MissingChannel, errors.MissingMessage), security=ADMIN_ONLY,
            body=body_schema(PublishBody),
        ),
        "/api/pubsub/channels": operation(
            "get", "channels", "pubsub", "All channels that are remembered",
            {200: answer("The channels", obj({
                "ok": {"const": True},
                "result": listed(obj({"channel": _TEXT, "subscribers": _COUNT})),
            }))},
            fails=fails, security=ADMIN_ONLY,
        ),
        "/api/pubsub/history/{channel}": operation(
            "get", "history", "pubsub", "The newest messages of a channel, oldest first",
            {200: answer("The messages", obj({
                "ok": {"const": True},
                "result": listed(obj({
                    "channel": _TEXT, "message": _TEXT,
                    "timestamp": {"type": "string", "format": "date-time"},
                })),
            }))},
            fails=(*fails, errors.InvalidQuery, errors.LimitExceeded), security=ADMIN_ONLY,
            parameters=[
                path("channel", "The channel's name", channel),
                query("limit", _COUNT, "How many, 50 unless told"),
            ],
        ),
    }
