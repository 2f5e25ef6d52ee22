"""Room updates, as a ws worker receives them.

ZeroMQ drops messages for a worker that is slow or has just connected. The caller sees the gap by
`RoomUpdates.counter`. For one greenlet. Called by `workers.ws.rooms` and `workers.ws.server`.
"""

from __future__ import annotations

import zmq

from pylon import limits
from pylon.bus import contexts, rooms_messages
from pylon.bus.rooms_messages import RoomUpdates
from pylon.bus.runtime import Runtime


class RoomUpdatesSubscriber:
    """Receives every later message, except those that ZeroMQ drops."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime) -> None:
        self._socket = contexts.open_socket(
            contexts.green(), zmq.SUB, limits.BUS_ROOM_UPDATES_HWM
        )
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(runtime.room_updates)

    def receive(self) -> RoomUpdates:
        """Return the next message; blocks this greenlet.

        Raises:
            zmq.ZMQError: the socket was closed.
        """
        return rooms_messages.updates.decode(self._socket.recv())

    def close(self) -> None:
        self._socket.close()
