"""Start cursors: the cursor at which the events of a client that connects begin.

A client that names its cursor begins there. The published clients name none: they pull and then
connect, so they begin at the cursor hint of their key (`pylon.changelog.hints`). Without a hint, or
while hints may be missing, the hub replays all events of the last window (`pylon.changelog.marks`),
which holds every event that the client can have missed. Clients drop events that they have.

Invariants: a start cursor is never above one that a pull of the last window returned to the client.
A named or hinted cursor that the log cannot continue is `ResyncRequired`. So is, in the first
seconds of a new epoch, a connection without a hint: its pull may belong to the lost history. A call
sees every hint that was written on this node before it. Those of other nodes come with their news:
a client without a hint waits for them for a moment, and a client with one begins below the head of
`_LATE_S` ago. Bounds: two reads of the store and one of each file for
a client. Called by `workers.hub.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import gevent

from pylon import limits, metrics
from pylon.changelog.hint_journal import HintReader
from pylon.changelog.hints import CursorHints
from pylon.changelog.marks import Mark, MarkReader, window_cursor
from pylon.clock import Clock
from pylon.storage.nodes import NEWS_TICK_S
from workers.hub.history import History

_NEWS_TICKS: Final = 3
_LATE_S: Final = 2.0  # a hint of another node is here by then, or is recorded as missing


class StartCursors:
    """The start cursors of one worker."""

    __slots__ = ("_clock", "_has_other_nodes", "_hints", "_history", "_marks", "_refused")

    def __init__(
        self, hints: HintReader[CursorHints], marks: MarkReader, history: History, clock: Clock,
        has_other_nodes: Callable[[], bool] = lambda: False,
    ) -> None:
        """Args: `has_other_nodes` says whether clients may have pulled from other nodes."""
        self._hints = hints
        self._marks = marks
        self._history = history
        self._clock = clock
        self._has_other_nodes = has_other_nodes
        self._refused: dict[int, float] = {}  # by key: the time of the last refusal

    def refuse_hint(self, key: int) -> bool:
        """Return whether the client must pull again: the log lacks events after the hint of `key`.

        It must do so once in a window, because the hint still exists when the client returns.
        """
        now_s = self._clock.monotonic_s()
        refused_s = self._refused.get(key)
        if refused_s is not None and now_s - refused_s < 2 * limits.HINT_WINDOW_S:
            return False
        if len(self._refused) >= limits.HINTS:
            self._refused.clear()
        self._refused[key] = now_s
        return True

    def find_hint(self, key: int) -> int | None:
        """Return the smallest cursor that a client of `key` can have; None without a hint.

        The caller must check the cursor against the log. Switches greenlets if there are other
        nodes: a hint of theirs arrives within a few ticks of their news.
        """
        self._hints.refresh()
        hints = self._hints.hints
        found = hints.get(key) if hints.is_complete else None
        if not self._has_other_nodes():
            return found
        for _ in range(_NEWS_TICKS):
            if found is not None or not hints.is_complete:
                break
            gevent.sleep(NEWS_TICK_S)
            self._hints.refresh()
            found = hints.get(key) if hints.is_complete else None
        if found is None:
            return None
        # A client of the same key may have pulled from another node just now, and its hint may
        # still be on its way: begin below all pulls of the last moment.
        marks = self._marks.read()
        if not marks:  # no supervisor has written a mark, so there is none that joins nodes
            return found
        return min(found, window_cursor(marks, self._clock.monotonic_s() - _LATE_S).seq)

    def find_window(self, key: int) -> int:
        """Return a cursor below all events of the last window.

        Raises:
            ResyncRequired: the client must pull again.
            QueryTimeout, StoreUnavailable: the store cannot be read now.
        """
        hints = self._hints.hints
        hinted = hints.get(key)
        marks = self._marks.read()  # before the span, which is then not behind them
        span = self._history.span()
        if marks:
            before_s = self._clock.monotonic_s() - limits.HINT_WINDOW_S
            cursor = window_cursor(marks, before_s).seq
        else:  # no supervisor has written a mark
            cursor = span.oldest - 1
        if hinted is not None:
            cursor = min(cursor, hinted)
        for low, high in span.void_ranges:
            if cursor < high:
                if self._is_new_epoch(marks, high):
                    raise span.resync(cursor, is_lost=True)
                if low < cursor:
                    cursor = low
        if cursor > span.head:
            raise span.resync(cursor)
        if cursor + 1 < span.oldest:
            if not hints.is_complete and (hinted is None or hinted + 1 < span.oldest):
                raise span.resync(cursor)
            cursor = span.oldest - 1
        metrics.RECOVERIES.labels("window").inc()
        return cursor

    def _is_new_epoch(self, marks: Sequence[Mark], first_seq: int) -> bool:
        """Return whether the epoch that begins at `first_seq` was opened a moment ago."""
        opened_s = next((mark.at_s for mark in marks if mark.seq >= first_seq), None)
        return (
            opened_s is not None
            and self._clock.monotonic_s() - opened_s < limits.EPOCH_RESYNC_S
        )
