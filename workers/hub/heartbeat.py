"""One timer for all connections: pings or keep-alive comments, and the end of the dead.

The connections are spread over short ticks (`Hub.shares`), so that ten thousand pings do not
leave at once, and a tick costs what its own share costs.
A WebSocket that answered nothing for two heartbeats is closed; a stream whose outbox has not
emptied in two heartbeats is cut. The same timer ends farewells that take too long.
"""

from __future__ import annotations

from typing import Final, NoReturn

import gevent

from workers.hub.connection import INTERNAL, Connection
from workers.hub.hub import BEAT_S, Hub

_UNANSWERED_MAX: Final = 2


class Heartbeat:
    """Beats for one hub."""

    __slots__ = ("_hub", "_slot", "slots")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._slot = 0
        self.slots = len(hub.shares)

    def run(self) -> NoReturn:
        """Beat for ever."""
        while True:
            gevent.sleep(BEAT_S)
            self.tick()

    def tick(self) -> None:
        """Serve the connections whose turn it is. Each has its turn once in `slots` ticks."""
        self._slot = (self._slot + 1) % self.slots
        self._hub.end_overdue()
        for connection in list(self._hub.shares[self._slot]):
            if connection.is_open:
                self._beat(connection)

    def _beat(self, connection: Connection) -> None:
        transport = self._hub.transport
        if not transport.expects_replies and not connection.outbox_bytes:
            connection.heartbeats_unanswered = 0
        if connection.heartbeats_unanswered >= _UNANSWERED_MAX:
            if transport.expects_replies:
                connection.close(INTERNAL, "no answer to pings")
            else:
                connection.abort()
            return
        connection.heartbeats_unanswered += 1
        connection.send(transport.heartbeat)
