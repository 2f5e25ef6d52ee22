"""The paths of rooms: over HTTP, and the subscription of a socket.

`try_room` does all that a caller may want of a room, in the order of a client, and returns what
the server allowed. An administrator is a member of each room, so that there is somebody to see.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from tests.matrix.model import Person, may_broadcast, may_join
from tests.matrix.socket_paths import connect
from tests.matrix.sockets import send_message
from tests.matrix.stand import Answer, Caller, Stand
from tests.support.server import ADMIN_TOKEN

OTHER: Final = "somebody"  # for whom the administrator joins
_REFUSALS: Final = (
    "AUTH_REQUIRED", "POLICY_DENIED", "SCOPE_DENIED", "NOT_IN_ROOM", "UNAUTHORIZED",
)


def try_room(stand: Stand, caller: Caller, room: str) -> dict[str, bool]:
    """Return for each verb whether the server allowed it."""
    stand.call("POST", "/api/rooms/join", {"room": room, "user_id": OTHER}, ADMIN_TOKEN)
    found = {"read": _is_allowed(stand.call("GET", f"/api/rooms/{room}", token=caller.token))}
    found["list"] = room in str(stand.call("GET", "/api/rooms", token=caller.token).body)
    for verb, body in (
        ("join", {}), ("presence", {"data": {"x": 1}}),
        ("broadcast", {"topic": "t", "data": {"x": 1}}),
    ):
        path = f"/api/rooms/{verb}"
        found[verb] = _is_allowed(stand.call("POST", path, {"room": room, **body}, caller.token))
    found["subscribe"] = _subscribes(stand, caller, room)
    if found["join"]:
        stand.call("POST", "/api/rooms/leave", {"room": room}, caller.token)
    return found


def expect_room(person: Person, room: str) -> dict[str, bool]:
    """Return the same by the model."""
    joins = may_join(person, room)
    return {
        "read": joins, "list": joins, "join": joins, "presence": joins,
        "broadcast": may_broadcast(person, room), "subscribe": joins,
    }


def _is_allowed(answer: Answer) -> bool:
    if answer.status == 200:
        return True
    assert answer.code in _REFUSALS, answer
    return False


def _subscribes(stand: Stand, caller: Caller, room: str) -> bool:
    socket = connect(stand, caller, "/?changes=0")
    assert socket is not None
    with contextlib.closing(socket):
        send_message(socket, {"type": "room-subscribe", "room": room})
        answer: dict[str, Any] = socket.read_json()
        if answer["type"] == "room-snapshot":
            assert OTHER in str(answer["members"])
            return True
        assert answer["code"] in _REFUSALS, answer
        return False
