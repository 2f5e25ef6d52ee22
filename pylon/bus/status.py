"""Heartbeats, from every worker to the supervisor, every one or two seconds.

The sender drops a heartbeat that cannot leave at once, because the next one is newer. The
supervisor judges liveness and readiness by heartbeats. Metrics: pylon_bus_messages_total,
pylon_bus_messages_dropped_total. Called by `workers.boot` and `supervisor.heartbeats`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import zmq

from pylon import limits, log, metrics
from pylon.bus import contexts, messages
from pylon.bus.messages import WorkerStatus
from pylon.bus.runtime import Runtime

_log = log.get_logger("status")
_INTERRUPT_MS: Final = 1_000


class StatusSender:
    """A worker's end. For one greenlet."""

    __slots__ = ("_socket",)

    def __init__(self, runtime: Runtime) -> None:
        self._socket = contexts.open_socket(contexts.green(), zmq.PUSH, limits.BUS_STATUS_HWM)
        self._socket.connect(runtime.status)

    def send(self, status: WorkerStatus) -> None:
        """Send a heartbeat, or drop it if the supervisor does not read. Never blocks."""
        try:
            self._socket.send(messages.encode(status), zmq.NOBLOCK)
            metrics.BUS_MESSAGES.labels("status").inc()
        except zmq.Again:
            metrics.BUS_DROPPED.labels("status").inc()
            metrics.return_changes(status.metrics)

    def close(self) -> None:
        self._socket.close()


class StatusReceiver:
    """The supervisor's end. For one thread."""

    __slots__ = ("_socket", "_waker")

    def __init__(self, runtime: Runtime) -> None:
        self._socket = contexts.open_socket(
            contexts.plain(), zmq.PULL, limits.BUS_STATUS_HWM * 64
        )
        self._socket.bind(runtime.status)
        # Connected now: at `interrupt` the socket may have vanished from the folder.
        self._waker = contexts.open_socket(contexts.plain(), zmq.PUSH, 1)
        self._waker.setsockopt(zmq.LINGER, _INTERRUPT_MS)
        self._waker.connect(runtime.status)

    def receive(self, timeout_s: float) -> WorkerStatus | None:
        """Return the next heartbeat; None if none came in time or it is invalid."""
        if not self._socket.poll(int(timeout_s * 1_000)):
            return None
        try:
            data = self._socket.recv(zmq.NOBLOCK)
            return messages.worker_status.decode(data) if data else None
        except zmq.Again:
            return None
        except msgspec.DecodeError as ex:
            _log.error("status.unreadable", error=str(ex))
            metrics.BUS_DROPPED.labels("status").inc()
            return None

    def interrupt(self) -> None:
        """End the `receive` of another thread, which returns None. Call it once, at the end."""
        self._waker.send(b"")
        self._waker.close()

    def close(self) -> None:
        self._socket.close()
