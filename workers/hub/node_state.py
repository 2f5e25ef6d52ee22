"""Node state: the last report to a socket worker about the other nodes and the database.

The supervisor reports both every two seconds where nodes share a database (`NodeState` on the bus).
While the database does not answer, sockets stay open. When that has lasted for
PYLON_DATABASE_OUTAGE_S, the worker refuses new sockets and closes the open ones with 1013, spread
over `_SPREAD_S`, so that clients do not come back together. It admits clients again as soon as the
database answers.

The report also has the nodes that live, and the lease of this one, which ends by the machine's
monotonic clock (`pylon.storage.nodes`): parts that need them register with `on_report`.

Invariant: until the first report there may be other nodes, and this one has no lease. Called by
`workers.hub.service`, `admission`, `start_cursors` and `workers.shards.server`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import gevent

from pylon import log
from pylon.bus.messages import NodeState as NodeStateSignal
from pylon.bus.runtime import Runtime
from pylon.bus.signals import SignalReceiver
from pylon.config import Config
from workers.hub.close_codes import TRY_AGAIN_LATER
from workers.hub.hub import Hub

_SPREAD_S: Final = 10.0
_SPREAD_STEPS: Final = 100

_log = log.get_logger("sockets")


class NodeState:
    """The newest report."""

    __slots__ = ("_callbacks", "has_others", "is_cut_off", "is_shared")

    def __init__(self, config: Config) -> None:
        self.is_shared = config.database_url is not None  # there are reports at all
        self.has_others = self.is_shared
        self.is_cut_off = False
        self._callbacks: list[Callable[[NodeStateSignal], None]] = []

    def on_report(self, callback: Callable[[NodeStateSignal], None]) -> None:
        """Call this with each report. It must not block."""
        self._callbacks.append(callback)

    def watch(
        self, runtime: Runtime, hubs: Sequence[Hub], spawn: Callable[[Callable[[], NoReturn]], None]
    ) -> None:
        """Take the reports from now on, if there are any."""
        if not self.is_shared:
            return
        receiver = SignalReceiver(runtime, NodeStateSignal)

        def run() -> NoReturn:
            while True:
                report = receiver.receive()
                if isinstance(report, NodeStateSignal):
                    self._take(report, hubs)

        spawn(run)

    def _take(self, report: NodeStateSignal, hubs: Sequence[Hub]) -> None:
        self.has_others = report.has_others
        for callback in self._callbacks:
            callback(report)
        if report.is_cut_off == self.is_cut_off:
            return
        self.is_cut_off = report.is_cut_off
        if self.is_cut_off:
            gevent.spawn(self._close_all, hubs)

    def _close_all(self, hubs: Sequence[Hub]) -> None:
        """Close all sockets, unless the database answers again meanwhile."""
        waiting = [connection for hub in hubs for connection in hub.connections]
        _log.warning("sockets.cut_off", sockets=len(waiting),
                     hint="the database has not answered for PYLON_DATABASE_OUTAGE_S")
        steps = min(_SPREAD_STEPS, max(1, len(waiting)))
        for step in range(steps):
            for connection in waiting[step::steps]:
                connection.close(TRY_AGAIN_LATER, "database unavailable")
            gevent.sleep(_SPREAD_S / steps)
            if not self.is_cut_off:
                return
