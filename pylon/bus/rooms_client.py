"""A worker's client of the room service.

The room service shares an interpreter with the writer, so all commands of one turn of the event
loop leave in one message (`pylon.bus.exchange`).

Invariants: at most `limits.ROOM_COMMANDS_IN_FLIGHT` commands are unanswered. Every command of
`submit` ends in its reply, or in Unavailable after `limits.ROOM_TIMEOUT_S`; without a connection
after `limits.ROOM_CONNECT_S`. A command of `send` may get lost. If that is the close of a socket,
the service removes the socket with its worker. Called by `pylon.api.realtime` and
`workers.ws.rooms`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import gevent

from pylon import limits
from pylon.bus import rooms_messages
from pylon.bus.exchange import Exchange, Route
from pylon.bus.rooms_messages import RoomCommand, RoomReply, RoomRequest, routing_id
from pylon.bus.runtime import Runtime
from pylon.clock import RandomSource, SystemRandom
from pylon.errors import NotInRoom
from pylon.storage.nodes import NEWS_TICK_S

_NO_REPLY: Final = 0
_NEWS_PAUSES: Final = (1, 2, 4, 8)  # ticks of news between two tries


class RoomsClient:
    """One for each process. Create it after any fork; `close` it at the end."""

    def __init__(
        self, runtime: Runtime, random: RandomSource | None = None,
        has_other_nodes: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args: `has_other_nodes` says whether a user may have joined a room on another node."""
        self.name = routing_id(os.getpid(), (random or SystemRandom()).token_hex(12))
        route = Route(
            runtime.rooms, "rooms", "the rooms", limits.BUS_ROOMS_HWM,
            limits.ROOM_COMMANDS_IN_FLIGHT, limits.ROOM_TIMEOUT_S, limits.ROOM_CONNECT_S,
        )
        self._exchange: Exchange[RoomRequest, RoomReply] = Exchange(
            route, self.name, rooms_messages.replies.decode
        )
        self._has_other_nodes = has_other_nodes

    def submit(self, command: RoomCommand) -> RoomReply:
        """Have the room service execute a command; return its reply. Blocks this greenlet.

        If the user may have joined the room on another node just now, wait up to 0.75 s for the
        news of it, since published clients do not try again.

        Raises:
            Unavailable: too many commands are in flight, or no reply came in time.
            PylonError: the error that the room service replied.
        """
        for ticks in _NEWS_PAUSES:
            try:
                reply = self._request(command)
                if not reply.is_stranger or not self._has_other_nodes():
                    return reply
            except NotInRoom:
                if not self._has_other_nodes():
                    raise
            gevent.sleep(ticks * NEWS_TICK_S)
        return self._request(command)

    def _request(self, command: RoomCommand) -> RoomReply:
        return self._exchange.request(lambda number: RoomRequest(number, command))

    def send(self, command: RoomCommand) -> None:
        """Send a command without waiting for a reply. Never blocks."""
        self._exchange.send(RoomRequest(_NO_REPLY, command))

    def close(self) -> None:
        """Fail the commands that wait, and close the socket."""
        self._exchange.close()
