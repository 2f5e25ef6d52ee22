"""Set-up of tests of rooms in ws workers: rooms whose news the test publishes or loses."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from pylon.bus.rooms_messages import Relay, RoomCommand, RoomRequest
from pylon.bus.rooms_port import RoomsPort
from pylon.clock import SystemClock
from pylon.rooms.service import RoomService
from tests.support.stage import Stage
from tests.support.wait import WAIT_S


class RoomServer:
    """Keeps rooms, and publishes or loses news when it is told to."""

    def __init__(self, stage: Stage) -> None:
        self.service = RoomService(SystemClock(), "g")
        self._port = RoomsPort(stage.runtime)
        self._jobs: queue.Queue[tuple[Callable[[], None], threading.Event]] = queue.Queue()
        self.relays: list[int] = []  # how many each message had
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            for peer, requests in self._port.receive(0.01):
                self._port.reply(peer, self.service.apply(peer, requests))
                self.relays.append(sum(isinstance(r.command, Relay) for r in requests))
            while not self._jobs.empty():
                job, done = self._jobs.get()
                job()
                done.set()
        self._port.close()

    def do(self, job: Callable[[], None]) -> None:
        done = threading.Event()
        self._jobs.put((job, done))
        assert done.wait(WAIT_S)

    def ask(self, *commands: RoomCommand) -> None:
        def job() -> None:
            for reply in self.service.apply(b"r1-http", [RoomRequest(1, c) for c in commands]):
                assert reply.error is None

        self.do(job)

    def publish(self) -> None:
        def job() -> None:
            for updates in self.service.take_updates():
                self._port.publish(updates)

        self.do(job)

    def lose(self) -> None:
        def job() -> None:
            assert list(self.service.take_updates())

        self.do(job)

    def close(self) -> None:
        self._ended = True
        self._thread.join()
