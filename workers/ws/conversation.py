"""The conversation: what clients of a WebSocket say, and which part of the server answers.

A `Feature` (rooms, live queries, documents, identity) names the message types that it takes.
Messages of one connection are taken one after the other, in the order sent, by a greenlet that
exists only while there are some, so a feature may block on the store or on the bus and keeps
nobody but its own client waiting. A text that is no JSON object with a known `type` is counted and
ignored (spec/realtime.md §2.3). A message of a known type that cannot be decoded, or is beyond
`limits.JSON_DEPTH` or `limits.MESSAGE_NODES`, is answered with an error that names it.

Invariants: at most the messages of two steps of its transport (`limits.SOCKET_STEP_FRAMES`) wait
for one connection: the transport does not read the socket again before all of them are answered.
TCP holds up a client that sends faster than the server answers, and no other client: others have
their turn after `_TURN_MESSAGES` messages of one. A feature hears of the end of every connection.
Called by `workers.ws.transport`; `workers.ws.server` gives the features.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Protocol

import gevent
import msgspec

from pylon import limits, log, metrics
from pylon.api.http.unreadable import problem_of, refuse_constant, replace_halves
from pylon.errors import InternalError, InvalidJson, PylonError
from pylon.json_text import check_bounds
from workers.hub.close_codes import INTERNAL
from workers.hub.connection import ANSWERING, Connection
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.transport import packed

_TURN_MESSAGES: Final = 32
# Not 0: gevent's loop looks at sockets only after 50 turns of those who sleep for no time.
_PAUSE_S: Final = 0.000_1
_ECHOED: Final = ("sub_id", "room", "entity", "rowId", "row_id")  # names what an error is about

# These have the store or another process asked.
_QUESTIONS: Final = frozenset(
    ("auth", "crdt-subscribe", "match-dequeue", "match-enqueue", "room-subscribe", "subscribe")
)

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
        self._hub = hub
        self._by_type = {kind: feature for feature in features for kind in feature.message_types}
        self._waiting: dict[Connection, deque[tuple[Feature, dict[str, Any]]]] = {}
        for feature in features:
            hub.on_gone(feature.gone)

    def hear(self, connection: Connection, text: str) -> None:
        """A text message has arrived. Never blocks."""
        message, problem = _message_of(text)
        kind = None if message is None else message.get("type")
        feature = self._by_type.get(kind) if isinstance(kind, str) else None
        if message is None or feature is None:
            metrics.MESSAGES_RECEIVED.labels("ignored").inc()
            return
        metrics.MESSAGES_RECEIVED.labels(str(kind)).inc()
        if problem is not None:
            say(connection, error_message(problem, message))
            return
        waiting = self._waiting.get(connection)
        if waiting is not None:
            waiting.append((feature, message))
            connection.pause(ANSWERING)
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
            connection.resume(ANSWERING)

    def _take(self, feature: Feature, connection: Connection, message: dict[str, Any]) -> None:
        if message["type"] in _QUESTIONS:
            self._hub.transport.charge(connection, work_bytes=limits.SOCKET_READ_COST_BYTES)
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
    return connection.send(packed(frame, connection.deflate_window))


def error_message(error: PylonError, message: dict[str, Any]) -> dict[str, Any]:
    """``{"type":"error","code","message", ...}`` with what names the refused message."""
    about = {name: message[name] for name in _ECHOED if isinstance(message.get(name), str)}
    hint = {} if error.hint is None else {"hint": error.hint}
    return {
        "type": "error", "for": message["type"], "code": error.code, "message": error.message,
        **hint, **about,
    }


def _message_of(text: str) -> tuple[dict[str, Any] | None, PylonError | None]:
    """The message, and why it cannot be taken. Of such a message only its `type` counts, and what
    names it. None: it is no message."""
    try:
        _check_bounds(text)
        value = msgspec.json.decode(text)
        problem = None
    except PylonError as ex:
        value, problem = _names_of(text), ex
    except (msgspec.DecodeError, RecursionError):
        value, problem = _doubtful(text)
    return (value if isinstance(value, dict) else None), problem


def _check_bounds(text: str) -> None:
    # PERF: an encoded copy would cost as much as the decoding of a short message.
    if (
        text.count("[") + text.count("{") > limits.JSON_DEPTH
        or len(text) > 2 * limits.MESSAGE_NODES
    ):
        check_bounds(text.encode(), limits.MESSAGE_NODES)


class _Names(msgspec.Struct, omit_defaults=True):
    type: str
    sub_id: str | None = None
    room: str | None = None
    entity: str | None = None
    rowId: str | None = None  # noqa: N815  (the wire's own word)
    row_id: str | None = None


def _names_of(text: str) -> Any:
    """The members that name a message, of which nothing else is decoded."""
    try:
        return msgspec.to_builtins(msgspec.json.decode(text, type=_Names))
    except (msgspec.DecodeError, RecursionError):
        return None


def _doubtful(text: str) -> tuple[Any, PylonError | None]:
    """A message that is JSON, but of which a part is no value here: half of a surrogate pair, or
    a number beyond all bounds."""
    if len(text) > limits.JSON_REPAIR_BYTES:
        return None, None
    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None, None
    problem = problem_of(value) or InvalidJson("The message holds a number that is too large")
    if isinstance(value, dict):
        value = {
            replace_halves(name): replace_halves(inner) for name, inner in value.items()
        }
    return value, problem
