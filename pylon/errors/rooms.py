"""Errors of rooms and of pub/sub channels.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from pylon.errors.base import PylonError


class MissingRoom(PylonError):
    """A request about a room that does not say which.

    Remedy: send {"room": "..."}.
    """

    code = "MISSING_ROOM"
    status = 400


class MissingTopic(PylonError):
    """A broadcast without a topic.

    Remedy: send {"room": "...", "topic": "..."}.
    """

    code = "MISSING_TOPIC"
    status = 400


class NotInRoom(PylonError):
    """A socket wants to hear of a room that its user is not a member of.

    Remedy: POST /api/rooms/join first; a member whose last subscribed socket has closed has left.
    """

    code = "NOT_IN_ROOM"
    status = 403


class RoomLimitReached(PylonError):
    """There are too many rooms: in all, of this user or of this network address. Or the rooms hold
    too many bytes, or one of them gets too many bytes at once. The message names the limit.

    Remedy: leave rooms that are not used, send less at once; empty rooms end by themselves. Behind
    a proxy set PYLON_TRUST_PROXY_HOPS, so that clients do not count as one address.
    """

    code = "ROOM_LIMIT_REACHED"
    status = 429
    retryable = True


class RoomFull(PylonError):
    """The room has too many members, or what they have put into it is too large.

    Remedy: try again when somebody has left, put less into a member's data, or use several rooms.
    """

    code = "ROOM_FULL"
    status = 429
    retryable = True


class MissingChannel(PylonError):
    """A message to no channel.

    Remedy: send {"channel": "...", "message": "..."}.
    """

    code = "MISSING_CHANNEL"
    status = 400


class MissingMessage(PylonError):
    """No message to a channel.

    Remedy: send {"channel": "...", "message": "..."}; a message is a text.
    """

    code = "MISSING_MESSAGE"
    status = 400
