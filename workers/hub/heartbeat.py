"""One timer for all connections: pings or keep-alive comments, and the end of dead connections.

The connections are spread over short ticks (`Hub.partitions`), so that ten thousand pings do not
leave at once. A worker with more connections than limits.HEARTBEATS_PER_S can serve in a period
beats more slowly.

The timer closes a WebSocket that answered nothing for two heartbeats, and a stream whose outbox did
not empty in two heartbeats. It ends closes that take too long. If PYLON_SOCKET_MAX_LIFE_S is set,
it closes older connections at random within the last quarter of this time, so that they do not all
reconnect at once.

The number of a connection tells its age: now and then the timer notes the number of the newest
connection with the time, at most `_MARKS` times in a life. So idle connections carry no time. Run
by `workers.hub.service`.
"""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import Final, NoReturn

import gevent

from pylon import limits
from pylon.clock import Clock, RandomSource, SystemRandom
from workers.hub.close_codes import GOING_AWAY, INTERNAL
from workers.hub.connection import Connection
from workers.hub.hub import BEAT_S, Hub

_UNANSWERED_MAX: Final = 2
_MARKS: Final = 1_000
_LEAST_LIFE: Final = 0.75  # of the longest


class Heartbeat:
    """Beats for one hub."""

    __slots__ = ("_clock", "_hub", "_marks", "_max_life_s", "_random", "_slot", "slots")

    def __init__(
        self, hub: Hub, clock: Clock, max_life_s: float = 0.0, random: RandomSource | None = None
    ) -> None:
        """`max_life_s`: the longest life of a connection; 0 sets no limit."""
        self._hub = hub
        self._clock = clock
        self._max_life_s = max_life_s
        self._random = random or SystemRandom()
        self._marks: list[tuple[int, float]] = []  # the newest connection's number, and when
        self._slot = 0
        self.slots = len(hub.partitions)

    def run(self) -> NoReturn:
        """Beat while there are connections, without end."""
        while True:
            self._hub.occupied.wait()
            gevent.sleep(self.pause_s())
            self.tick()

    def pause_s(self) -> float:
        """Return the time until the next tick."""
        return max(BEAT_S, len(self._hub) / self.slots / limits.HEARTBEATS_PER_S)

    def tick(self) -> None:
        """Serve the next partition of the connections. Each comes once in `slots` ticks."""
        self._slot = (self._slot + 1) % self.slots
        self._hub.end_overdue()
        if self._max_life_s:
            self._mark()
        for connection in list(self._hub.partitions[self._slot]):
            if connection.is_open:
                if self._max_life_s and self._is_old(connection):
                    connection.close(
                        GOING_AWAY, "reconnect",
                        awaits_peer=self._hub.transport.expects_replies,
                    )
                else:
                    self._beat(connection)

    def _mark(self) -> None:
        now_s, newest = self._clock.monotonic_s(), self._hub.opened
        marks = self._marks
        if not marks or (
            newest > marks[-1][0] and now_s >= marks[-1][1] + self._max_life_s / _MARKS
        ):
            marks.append((newest, now_s))
        # Of the marks older than any life the newest stays: it stands for all before it.
        old = bisect_left(marks, now_s - self._max_life_s, key=itemgetter(1))
        del marks[: max(0, old - 1)]

    def _is_old(self, connection: Connection) -> bool:
        at = bisect_left(self._marks, (connection.number, 0.0))
        if at == len(self._marks):
            return False  # younger than the last mark
        left_s = self._max_life_s - (self._clock.monotonic_s() - self._marks[at][1])
        if left_s > self._max_life_s * (1 - _LEAST_LIFE):
            return False
        # One of the heartbeats that are left, each as likely as the others.
        return self._random.uniform(0.0, left_s) < self.pause_s() * self.slots

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
        if transport.heartbeat:
            connection.send(transport.heartbeat)
