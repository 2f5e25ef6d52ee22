"""Conversation: decodes the text messages of WebSocket clients, and calls the feature of each type.

A `Feature` (rooms, live queries, documents, matches, identity) names its message types. One
greenlet for each connection handles its messages in the order sent, and ends when none wait. So a
feature that blocks on the store or the bus delays only its own client. The module counts and
ignores a text that is no JSON object with a known `type` (spec/realtime.md §2.3). A malformed
message of a known type gets an error that names it; so does one beyond `limits.JSON_DEPTH` or
`limits.MESSAGE_NODES`.

An API key needs a scope for most types (`_NEEDS`); a type without an entry there stops the start.

Invariants: every feature receives the end of every connection. The transport reads a socket again
only after all its messages are handled. TCP slows a client that sends faster than that. Bounds:
messages of two steps of the transport (`limits.SOCKET_STEP_FRAMES`) wait for one connection. Other
connections continue after `_TURN_MESSAGES` messages of one. Metric:
pylon_messages_received_total. Called by `workers.ws.transport`; `workers.ws.server` makes it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import gevent
import msgspec

from pylon import limits, log, metrics
from pylon.api.http.unreadable import problem_of, refuse_constant, replace_halves
from pylon.app_rates import AppRates
from pylon.errors import InternalError, InvalidJson, PylonError, RateLimited
from pylon.json_text import check_bounds
from pylon.key_scopes import ROOMS, SHARDS, SYNC, require_scope
from workers.hub.close_codes import INTERNAL
from workers.hub.connection import ANSWERING, Connection
from workers.hub.hub import Hub
from workers.ws import frames
from workers.ws.transport import compress_frame

_TURN_MESSAGES: Final = 32
# Not 0: gevent's loop checks sockets only after 50 turns of greenlets that sleep for 0 s.
_PAUSE_S: Final = 0.000_1
_ECHOED: Final = ("sub_id", "room", "entity", "rowId", "row_id")  # an error repeats these members

# Messages of these types read the store or call another process.
_COSTLY_TYPES: Final = frozenset(
    ("auth", "crdt-subscribe", "match-dequeue", "match-enqueue", "more", "room-subscribe",
     "subscribe")
)

# The scope that an API key needs for a message, and whether a read-only caller is refused. The
# features check the entities that a message names. None: anybody, for its own socket.
_NEEDS: Final[dict[str, tuple[str, bool] | None]] = {
    "auth": None, "ping": None, "unsubscribe": None, "crdt-unsubscribe": None,
    "room-unsubscribe": None,
    "scope": (SYNC, False), "subscribe": (SYNC, False), "more": (SYNC, False),
    "crdt-subscribe": (SYNC, False),
    "room-subscribe": (ROOMS, False), "presence": (ROOMS, True), "topic": (ROOMS, True),
    "match-enqueue": (SHARDS, True), "match-dequeue": (SHARDS, True),
}

_log = log.get_logger("conversation")


class Feature(Protocol):
    """A part of the server that handles some message types."""

    message_types: tuple[str, ...]

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """Answer one message.

        The method may block. After that it must check `connection.is_open` before it stores
        anything for the connection: `drop_connection` may have been called already.

        Raises:
            PylonError: the client receives it as a message of the type `error`.
        """

    def drop_connection(self, connection: Connection) -> None:
        """Remove all state of a connection that has closed or changes identity. Must not block."""


class Conversation:
    """The message queues of all connections of one worker."""

    def __init__(
        self, hub: Hub, features: Iterable[Feature], rates: AppRates,
        needs: Mapping[str, tuple[str, bool] | None] = _NEEDS,
    ) -> None:
        """
        Args:
            needs: what an API key needs for each message type, and whether the message changes
                something; a type without an entry is a KeyError.
        """
        features = tuple(features)
        self._hub = hub
        self._rates = rates
        self._by_type = {kind: feature for feature in features for kind in feature.message_types}
        self._needs = {kind: needs[kind] for kind in self._by_type}
        self._waiting: dict[Connection, deque[tuple[Feature, dict[str, Any]]]] = {}
        for feature in features:
            hub.on_closed(feature.drop_connection)

    def on_text(self, connection: Connection, text: str) -> None:
        """Queue a text message for its feature. Never blocks."""
        message, problem = _parse_message(text)
        kind = None if message is None else message.get("type")
        feature = self._by_type.get(kind) if isinstance(kind, str) else None
        if message is None or feature is None:
            metrics.MESSAGES_RECEIVED.labels("ignored").inc()
            return
        metrics.MESSAGES_RECEIVED.labels(str(kind)).inc()
        problem = self._refusal(connection) or problem
        if problem is not None:
            send_json(connection, error_message(problem, message))
            return
        if not self.enqueue(connection, message):
            connection.pause(ANSWERING)  # others do not pause: most clients wait for the answer

    def _refusal(self, connection: Connection) -> RateLimited | None:
        """Count a message by the app's rates, and return the error if one is spent."""
        try:
            self._rates.require_message(connection.caller.auth, connection.address)
        except RateLimited as error:
            return error
        return None

    def enqueue(self, connection: Connection, message: dict[str, Any]) -> bool:
        """Have a message of a known type handled in its turn. Never blocks.

        Features call it to repeat a message of the client.

        Returns:
            Whether no other message waits.
        """
        task = self._by_type[message["type"]], message
        waiting = self._waiting.get(connection)
        if waiting is not None:
            waiting.append(task)
            return False
        self._waiting[connection] = deque([task])
        gevent.spawn(self._handle_waiting, connection)
        return True

    def _handle_waiting(self, connection: Connection) -> None:
        waiting = self._waiting[connection]
        try:
            handled = 0
            while waiting and connection.is_open:
                feature, message = waiting.popleft()
                self._handle(feature, connection, message)
                handled += 1
                if handled % _TURN_MESSAGES == 0:
                    gevent.sleep(_PAUSE_S)
        finally:
            del self._waiting[connection]
            connection.resume(ANSWERING)

    def _handle(self, feature: Feature, connection: Connection, message: dict[str, Any]) -> None:
        if message["type"] in _COSTLY_TYPES:
            self._hub.transport.charge(connection, work_bytes=limits.SOCKET_READ_COST_BYTES)
        try:
            need = self._needs[message["type"]]
            if need is not None:
                require_scope(connection.caller.auth, need[0], changes=need[1])
            feature.handle_message(connection, message)
        except PylonError as ex:
            send_json(connection, error_message(ex, message))
        except Exception as ex:  # noqa: BLE001  one client's message must not end the worker
            _log.exception("message.failed", error=ex, type=message["type"])
            error = InternalError("The message failed; the server's log says why")
            send_json(connection, error_message(error, message))
            connection.close(INTERNAL, error.code)


