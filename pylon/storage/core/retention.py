"""Retention: drops old events and op_ids of the change log, in small steps.

A step drops at most `limit` of each kind. Retention counts the records once, with a scan, and then
updates its counts. It notes each commit for `log_size`.

Invariants: the newest event is never dropped, because it is the head. The oldest events are dropped
first, without gaps. An event younger than `older_than_s` stays, unless its seq is at most
`drop_to_seq`. Bound: `limits.PRUNE_STEP_BYTES` of images for each step. Called by `engine`, within
its transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from pylon import limits
from pylon.storage.core.log_size import LogSize
from pylon.storage.core.transaction import MaintenanceRows
from pylon.storage.events import ChangeEvent
from pylon.storage.records import LogRetention


class Retention:
    """Prunes the log and counts its records. `log_size` measures it."""

    __slots__ = ("_events", "_ops", "_rows", "log_size")

    def __init__(self, rows: MaintenanceRows) -> None:
        self._rows = rows
        self._events: int | None = None  # None: not counted yet
        self._ops: int | None = None
        self.log_size = LogSize()

    def commit(self, previous: int, events: Sequence[ChangeEvent], ops: int) -> None:
        """Add the records of a committed transaction to the counts.

        Args:
            previous: the head before it.
            ops: the number of its op_ids.
        """
        if events:
            self.log_size.note(previous, events)
        if self._events is not None:
            self._events += len(events)
        if self._ops is not None:
            self._ops += ops

    def undo(self) -> None:
        """Forget the counts: a transaction was rolled back."""
        self._events = self._ops = None

    def prune(self, step: LogRetention) -> int:
        """Drop at most `step.limit` of each kind. Return how many were dropped in all."""
        return self._prune_events(step) + self._prune_ops(step)

    def _prune_events(self, step: LogRetention) -> int:
        if self._events is None:
            self._events = self._rows.count_events()
        surplus = self._events - max(step.keep_events, 1)
        if surplus <= 0 and not step.drop_to_seq:
            return 0
        limit = min(step.limit, self._events - 1)
        cut_seq = None
        dropped_bytes = 0
        for number, event in enumerate(self._rows.oldest_events(limit), 1):
            if event.seq > step.drop_to_seq:
                is_young = (
                    event.seq > step.old_seq and event.timestamp_s >= step.older_than_s
                )
                if number > surplus or is_young:
                    break
            dropped_bytes += event.size_bytes
            if cut_seq is not None and dropped_bytes > limits.PRUNE_STEP_BYTES:
                break  # SQLite reads the pages of large images to free them
            cut_seq = event.seq
        if cut_seq is None:
            return 0
        dropped = self._rows.drop_events(cut_seq)
        self._events -= dropped
        return dropped

    def _prune_ops(self, step: LogRetention) -> int:
        if self._ops is None:
            self._ops = self._rows.count_ops()
        limit = min(step.limit, self._ops - limits.OP_IDS_KEPT)
        if limit <= 0:
            return 0
        dropped = self._rows.drop_ops(limit, step.older_than_s, step.old_seq)
        self._ops -= dropped
        return dropped
