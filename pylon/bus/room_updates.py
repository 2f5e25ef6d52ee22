"""News of rooms, as a ws worker receives them. For one greenlet.

ZeroMQ drops them for a worker that is slow or new; seeing the gap is the caller's.
"""

from __future__ import annotations

import zmq

from pylon import limits
from pylon.bus import contexts, rooms_messages
from pylon.bus.rooms_messages import RoomUpdates
from pylon.bus.runtime import Runtime


class RoomUpdatesSubscriber:
    """Receives every message of news from now on, except those that were dropped."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime) -> None:
        self._socket = contexts.open_socket(
            contexts.green(), zmq.SUB, limits.BUS_ROOM_UPDATES_HWM
        )
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(runtime.room_updates)

    def receive(self) -> RoomUpdates:
        """The next message; blocks this greenlet.

        Raises:
            zmq.ZMQError: the socket was closed.
        """
        return rooms_messages.updates.decode(self._socket.recv())

    def close(self) -> None:
        self._socket.close()
