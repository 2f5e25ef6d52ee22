"""The feed: brings every committed change to the hub, once and in order.

Changes come over the bus, which may drop some. Each batch says what the head was before it;
when that is not where we are, the missing part is read from the change log before anything
newer is published. As the very last batch may be the lost one, the log is also asked when the
bus has been quiet for `limits.HEAD_CHECK_S`.

While a worker has no connection, batches are set aside as they came, some tens of times a second,
and read when somebody comes (`tail`): what was committed then counts as published.

What has gathered on the bus is published together, so that the busier the hub is, the more
changes go to a socket in one write. A change that comes alone is published at once.

Invariants: `tail.last_seq` is the seq up to which everything has been published, or counts as
published because nobody was connected; `tail.append` and `hub.publish` happen without a switch
between them. When the log no longer reaches back to our head (which takes a worker that was
stopped for minutes), every client is closed with 1012 and so pulls afresh; none misses a change
in silence. A store that cannot be read delays the feed; it does not end it.
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
from workers.hub.history import History
from workers.hub.hub import Hub
from workers.hub.loop_yield import yield_to_loop

SERVICE_RESTART: Final = 1012
_RETRY_S: Final = 0.5
_IDLE_S: Final = 0.03  # how often a worker without connections empties its socket
_ASIDE_BATCHES: Final = limits.TAIL_EVENTS
_WATCH_STEPS: Final = 5  # how finely the quiet of the bus is measured

_log = log.get_logger("feed")


class Feed:
    """Keeps one hub current."""

    def __init__(self, subscriber: ChangesSubscriber, history: History, hub: Hub) -> None:
        """`subscriber` must be connected already, so that nothing falls between it and
        `start`."""
        self._subscriber = subscriber
        self._history = history
        self._hub = hub
        self._lock = RLock()
        self._tail = Tail(0)
        self._aside: deque[bytes] = deque()  # batches that nobody needed yet
        self._aside_bytes = 0
        self._has_hole = False  # before what is set aside
        self.heard = 0  # how often the bus brought something
        self._wanted = Event()

    @property
    def tail(self) -> Tail:
        """The newest changes, current to the head of the hub. Never blocks."""
        if self._aside:
            self._decode_buffered()
        self._wanted.set()
        return self._tail

    def start(self) -> None:
        """Take the log's newest events as the tail. What came before is for replays.

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        self._tail = self._primed()
        self._hub.advance(self._tail.last_seq)

    def run(self) -> NoReturn:
        """Publish what the bus brings, for ever."""
        while True:
            if not len(self._hub):
                self._subscriber.wait()
                self._wanted.clear()
                if not len(self._hub):
                    self._wanted.wait(_IDLE_S)
                if not len(self._hub):
                    self._buffer_undecoded()
                    continue
            self.take(self._gathered(self._subscriber.receive()))
            self.heard += 1
            # While it is quick to publish, the next turn waits as long as this one took, so that
            # a busy hub works half of its time; a slow turn lets enough gather by itself. Other
            # greenlets have their turn either way: the bus would never make this one wait.
            spent_s = self._hub.spent_s
            rest_s = min(spent_s, limits.TURN_S - spent_s)
            if rest_s > 0:
                gevent.sleep(rest_s)
            else:
                yield_to_loop()

    def _buffer_undecoded(self) -> None:
        """Empty the socket, without reading what comes."""
        while (data := self._subscriber.receive_raw()) is not None:
            self.heard += 1
            self._aside.append(data)
            self._aside_bytes += len(data)
            if len(self._aside) > _ASIDE_BATCHES or self._aside_bytes > limits.IDLE_BUFFER_BYTES:
                self._aside_bytes -= len(self._aside.popleft())
                self._has_hole = True

    def _decode_buffered(self) -> None:
        """Bring the tail to the end of what was set aside; nobody was there to be told of it."""
        aside, self._aside, self._aside_bytes = self._aside, deque(), 0
        if self._has_hole:
            self._subscriber.skip()
            self._has_hole = False
        for data in aside:
            batch = self._subscriber.read(data)
            if batch.prev_seq > self._tail.last_seq:  # older ones are in the log
                self._tail = Tail(batch.prev_seq)
            self._tail.append(ChangeBatch(self._tail.last_seq, batch.events))
        self._hub.advance(self._tail.last_seq)

    def _gathered(self, first: ChangeBatch) -> list[ChangeBatch]:
        """A batch and those that wait behind it, as many as go in one turn."""
        batches = [first]
        held_events = len(first.events)
        held_bytes = _size_bytes(first)
        while held_events < limits.TURN_EVENTS and held_bytes < limits.TURN_BYTES:
            batch = self._subscriber.waiting()
            if batch is None:
                break
            batches.append(batch)
            held_events += len(batch.events)
            held_bytes += _size_bytes(batch)
        return batches

    def watch(self) -> NoReturn:
        """Look after a lost last batch, for ever."""
        quiet_steps = 0
        while True:
            before = self.heard
            gevent.sleep(limits.HEAD_CHECK_S / _WATCH_STEPS)
            quiet_steps = quiet_steps + 1 if self.heard == before else 0
            if quiet_steps >= _WATCH_STEPS:
                quiet_steps = 0
                self.check_head()

    def take(self, batches: Iterable[ChangeBatch]) -> None:
        """Publish batches as one, and before them whatever is missing between us and them."""
        with self._lock:
            changes: list[Change] = []
            for batch in batches:
                if batch.prev_seq > self.tail.last_seq:
                    self._hub.publish(changes)
                    changes = []
                    self._catch_up()
                # Seqs that no event has may lie between the log's end and the batch.
                changes += self.tail.append(ChangeBatch(self.tail.last_seq, batch.events))
            self._hub.publish(changes)

    def check_head(self) -> None:
        """Publish what the log has and the bus did not bring."""
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
            yield_to_loop()  # the way may be long, and reading it need not switch

    def _publish(self, batch: ChangeBatch) -> None:
        changes = self.tail.append(batch)
        self.tail.relate()  # these are late: their rows may have changed since
        self._hub.publish(changes)

    def _primed(self) -> Tail:
        """A tail of the log's newest events, current to its head."""
        head = self._history.head()
        newest = self._history.newest(limits.TAIL_PRIMED_EVENTS)
        tail = Tail(newest[0].seq - 1 if newest else head)
        if newest:
            tail.append(ChangeBatch(tail.last_seq, newest))
        tail.advance(head)
        return tail


def _size_bytes(batch: ChangeBatch) -> int:
    return sum(len(event.data or event.prev_data or b"") for event in batch.events)
