"""Rooms thread: executes the room commands of all workers and publishes the updates.

Rooms live in the supervisor, because it outlives every worker. A restart of the supervisor empties
all rooms (docs/realtime.md). The thread publishes a single update at once. While updates keep
coming, it gathers them for `limits.ROOM_TICK_S`.

Invariants: only this thread uses the `RoomService`. The thread removes the sockets of an ended
worker after it has executed the commands that the worker had sent; the lease covers a lost notice.
Started by `supervisor.main`; the drain stops it after the last client has gone.
"""

from __future__ import annotations

import queue
import threading
from typing import Final

from pylon import limits
from pylon.bus.rooms_messages import pid_of
from pylon.bus.rooms_port import RoomsPort, RoomsWaker
from pylon.bus.runtime import Runtime
from pylon.clock import Clock, RandomSource
from pylon.rooms.service import RoomService

_EXPIRY_S: Final = 1.0  # how often the thread looks for what has expired
_IDLE_S: Final = 60.0  # while nothing can expire


class RoomsThread:
    """`start` it before the workers, `stop` it after them."""

    def __init__(self, runtime: Runtime, clock: Clock, random: RandomSource) -> None:
        self._runtime = runtime
        self._clock = clock
        self._service = RoomService(clock, random.token_hex(8))
        self._port = RoomsPort(runtime)
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._waker = RoomsWaker(runtime)
        self._thread = threading.Thread(target=self._run, name="rooms", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it. Idempotent."""
        if not self._thread.is_alive() or self._stopping.is_set():
            return
        self._stopping.set()
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def worker_ended(self, pid: int) -> None:
        """Have the thread remove the sockets of an ended process. Called by the main thread."""
        if not self._stopping.is_set():
            self._ended.put(pid)
            self._waker.wake()

    def _run(self) -> None:
        service, port = self._service, self._port
        due_s = self._clock.monotonic_s()
        while not self._stopping.is_set():
            wait_s = _IDLE_S if service.is_empty else _EXPIRY_S
            if service.has_updates:
                wait_s = max(0.0, due_s - self._clock.monotonic_s())
            for peer, requests in port.receive(wait_s):
                port.reply(peer, service.apply(peer, requests))
            self._note_ends()
            service.expire()
            if service.has_updates and self._clock.monotonic_s() >= due_s:
                for updates in service.take_updates():
                    port.publish(updates)
                due_s = self._clock.monotonic_s() + limits.ROOM_TICK_S
        port.close()

    def _note_ends(self) -> None:
        while not self._ended.empty():
            pid = self._ended.get_nowait()
            for name in self._service.workers:
                if pid_of(name) == pid:
                    self._service.remove_worker(name)
