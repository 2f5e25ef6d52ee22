"""The room service's end of the bus: receives commands, sends replies and updates. For one thread.

Invariants: ZeroMQ drops a reply to a worker that has ended. It drops updates for a slow subscriber
alone, and the subscriber notices it by the counter. Metrics: pylon_bus_messages_total,
pylon_bus_messages_dropped_total. Called by `supervisor.rooms`.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import zmq

from pylon import limits, log, metrics
from pylon.bus import contexts, messages, rooms_messages
from pylon.bus.rooms_messages import RoomReply, RoomRequest, RoomUpdates
from pylon.bus.runtime import Runtime

_log = log.get_logger("rooms_port")
_MS_PER_S: Final = 1_000
_TURN_MESSAGES: Final = 100  # then `receive` returns, so that the thread can publish updates


class RoomsPort:
    """Binds the rooms and the room_updates endpoints. One thread only."""

    __slots__ = ("_socket", "_updates")

    def __init__(self, runtime: Runtime) -> None:
        context = contexts.plain()
        self._socket = contexts.open_socket(context, zmq.ROUTER, limits.BUS_ROOMS_HWM)
        self._socket.bind(runtime.rooms)
        self._updates = contexts.open_socket(context, zmq.PUB, limits.BUS_ROOM_UPDATES_HWM)
        self._updates.bind(runtime.room_updates)

    def receive(self, timeout_s: float) -> list[tuple[bytes, list[RoomRequest]]]:
        """Return the messages that wait, at most 100. Wait `timeout_s` at most for the first one.

        Returns:
            (worker's routing id, its requests), in order of arrival.
        """
        out: list[tuple[bytes, list[RoomRequest]]] = []
        if not self._socket.poll(math.ceil(timeout_s * _MS_PER_S)):
            return out
        while len(out) < _TURN_MESSAGES:
            try:
                peer, frame = self._socket.recv_multipart(zmq.NOBLOCK)
                out.append((peer, rooms_messages.requests.decode(frame)))
            except zmq.Again:
                break
            except (ValueError, msgspec.DecodeError) as ex:
                # The folder is private, so this is a defect, or a Pylon of another version.
                _log.error("rooms.unreadable", error=str(ex))
                metrics.BUS_DROPPED.labels("rooms").inc()
        return out

    def reply(self, peer: bytes, replies: list[RoomReply]) -> None:
        """Reply to one message, in messages of a bounded size. Never blocks."""
        part: list[RoomReply] = []
        size_bytes = 0
        for reply in replies:
            part.append(reply)
            size_bytes += len(reply.body)
            if size_bytes > limits.BUS_ROOM_UPDATES_BYTES:
                self._send(peer, part)
                part, size_bytes = [], 0
        if part:
            self._send(peer, part)

    def publish(self, updates: RoomUpdates) -> None:
        """Send updates to every ws worker that keeps up. Never blocks."""
        self._updates.send(messages.encode(updates), zmq.NOBLOCK)
        metrics.BUS_MESSAGES.labels("room_updates").inc()

    def close(self) -> None:
        self._socket.close()
        self._updates.close()

    def _send(self, peer: bytes, replies: list[RoomReply]) -> None:
        self._socket.send_multipart((peer, messages.encode(replies)), zmq.NOBLOCK)
        metrics.BUS_MESSAGES.labels("room_replies").inc()


class RoomsWaker:
    """Ends the wait of the rooms thread from another thread of the supervisor."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime) -> None:
        self._socket = contexts.open_socket(contexts.plain(), zmq.DEALER, limits.BUS_ROOMS_HWM)
        self._socket.connect(runtime.rooms)

    def wake(self) -> None:
        """Send an empty message, which has no reply."""
        self._socket.send(messages.encode([]))

    def close(self) -> None:
        self._socket.close()
