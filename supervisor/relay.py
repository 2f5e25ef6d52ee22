"""The relay thread: publishes the changes of all nodes, in commit order, to the workers.

On a store that several nodes write to, this thread is the only one of its node that publishes
changes. A `ChangeSource` follows the change log of the database; the writer of the node hands its
batches over. The relay also tells the workers, by signals, what has no event: documents have
changed, a session has ended. So a hub hears of the commits of every node.

Invariants: batches go out in the order of their seqs, so hubs see no gap in normal running; their
own check of gaps stays. The source reconnects by itself, and nothing that was committed meanwhile
is lost. Metrics: pylon_relay_lag_seqs, pylon_relay_lag_seconds. Made by `supervisor.main`; the
drain stops it after the writer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from pylon import log, metrics
from pylon.bus.messages import DocumentsChanged, SessionRevoked
from pylon.bus.runtime import Runtime
from pylon.bus.signals import PlainSignalSender
from pylon.clock import Clock
from pylon.errors import StartDelayed, StoreUnavailable
from pylon.storage.backend import ChangeReport, ChangeSource
from pylon.storage.events import ChangeBatch
from pylon.storage.public_rows import PublicRows
from supervisor.batch_publisher import BatchPublisher

_IDLE_S: Final = 60.0  # the source wakes for its own poll
BEHIND_S: Final = 5.0  # then this node is not ready

_log = log.get_logger("relay")


class Relay:
    """`start` it before the writer; `stop` it after the writer's end."""

    def __init__(
        self, source: ChangeSource, runtime: Runtime, broken: Callable[[BaseException], None],
        rows: PublicRows, clock: Clock,
    ) -> None:
        """
        Args:
            broken: called, in the thread, when the relay cannot go on.
            rows: removes the hidden fields, also from what older nodes have committed.
        """
        self._source = source
        self._broken = broken
        self._publisher = BatchPublisher(runtime, rows, clock)
        self._signals = PlainSignalSender(runtime)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    @property
    def head(self) -> int:
        """Return the seq up to which all changes were published or are about to be."""
        return self._source.head

    @property
    def lag_seqs(self) -> int:
        """Return how far `head` is behind the newest seq that this node has heard of."""
        return self._source.lag_seqs

    @property
    def away_s(self) -> float:
        """Return for how long the database has not answered; 0: it answers."""
        return self._source.away_s

    def start(self) -> None:
        """Connect, and begin with the present head.

        Raises:
            StartDelayed: the database does not answer.
        """
        try:
            self._source.begin()
        except StoreUnavailable as ex:
            raise StartDelayed(f"DATABASE_URL: {ex.message}") from ex
        self._thread.start()

    def stop(self) -> None:
        """Publish what was handed over, and end the thread. Idempotent."""
        if not self._thread.is_alive() or self._stopping.is_set():
            return
        self._stopping.set()
        self._source.wake()
        self._thread.join()

    def hand_over(self, batch: ChangeBatch) -> None:
        """Take a batch that the writer of this node has committed. Never blocks."""
        self._source.hand_over(batch)

    def find_problem(self) -> str | None:
        """Return why clients of this node do not see all changes, for readiness; or None."""
        behind_s = self._source.behind_s
        if behind_s < BEHIND_S:
            return None
        return f"changes of the last {behind_s:.0f} s have not reached this node"

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                wait_s = self._publisher.wait_s
                self._take(self._source.receive(_IDLE_S if wait_s is None else wait_s))
            self._take(self._source.receive(0.0))
        except Exception as ex:  # noqa: BLE001  without it no client sees a change
            _log.exception("relay.failed", error=ex)
            self._broken(ex)
        finally:
            self._source.close()
            self._publisher.close()
            self._signals.close()

    def _take(self, report: ChangeReport) -> None:
        for batch in report.batches:
            self._publisher.put(batch)
        self._publisher.publish_if_due()
        if report.has_documents:
            self._signals.send(DocumentsChanged())
        for family in report.ended_families:
            self._signals.send(SessionRevoked(family, is_certain=False))
        metrics.CHANGELOG_SEQ.set(self._source.head)
        metrics.RELAY_LAG_SEQS.set(self._source.lag_seqs)
        metrics.RELAY_LAG_SECONDS.set(self._source.behind_s)
