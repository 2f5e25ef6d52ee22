"""Cursor hints across nodes: a client may pull from one node and connect to another.

The nodes thread reads what the HTTP workers of its node have written into the hint journal, and
tells it to the others 20 times a second. They write it into the supervisor's slot of their own
journals, where their hubs find it like every other hint (`pylon.changelog.hint_journal`).

Invariants: a hint that may be missing is recorded as missing, so a hub then replays the whole
window: after lost news, and after a node that fell silent. What is only late is covered by
`workers.hub.start_cursors`. Bound: `_HINTS_A_TURN` hints in one message; with more, the others are
told that some are missing. Called by `supervisor.nodes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from pylon import log
from pylon.changelog.hint_journal import (
    INCOMPLETE,
    NO_KEY,
    SUPERVISOR_SLOT,
    Hint,
    HintReader,
    HintWriter,
    now_us,
)
from pylon.clock import Clock
from pylon.errors import StoreUnavailable
from pylon.storage.nodes import NEWS_TICK_S, NewsMessage
from supervisor.nodes import Nodes

TOPIC: Final = "hints"
_HINTS_A_TURN: Final = 10_000
_US_PER_MS: Final = 1_000
_MS_PER_S: Final = 1_000

_log = log.get_logger("hints")


class HintNews(msgspec.Struct, array_like=True):
    """The message: key, cursor and age in milliseconds of each hint; whether some are missing."""

    hints: list[tuple[int, int, int]]
    is_incomplete: bool = False


_decode = msgspec.json.Decoder(HintNews).decode


class _Collector:
    """Takes the place of `CursorHints`: gathers the hints of one turn, the smallest of each key."""

    def __init__(self) -> None:
        self.ages_by_hint: dict[int, tuple[int, float]] = {}
        self.is_incomplete = False

    def put(self, key: int, cursor: int, age_s: float = 0.0) -> bool:
        known = self.ages_by_hint.get(key)
        if known is None and len(self.ages_by_hint) >= _HINTS_A_TURN:
            self.is_incomplete = True
            return False
        if known is None or cursor < known[0]:
            self.ages_by_hint[key] = cursor, age_s
        return True

    def mark_incomplete(self, before_s: float) -> None:
        self.is_incomplete = True


class NodeHints:
    """See the module. Made before the workers start; used by the nodes thread alone."""

    def __init__(self, path: Path, http_workers: int, nodes: Nodes, clock: Clock) -> None:
        self._clock = clock
        self._nodes = nodes
        self._collector = _Collector()
        self._reader = HintReader(path, clock, self._collector, own_only=True)
        self._writer = HintWriter(path, clock, SUPERVISOR_SLOT, continues=True)
        nodes.handle(TOPIC, self._take)
        nodes.on_lost(lambda _: self._record_missing())
        if http_workers:
            nodes.every(NEWS_TICK_S, self._tell)

    def close(self) -> None:
        """Close the journal. Call it after the end of the nodes thread."""
        self._reader.close()
        self._writer.close()

    def _tell(self) -> None:
        """Tell the hints that are new since the last call."""
        collector = self._collector
        self._reader.refresh()
        if not collector.ages_by_hint and not collector.is_incomplete:
            return
        news = HintNews(
            [(key, cursor, int(age_s * _MS_PER_S))
             for key, (cursor, age_s) in collector.ages_by_hint.items()],
            collector.is_incomplete,
        )
        collector.ages_by_hint = {}
        collector.is_incomplete = False
        self._nodes.publish(TOPIC, msgspec.json.encode(news))

    def _take(self, message: NewsMessage) -> None:
        news = _decode(message.body)
        now = now_us(self._clock)
        if news.is_incomplete:
            self._record_missing()
        self._write([
            Hint(key, cursor, now - age_ms * _US_PER_MS) for key, cursor, age_ms in news.hints
            if key != NO_KEY
        ])

    def _record_missing(self) -> None:
        self._write([Hint(NO_KEY, INCOMPLETE, now_us(self._clock))])

    def _write(self, hints: list[Hint]) -> None:
        try:
            for hint in hints:
                self._writer.put_hint(hint)
        except StoreUnavailable as ex:
            # The hubs then find no hint, and replay the window of the last minute.
            _log.error("hints.not_written", error=ex.message)
