"""Batch publisher: gives committed batches to the bus, in a rhythm that suits its subscribers.

The first batch after a pause goes out at once. Batches that follow within
`limits.PUBLISH_PERIOD_S` are kept until then, and go out as one. If no socket worker has a client
when a batch goes out, the period after it is `limits.PUBLISH_IDLE_PERIOD_S`.

Invariants: batches keep their order. Two batches become one only if nothing lies between them, so a
gap that the source made stays visible (`ChangeBatch.prev_seq`). For one thread: the writer's on a
store whose only writer it is, else the relay's.
"""

from __future__ import annotations

from pylon import limits
from pylon.bus.changes import ChangesPublisher
from pylon.bus.runtime import Runtime
from pylon.clock import Clock
from pylon.storage.events import ChangeBatch
from pylon.storage.public_rows import PublicRows


class BatchPublisher:
    """See the module."""

    def __init__(self, runtime: Runtime, rows: PublicRows, clock: Clock) -> None:
        """
        Args:
            rows: removes the hidden fields, which no worker may have.
            clock: its monotonic time is the rhythm, and the time of a batch (`committed_s`).
        """
        self._clock = clock
        self._publisher = ChangesPublisher(runtime, rows)
        self._kept: ChangeBatch | None = None
        self._due_s = float("-inf")  # not before

    @property
    def wait_s(self) -> float | None:
        """How long until `publish_if_due` has something to do; None: nothing is kept."""
        return None if self._kept is None else max(0.0, self._due_s - self._clock.monotonic_s())

    def put(self, batch: ChangeBatch, *, is_large: bool = False) -> None:
        """Publish a batch, or keep it if another has just gone out."""
        # PERF: at 16 connections a commit has 5 inserts, and each message of ZeroMQ costs the
        # writer 45 us and three I/O threads as much, also where the subscribers have no client.
        kept = self._kept
        if kept is not None and batch.prev_seq > _last_seq(kept):
            self.publish_kept()
            kept = None
        if kept is None:
            kept = self._kept = ChangeBatch(batch.prev_seq, batch.events, self._clock.monotonic_s())
        else:
            kept.events.extend(batch.events)
        if is_large or len(kept.events) >= limits.TURN_EVENTS:
            self.publish_kept()
        else:
            self.publish_if_due()

    def publish_if_due(self) -> None:
        """Publish what is kept if its time has come."""
        if self._kept is not None and self._clock.monotonic_s() >= self._due_s:
            self.publish_kept()

    def publish_kept(self) -> None:
        """Publish what is kept."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        self._publisher.publish(kept)
        # PERF: to ask before each batch cost an insert 0.5 us at 64 connections.
        has_clients = self._publisher.has_clients()
        self._due_s = self._clock.monotonic_s() + (
            limits.PUBLISH_PERIOD_S if has_clients else limits.PUBLISH_IDLE_PERIOD_S
        )

    def close(self) -> None:
        """Publish what is kept, and close the socket."""
        self.publish_kept()
        self._publisher.close()


def _last_seq(batch: ChangeBatch) -> int:
    return batch.events[-1].seq if batch.events else batch.prev_seq
