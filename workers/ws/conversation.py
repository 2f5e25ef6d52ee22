"""The conversation: what clients of a WebSocket say, and which part of the server answers.

A `Feature` (rooms, live queries, documents, identity) names the message types that it takes.
Messages of one connection are taken one after the other, in the order sent, by a greenlet that
exists only while there are some, so a feature may block on the store or on the bus and keeps
nobody but its own client waiting. What is no JSON object with a known `type` is counted and
ignored (spec/realtime.md §2.3).

Invariants: what waits for one connection is bounded by what two reads from its socket bring,
for when more has come before all was taken, the socket is not read again until then; a client
that talks faster than it is answered is held up by TCP, and nobody else is: others have their
turn after `_TURN_MESSAGES` of it. A feature hears of the end of every connection. Called by
`workers.ws.transport`; features are given by `workers.ws.server`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Protocol

import gevent
import msgspec

from pylon import log, metrics
from pylon.errors import InternalError, PylonError
from workers.hub.connection import INTERNAL, Connection
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.transport import packed

_TURN_MESSAGES: Final = 32
# Not 0: gevent's loop looks at sockets only after 50 turns of those who sleep for no time.
_PAUSE_S: Final = 0.000_1
_ECHOED: Final = ("sub_id", "room", "entity", "rowId", "row_id")  # names what an error is about

_log = log.get_logger("conversation")


class Feature(Protocol):
    """A part of the server that clients talk to."""

    message_types: tuple[str, ...]

    def take(self, connection: Connection, message: dict[str, Any]) -> None:
        """Answer one message. May block; look at `connection.is_open` after that, before
        keeping anything for the connection: its `gone` may be over already.

        Raises:
            PylonError: the client is told, as a message of the type `error`.
        """

    def gone(self, connection: Connection) -> None:
        """The connection has closed. Must not block."""


class Conversation:
    """All conversations of one worker."""

    def __init__(self, hub: Hub, features: Iterable[Feature]) -> None:
        features = tuple(features)
        self._by_type = {kind: feature for feature in features for kind in feature.message_types}
        self._waiting: dict[Connection, deque[tuple[Feature, dict[str, Any]]]] = {}
        for feature in features:
            hub.on_gone(feature.gone)

    def hear(self, connection: Connection, text: str) -> None:
        """A text message has arrived. Never blocks."""
        message = _message_of(text)
        kind = None if message is None else message.get("type")
        feature = self._by_type.get(kind) if isinstance(kind, str) else None
        if message is None or feature is None:
            metrics.MESSAGES_RECEIVED.labels("ignored").inc()
            return
        metrics.MESSAGES_RECEIVED.labels(str(kind)).inc()
        waiting = self._waiting.get(connection)
        if waiting is not None:
            waiting.append((feature, message))
            connection.pause()
            return
        # Most clients wait for the answer before they go on: no need to pause them.
        self._waiting[connection] = deque([(feature, message)])
        gevent.spawn(self._answer, connection)

    def _answer(self, connection: Connection) -> None:
        waiting = self._waiting[connection]
        try:
            taken = 0
            while waiting and connection.is_open:
                feature, message = waiting.popleft()
                self._take(feature, connection, message)
                taken += 1
                if taken % _TURN_MESSAGES == 0:
                    gevent.sleep(_PAUSE_S)
        finally:
            del self._waiting[connection]
            connection.resume()

    def _take(self, feature: Feature, connection: Connection, message: dict[str, Any]) -> None:
        try:
            feature.take(connection, message)
        except PylonError as ex:
            say(connection, error_message(ex, message))
        except Exception as ex:  # noqa: BLE001  one client's message must not end the worker
            _log.exception("message.failed", error=ex, type=message["type"])
            error = InternalError("The message failed; the server's log says why")
            say(connection, error_message(error, message))
            connection.close(INTERNAL, error.code)


def say(connection: Connection, message: Any) -> bool:
    """Send `message` as JSON in a text frame, packed for a client that agreed to that; False when
    the connection does not take it."""
    frame = frames.encode(frames.TEXT, msgspec.json.encode(message))
    return connection.send(packed(frame, connection.packing))


def error_message(error: PylonError, message: dict[str, Any]) -> dict[str, Any]:
    """``{"type":"error","code","message", ...}`` with what names the refused message."""
    about = {name: message[name] for name in _ECHOED if isinstance(message.get(name), str)}
    hint = {} if error.hint is None else {"hint": error.hint}
    return {
        "type": "error", "for": message["type"], "code": error.code, "message": error.message,
        **hint, **about,
    }


def _message_of(text: str) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
