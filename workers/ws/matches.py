"""Matchmaking over WebSocket: wait for a match, and be told when it is there.

    {"type":"match-enqueue","criteria":{"mode":"duel"}}   have the socket's user wait
    {"type":"match-dequeue"}                              wait no more
    {"type":"match","status":"queued"|"matched"|"idle", ...}   the answers, and every change

A match that is told is taken: it is not told again elsewhere. Who waits and whose last socket
here closes, waits no more. The players are asked for once a second, all of a worker in one
message. The queue itself lives in a shards worker (`workers.shards.matchmaking`).

Invariants: a player is asked for only while one of his sockets here waits. Used by
`workers.ws.server`.
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
from workers.ws.conversation import say

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
        self._has_waiting = Event()  # the watch waits for it
        self._player_of: dict[Connection, str] = {}

    def start(self, spawn: Callable[[Callable[[], NoReturn]], None]) -> None:
        """Begin to ask for those who wait."""
        spawn(self._watch)

    def take(self, connection: Connection, message: dict[str, Any]) -> None:
        """See `workers.ws.conversation.Feature`."""
        player = connection.caller.auth.user_id
        if player is None:
            raise AuthRequired("Authentication required")
        if message["type"] == "match-dequeue":
            self._forget(connection)
            self._ask(Dequeue(player))
            _tell(connection, {"status": "idle"})
            return
        criteria = message.get("criteria", {})
        if not isinstance(criteria, dict):
            raise InvalidData("criteria must be an object", hint='Send {"criteria": {}}')
        self._limiter.require(MATCHES_BY_USER, user_subject(player))
        self._limiter.require(MATCHES_BY_ADDRESS, address_subject(connection.address))
        status = self._ask(Enqueue(player, criteria))
        if connection.is_open:
            self._forget(connection)
            self._player_of[connection] = player
            self._waiting.setdefault(player, set()).add(connection)
            self._has_waiting.set()
            _tell(connection, status)
        else:
            self._leave(player)

    def gone(self, connection: Connection) -> None:
        """See `workers.ws.conversation.Feature`."""
        player = self._forget(connection)
        if player is not None and player not in self._waiting:
            gevent.spawn(self._leave, player)

    def _watch(self) -> NoReturn:
        while True:
            self._has_waiting.wait()
            gevent.sleep(_PERIOD_S)
            if not self._waiting:
                self._has_waiting.clear()
                continue
            try:
                statuses = self._ask(MatchStatuses(list(self._waiting)))
            except PylonError as ex:  # the next round asks again
                _log.debug("matches.unknown", code=ex.code, message=ex.message)
                continue
            for player, status in statuses.items():
                if status["status"] != _QUEUED:
                    self._settle(player, status)

    def _settle(self, player: str, status: dict[str, Any]) -> None:
        """A player waits no more: there is a match, or the time is over."""
        connections = self._waiting.pop(player, set())
        if connections and status["status"] == _MATCHED:
            try:
                self._ask(AcknowledgeMatch(player))
            except PylonError as ex:  # it is told again to whoever asks, which does no harm
                _log.debug("match.unacknowledged", code=ex.code, message=ex.message)
        for connection in connections:
            self._player_of.pop(connection, None)
            _tell(connection, status)

    def _forget(self, connection: Connection) -> str | None:
        player = self._player_of.pop(connection, None)
        if player is not None:
            mates = self._waiting.get(player)
            if mates is not None:
                mates.discard(connection)
                if not mates:
                    del self._waiting[player]
        return player

    def _leave(self, player: str) -> None:
        if player in self._waiting:  # he has come back meanwhile
            return
        try:
            self._ask(Dequeue(player))
        except PylonError as ex:  # his ticket ends with its timeout
            _log.debug("match.undequeued", code=ex.code, message=ex.message)

    def _ask(self, command: MatchCommand) -> Any:
        return msgspec.json.decode(self._shards.for_matchmaker(command))


def _tell(connection: Connection, status: dict[str, Any]) -> None:
    say(connection, {"type": "match", **status})
