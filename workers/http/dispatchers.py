"""Dispatchers: the greenlets that serve connections which have something to do.

Ready connections stand in one queue. `dispatch` runs in gevent's hub: it wakes a dispatcher, which
serves one connection after the other until the queue is empty. So a batch of events costs one
switch of greenlets, and an idle connection costs none. A dispatcher whose app blocks (on the
writer, on the thread pool) waits alone: control returns to the hub, and the next dispatcher
continues with the queue.

Invariant: a connection is in the queue or with one dispatcher at most once (`Connection.queued`).
Bounds: limits.HTTP_DISPATCHERS greenlets; when all of them wait, so do the queued connections,
unread. `_IDLE_MAX` idle greenlets are kept. Metrics:
pylon_http_requests_in_flight, pylon_http_connections_waiting. Used by `loop`.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Final

import greenlet
from gevent.hub import get_hub

from pylon import limits, metrics

if TYPE_CHECKING:
    from workers.http.connection import Connection

_IDLE_MAX: Final = 64


class Dispatchers:
    """The dispatchers of one process."""

    __slots__ = ("_count", "_hub", "_idle", "_ready", "add")

    def __init__(self) -> None:
        self._hub = get_hub()
        self._ready: deque[Connection] = deque()
        # Queues a connection. The caller has set `queued`, and calls `dispatch` afterwards.
        self.add = self._ready.append
        self._idle: list[greenlet.greenlet] = []
        self._count = 0
        metrics.HTTP_REQUESTS_IN_FLIGHT.set_function(lambda: self._count - len(self._idle))
        metrics.HTTP_WAITING.set_function(lambda: len(self._ready))

    def add_again(self, connection: Connection) -> None:
        """Queue a connection behind the others, from its dispatcher; `queued` stays set."""
        self._ready.append(connection)
        self._hub.loop.run_callback(self.dispatch)

    def dispatch(self) -> None:
        """Wake dispatchers until the queue is empty. Runs in the hub."""
        while self._ready:
            if self._idle:
                dispatcher = self._idle.pop()
            elif self._count < limits.HTTP_DISPATCHERS:
                self._count += 1
                dispatcher = greenlet.greenlet(self._run, self._hub)
            else:
                return  # the first dispatcher that is free again continues with the queue
            dispatcher.switch()  # returns when the dispatcher waits, in the app or for the queue

    def _run(self) -> None:
        me = greenlet.getcurrent()
        ready, idle, hub = self._ready, self._idle, self._hub
        while True:
            while ready:
                connection = ready.popleft()
                try:
                    connection.serve()
                except BaseException:  # noqa: BLE001  (the hub logs it, and ends the process if it must)
                    connection.abort()
                    hub.handle_error(me, *sys.exc_info())
            if len(idle) >= _IDLE_MAX:
                self._count -= 1
                return
            idle.append(me)
            hub.switch()
