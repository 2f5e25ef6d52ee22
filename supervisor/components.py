"""The parts of a running supervisor. Made by `main`, used by the loop and the drain."""

from __future__ import annotations

import msgspec

from pylon.bus.runtime import Runtime
from pylon.bus.signals import PlainSignalSender
from pylon.changelog.marks import HeadMarks
from pylon.clock import Clock
from pylon.config import Config
from pylon.storage.backend import Backend
from pylon.storage.backups import LogCapture
from pylon.storage.interface import WriteEngine
from supervisor.backups import Backups
from supervisor.children import Children
from supervisor.disk_guard import DiskGuard
from supervisor.events import Events, Progress
from supervisor.flusher import Flusher
from supervisor.generations import Generations
from supervisor.heartbeats import Heartbeats
from supervisor.nodes import Nodes
from supervisor.notify import Notifier
from supervisor.pending_schema import PendingSchema
from supervisor.relay import Relay
from supervisor.rooms import RoomsThread
from supervisor.shipper import Shipper
from supervisor.sockets import Listeners
from supervisor.writer import Writer


class Components(msgspec.Struct, frozen=True):
    """The parts of one run. `store` may be in memory, and then exists in this run only."""

    config: Config
    clock: Clock
    runtime: Runtime
    store: Backend
    listeners: Listeners
    events: Events
    progress: Progress
    engine: WriteEngine
    writer: Writer
    relay: Relay | None  # None: the writer publishes
    nodes: Nodes | None  # None: no other node can share the store
    flusher: Flusher
    disk_guard: DiskGuard
    capture: LogCapture | None  # None: no continuous backup
    shipper: Shipper | None
    pending: PendingSchema
    heartbeats: Heartbeats
    rooms: RoomsThread
    children: Children
    marks: HeadMarks
    backups: Backups
    signals: PlainSignalSender  # for the main thread
    notifier: Notifier
    generations: Generations

    @property
    def head(self) -> int:
        """Return the seq up to which the workers are given all changes."""
        return self.writer.head if self.relay is None else self.relay.head