def send_json(connection: Connection, message: Any) -> bool:
    """Send `message` as JSON in a text frame, compressed if the client agreed to it.

    Returns:
        Whether the connection accepted the frame.
    """
    frame = frames.encode(frames.TEXT, msgspec.json.encode(message))
    return connection.send(compress_frame(frame, connection.deflate_window))


def error_message(error: PylonError, message: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"type":"error","code","message", ...}`` with the names in the refused message."""
    about = {name: message[name] for name in _ECHOED if isinstance(message.get(name), str)}
    hint = {} if error.hint is None else {"hint": error.hint}
    return {
        "type": "error", "for": message["type"], "code": error.code, "message": error.message,
        **hint, **about,
    }


def _parse_message(text: str) -> tuple[dict[str, Any] | None, PylonError | None]:
    """Return the message, and the error if it is malformed.

    Only `type` and the names of a malformed message are valid. None: the text is no message.
    """
    try:
        _check_bounds(text)
        value = msgspec.json.decode(text)
        problem = None
    except PylonError as ex:
        value, problem = _decode_names(text), ex
    except (msgspec.DecodeError, RecursionError):
        value, problem = _repair_message(text)
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


def _decode_names(text: str) -> Any:
    """Return the members that name a message, without decoding the others."""
    try:
        return msgspec.to_builtins(msgspec.json.decode(text, type=_Names))
    except (msgspec.DecodeError, RecursionError):
        return None


def _repair_message(text: str) -> tuple[Any, PylonError | None]:
    """Return a message with a value that msgspec rejects, and the error about that value.

    Such a value is half of a surrogate pair, or a number that is too large for a float.
    """
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
