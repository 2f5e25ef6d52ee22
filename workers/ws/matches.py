"""Matchmaking over WebSocket: puts players into the queue, and sends them their match.

    {"type":"match-enqueue","criteria":{"mode":"duel"}}   put the socket's user into the queue
    {"type":"match-dequeue"}                              remove the user from the queue
    {"type":"match","status":"queued"|"matched"|"idle", ...}   the answers, and every change

The queue is in a shards worker (`workers.shards.matchmaking`). Once a second this module reads the
status of all its waiting players in one message. When it sends a match, it acknowledges the match,
so that no other process sends it. When the last waiting socket of a player here closes, the module
removes the player from the queue.

Invariant: the module asks for a player only while a socket of theirs waits here.
A feature of `workers.ws.conversation`; `workers.ws.server` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn

import gevent
import msgspec
from gevent.event import Event

from pylon import log
from pylon.bus.shards import (
    AcknowledgeMatch,
    Dequeue,
    Enqueue,
    MatchCommand,
    MatchStatuses,
    ShardsClient,
)
from pylon.errors import AuthRequired, InvalidData, PylonError
from pylon.limiter import RateLimiter
from pylon.rates import MATCHES_BY_ADDRESS, MATCHES_BY_USER, address_subject, user_subject
from workers.hub.connection import Connection
from workers.ws.conversation import send_json

_PERIOD_S: Final = 1.0
_QUEUED: Final = "queued"
_MATCHED: Final = "matched"
_log = log.get_logger("matches")


class Matches:
    """`workers.ws.conversation.Feature` for matchmaking."""

    message_types: tuple[str, ...] = ("match-enqueue", "match-dequeue")

    def __init__(self, shards: ShardsClient, limiter: RateLimiter) -> None:
        self._shards = shards
        self._limiter = limiter
        self._waiting: dict[str, set[Connection]] = {}  # by player
        self._has_waiting = Event()  # the poll loop waits for it
        self._player_by_connection: dict[Connection, str] = {}

    def start(self, spawn: Callable[[Callable[[], NoReturn]], None]) -> None:
        """Start polling. `spawn` runs a loop whose failure ends the process."""
        spawn(self._poll_statuses)

    def handle_message(self, connection: Connection, message: dict[str, Any]) -> None:
        """See `workers.ws.conversation.Feature`."""
        player = connection.caller.auth.user_id
        if player is None:
            raise AuthRequired("Authentication required")
        if message["type"] == "match-dequeue":
            self._remove(connection)
            self._call_matchmaker(Dequeue(player))
            _send_status(connection, {"status": "idle"})
            return
        criteria = message.get("criteria", {})
        if not isinstance(criteria, dict):
            raise InvalidData("criteria must be an object", hint='Send {"criteria": {}}')
        self._limiter.require(MATCHES_BY_USER, user_subject(player))
        self._limiter.require(MATCHES_BY_ADDRESS, address_subject(connection.address))
        status = self._call_matchmaker(Enqueue(player, criteria))
        if connection.is_open:
            self._remove(connection)
            self._player_by_connection[connection] = player
            self._waiting.setdefault(player, set()).add(connection)
            self._has_waiting.set()
            _send_status(connection, status)
        else:
            self._dequeue(player)

    def drop_connection(self, connection: Connection) -> None:
        """See `workers.ws.conversation.Feature`."""
        player = self._remove(connection)
        if player is not None and player not in self._waiting:
            gevent.spawn(self._dequeue, player)

    def _poll_statuses(self) -> NoReturn:
        while True:
            self._has_waiting.wait()
            gevent.sleep(_PERIOD_S)
            if not self._waiting:
                self._has_waiting.clear()
                continue
            try:
                statuses = self._call_matchmaker(MatchStatuses(list(self._waiting)))
            except PylonError as ex:  # the next round tries again
                _log.debug("matches.unknown", code=ex.code, message=ex.message)
                continue
            for player, status in statuses.items():
                if status["status"] != _QUEUED:
                    self._end_wait(player, status)

    def _end_wait(self, player: str, status: dict[str, Any]) -> None:
        """Send a player the end of their wait: a match, or idle after the timeout."""
        connections = self._waiting.pop(player, set())
        if connections and status["status"] == _MATCHED:
            try:
                self._call_matchmaker(AcknowledgeMatch(player))
            except PylonError as ex:  # the matchmaker may report the match twice: harmless
                _log.debug("match.unacknowledged", code=ex.code, message=ex.message)
        for connection in connections:
            self._player_by_connection.pop(connection, None)
            _send_status(connection, status)

    def _remove(self, connection: Connection) -> str | None:
        player = self._player_by_connection.pop(connection, None)
        if player is not None:
            connections = self._waiting.get(player)
            if connections is not None:
                connections.discard(connection)
                if not connections:
                    del self._waiting[player]
        return player

    def _dequeue(self, player: str) -> None:
        if player in self._waiting:  # the player has enqueued again meanwhile
            return
        try:
            self._call_matchmaker(Dequeue(player))
        except PylonError as ex:  # the ticket ends with its timeout
            _log.debug("match.undequeued", code=ex.code, message=ex.message)

    def _call_matchmaker(self, command: MatchCommand) -> Any:
        return msgspec.json.decode(self._shards.for_matchmaker(command))


def _send_status(connection: Connection, status: dict[str, Any]) -> None:
    send_json(connection, {"type": "match", **status})
