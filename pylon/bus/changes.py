"""Committed changes, from the writer to whoever pushes them to clients.

ZeroMQ drops batches for a subscriber that is slow or new. `ChangeBatch.prev_seq` makes
every loss visible: a subscriber whose last seq is another one reads the change log.
`ChangesPublisher` belongs to the writer thread, `ChangesSubscriber` to one greenlet.
"""

from __future__ import annotations

import zmq

from pylon import limits, metrics
from pylon.bus import contexts, messages
from pylon.bus.runtime import Runtime
from pylon.changelog.event import ChangeBatch


class ChangesPublisher:
    """Binds the changes endpoint."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime) -> None:
        self._socket = contexts.open_socket(contexts.plain(), zmq.PUB, limits.BUS_CHANGES_HWM)
        self._socket.bind(runtime.changes)

    def publish(self, batch: ChangeBatch) -> None:
        """Send a batch to every subscriber that keeps up. Never blocks."""
        self._socket.send(messages.encode(batch), zmq.NOBLOCK)
        metrics.BUS_MESSAGES.labels("changes").inc()

    def close(self) -> None:
        self._socket.close()


class ChangesSubscriber:
    """Receives every batch from now on, except those that were dropped."""

    __slots__ = ("_last_seq", "_socket")

    def __init__(self, runtime: Runtime) -> None:
        self._last_seq: int | None = None
        self._socket = contexts.open_socket(contexts.green(), zmq.SUB, limits.BUS_CHANGES_HWM)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(runtime.changes)

    def receive(self) -> ChangeBatch:
        """The next batch; blocks this greenlet. Counts gaps; closing them is the caller's.

        Raises:
            zmq.ZMQError: the socket was closed.
        """
        return self._take(self._socket.recv())

    def waiting(self) -> ChangeBatch | None:
        """The next batch if it is here already, else None. Never blocks."""
        try:
            data = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return self._take(data)

    def _take(self, data: bytes) -> ChangeBatch:
        batch = messages.change_batch.decode(data)
        if self._last_seq is not None and batch.prev_seq != self._last_seq:
            metrics.BUS_DROPPED.labels("changes").inc()
        if batch.events:
            self._last_seq = batch.events[-1].seq
        return batch

    def close(self) -> None:
        self._socket.close()
