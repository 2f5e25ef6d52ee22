"""A worker's way to the rooms.

The rooms share an interpreter with the writer, so commands leave in one message for each turn
of the event loop (`pylon.bus.exchange`). Used by the API of HTTP workers and by the ws worker.

Invariants: at most `limits.ROOM_COMMANDS_IN_FLIGHT` commands are unanswered; every command that
wants an answer ends in it, or in Unavailable when `limits.ROOM_TIMEOUT_S` has passed. Of what is
lost because the rooms do not read, sockets that have closed are found gone with their worker.
"""

from __future__ import annotations

import os
from typing import Final

from pylon import limits
from pylon.bus import rooms_messages
from pylon.bus.exchange import Exchange, Route
from pylon.bus.rooms_messages import RoomCommand, RoomReply, RoomRequest, client_name
from pylon.bus.runtime import Runtime
from pylon.clock import RandomSource, SystemRandom

_NO_REPLY: Final = 0


class RoomsClient:
    """Made after any fork, once in each process. `close` it at the end."""

    def __init__(self, runtime: Runtime, random: RandomSource | None = None) -> None:
        self.name = client_name(os.getpid(), (random or SystemRandom()).token_hex(12))
        route = Route(
            runtime.rooms, "rooms", "the rooms", limits.BUS_ROOMS_HWM,
            limits.ROOM_COMMANDS_IN_FLIGHT, limits.ROOM_TIMEOUT_S,
        )
        self._exchange: Exchange[RoomRequest, RoomReply] = Exchange(
            route, self.name, rooms_messages.replies.decode
        )

    def submit(self, command: RoomCommand) -> RoomReply:
        """Carry out a command; blocks this greenlet.

        Raises:
            Unavailable: see the module.
            PylonError: what the rooms answered.
        """
        return self._exchange.ask(lambda number: RoomRequest(number, command))

    def tell(self, command: RoomCommand) -> None:
        """Give a command that wants no answer. Never blocks."""
        self._exchange.tell(RoomRequest(_NO_REPLY, command))

    def close(self) -> None:
        """Fail what waits, and let go of the socket."""
        self._exchange.close()
