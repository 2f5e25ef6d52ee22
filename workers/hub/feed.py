"""The feed: brings every committed change to the hub, once and in order.

Changes come over the bus, which may drop some. Each batch names the seq before it. If the feed has
not reached that seq, it reads the missing part from the change log before it publishes anything
newer. The last batch may be the lost one, so the feed also reads the log after the bus was quiet
for limits.HEAD_CHECK_S.

While no client is connected, the feed buffers raw batches undecoded, and decodes them when a client
comes (`tail`). They count as published, because nobody could have received them. The feed tells the
writer whether there are clients, because the writer publishes less often for nobody.

The feed publishes together what has gathered on the bus. So a busier hub sends more changes to a
socket in one write. A change that comes alone goes at once.

Invariants: everything up to `tail.last_seq` is published, or counts as published. No greenlet
switch lies between `tail.append` and `hub.publish`. If the log no longer has the events after our
head (a worker was stopped for minutes), every client is closed with 1012 and pulls again; none
misses a change silently. A store that cannot be read delays the feed, and does not end it. Bounds:
limits.IDLE_BUFFER_BYTES, TURN_EVENTS, TURN_BYTES. Metric: pylon_recoveries_total. Run by
`workers.hub.service`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NoReturn

import gevent
from gevent.event import Event
from gevent.lock import RLock

from pylon import limits, log, metrics
from pylon.bus.changes import ChangesSubscriber
from pylon.changelog.change import Change
from pylon.changelog.tail import Tail
from pylon.errors import PylonError, ResyncRequired
from pylon.storage.events import ChangeBatch
from workers.hub.close_codes import SERVICE_RESTART
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.hub.loop_yield import yield_to_loop

_RETRY_S: Final = 0.5
_IDLE_S: Final = 0.1  # how often a worker without connections empties its bus socket
_MAX_UNDECODED_BATCHES: Final = limits.TAIL_EVENTS
_WATCH_STEPS: Final = 5  # of limits.HEAD_CHECK_S: the resolution of the quiet time

_log = log.get_logger("feed")


class Feed:
    """Keeps one hub current."""

    def __init__(self, subscriber: ChangesSubscriber, history: History, hub: Hub) -> None:
        """`subscriber` is connected already, so that no change is lost before `start`."""
        self._subscriber = subscriber
        self._history = history
        self._hub = hub
        self._lock = RLock()
        self._tail = Tail(0)
        self._undecoded: deque[bytes] = deque()  # undecoded batches
        self._undecoded_bytes = 0
        self._has_hole = False  # a batch before the undecoded ones was dropped
        self.received = 0  # the number of receives
        self._wanted = Event()

    @property
    def tail(self) -> Tail:
        """The newest changes, current to the head of the hub. Never blocks."""
        if self._undecoded:
            self._decode_buffered()
        self._wanted.set()
        return self._tail

    def start(self) -> None:
        """Begin with the newest events of the log as the tail; replays read older ones.

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        self._tail = self._primed()
        self._hub.advance(self._tail.last_seq)

    def run(self) -> NoReturn:
        """Publish what the bus brings, without end."""
        while True:
            self._subscriber.set_has_clients(len(self._hub) > 0)
            if not len(self._hub):
                self._subscriber.wait()
                self._wanted.clear()
                if not len(self._hub):
                    self._wanted.wait(_IDLE_S)
                if not len(self._hub):
                    self._buffer_undecoded()
                    continue
            self.take(self._gathered(self._subscriber.receive()))
            self.received += 1
            # After a quick turn the feed sleeps as long as the turn took, so that a busy hub works
            # half of its time and batches gather. A slow turn lets enough gather by itself. The
            # feed yields in any case: a busy bus never makes it wait.
            spent_s = self._hub.spent_s
            rest_s = min(spent_s, limits.TURN_S - spent_s)
            if rest_s > 0:
                gevent.sleep(rest_s)
            else:
                yield_to_loop()

    def _buffer_undecoded(self) -> None:
        """Empty the bus socket without decoding the batches."""
        while (data := self._subscriber.receive_raw()) is not None:
            self.received += 1
            self._undecoded.append(data)
            self._undecoded_bytes += len(data)
            if (
                len(self._undecoded) > _MAX_UNDECODED_BATCHES
                or self._undecoded_bytes > limits.IDLE_BUFFER_BYTES
            ):
                self._undecoded_bytes -= len(self._undecoded.popleft())
                self._has_hole = True

    def _decode_buffered(self) -> None:
        """Bring the tail to the end of the undecoded batches; no client waits for them."""
        undecoded, self._undecoded, self._undecoded_bytes = self._undecoded, deque(), 0
        if self._has_hole:
            self._subscriber.skip()
            self._has_hole = False
        for data in undecoded:
            batch = self._subscriber.read(data)
            if batch.prev_seq > self._tail.last_seq:  # older ones are in the log
                self._tail = Tail(batch.prev_seq)
            self._tail.append(ChangeBatch(self._tail.last_seq, batch.events))
        self._hub.advance(self._tail.last_seq)

    def _gathered(self, first: ChangeBatch) -> list[ChangeBatch]:
        """Return a batch and those that wait behind it, as many as fit into one turn."""
        batches = [first]
        held_events = len(first.events)
        held_bytes = _size_bytes(first)
        while held_events < limits.TURN_EVENTS and held_bytes < limits.TURN_BYTES:
            batch = self._subscriber.receive_waiting()
            if batch is None:
                break
            batches.append(batch)
            held_events += len(batch.events)
            held_bytes += _size_bytes(batch)
        return batches

    def watch(self) -> NoReturn:
        """Find a lost last batch while there are connections, without end."""
        quiet_steps = 0
        while True:
            self._hub.occupied.wait()
            before = self.received
            gevent.sleep(limits.HEAD_CHECK_S / _WATCH_STEPS)
            quiet_steps = quiet_steps + 1 if self.received == before else 0
            if quiet_steps >= _WATCH_STEPS:
                quiet_steps = 0
                self.check_head()

    def take(self, batches: Iterable[ChangeBatch]) -> None:
        """Publish batches as one, after the events that are missing before them."""
        with self._lock:
            changes: list[Change] = []
            committed_s = 0.0  # of the first of `changes`
            for batch in batches:
                if batch.prev_seq > self.tail.last_seq:
                    self._hub.publish(changes, committed_s)
                    changes, committed_s = [], 0.0
                    self._catch_up()
                committed_s = committed_s or batch.committed_s
                # Seqs that no event has may lie between the log's end and the batch.
                changes += self.tail.append(ChangeBatch(self.tail.last_seq, batch.events))
            self._hub.publish(changes, committed_s)

    def check_head(self) -> None:
        """Publish events of the log that the bus did not bring."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        while True:
            try:
                page = self._history.page(self.tail.last_seq, limits.TURN_EVENTS)
            except ResyncRequired as ex:
                _log.error("feed.lost", head_seq=self.tail.last_seq, message=ex.message)
                metrics.RECOVERIES.labels("feed_lost").inc()
                self._tail = self._primed()
                self._hub.advance(self.tail.last_seq)
                self._hub.close_all(SERVICE_RESTART, "resync required")
                return
            except PylonError as ex:
                _log.warning("feed.delayed", code=ex.code, message=ex.message)
                gevent.sleep(_RETRY_S)
                continue
            if not page:
                return
            metrics.RECOVERIES.labels("feed_gap").inc()
            self._publish(ChangeBatch(self.tail.last_seq, [change.event for change in page]))
            yield_to_loop()  # there may be many pages, and a read may not switch greenlets

    def _publish(self, batch: ChangeBatch) -> None:
        changes = self.tail.append(batch)
        self.tail.relate()  # the batch is late: its rows may have changed since
        self._hub.publish(changes)

    def _primed(self) -> Tail:
        """Return a tail of the newest events of the log, up to its head."""
        head = self._history.head()
        newest = self._history.newest(limits.TAIL_PRIMED_EVENTS)
        tail = Tail(newest[0].seq - 1 if newest else head)
        if newest:
            tail.append(ChangeBatch(tail.last_seq, newest))
        tail.advance(head)
        return tail


def _size_bytes(batch: ChangeBatch) -> int:
    return sum(len(event.data or event.prev_data or b"") for event in batch.events)
