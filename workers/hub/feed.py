"""The feed: brings every committed change to the hub, once and in order.

Changes come over the bus, which may drop some. Each batch says what the head was before it;
when that is not where we are, the missing part is read from the change log before anything
newer is published. As the very last batch may be the lost one, the log is also asked when the
bus has been quiet for `limits.HEAD_CHECK_S`.

Invariants: `tail.last_seq` is the seq up to which everything has been published, or counts as
published because nobody was connected; `tail.append` and `hub.publish` happen without a switch
between them. When the log no longer reaches back to our head (which takes a worker that was
stopped for minutes), every client is closed with 1012 and so pulls afresh; none misses a change
in silence. A store that cannot be read delays the feed; it does not end it.
"""

from __future__ import annotations

from typing import Final, NoReturn

import gevent
from gevent.lock import RLock

from pylon import limits, log, metrics
from pylon.bus.changes import ChangesSubscriber
from pylon.changelog.event import ChangeBatch
from pylon.changelog.tail import Tail
from pylon.errors import PylonError, ResyncRequired
from workers.hub.history import History
from workers.hub.hub import Hub

SERVICE_RESTART: Final = 1012
_RETRY_S: Final = 0.5
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
        self.tail = Tail(0)

    def start(self) -> None:
        """Take the log's newest events as the tail. What came before is for replays.

        Raises:
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        self.tail = self._primed()

    def run(self) -> NoReturn:
        """Publish what the bus brings, for ever."""
        while True:
            self.take(self._subscriber.receive())

    def watch(self) -> NoReturn:
        """Look after a lost last batch, for ever."""
        quiet_steps = 0
        while True:
            before = self.tail.last_seq
            gevent.sleep(limits.HEAD_CHECK_S / _WATCH_STEPS)
            quiet_steps = quiet_steps + 1 if self.tail.last_seq == before else 0
            if quiet_steps >= _WATCH_STEPS:
                quiet_steps = 0
                self.check_head()

    def take(self, batch: ChangeBatch) -> None:
        """Publish a batch, and before it whatever is missing between us and it."""
        with self._lock:
            if batch.prev_seq > self.tail.last_seq:
                self._catch_up()
            events = [event for event in batch.events if event.seq > self.tail.last_seq]
            if events:
                self._publish(ChangeBatch(self.tail.last_seq, events))

    def check_head(self) -> None:
        """Publish what the log has and the bus did not bring."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        while True:
            try:
                page = self._history.page(self.tail.last_seq, limits.REPLAY_PAGE_EVENTS)
            except ResyncRequired as ex:
                _log.error("feed.lost", head_seq=self.tail.last_seq, message=ex.message)
                metrics.RECOVERIES.labels("feed_lost").inc()
                self.tail = self._primed()
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

    def _publish(self, batch: ChangeBatch) -> None:
        self._hub.publish(self.tail.append(batch))

    def _primed(self) -> Tail:
        """A tail of the log's newest events, current to its head."""
        head = self._history.head()
        newest = self._history.newest(limits.TAIL_PRIMED_EVENTS)
        tail = Tail(newest[0].seq - 1 if newest else head)
        if newest:
            tail.append(ChangeBatch(tail.last_seq, newest))
        tail.advance(head)
        return tail
