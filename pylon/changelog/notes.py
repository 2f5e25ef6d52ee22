"""Cursor notes: up to where a client has pulled, so that its next socket begins there.

The official clients pull and then connect; what is committed in between would be lost
(spec/realtime.md §1.7). So HTTP workers tell every hub which cursor they have just served to
which session (or address), and the hub replays from the note. Both keep notes: the hubs to
use them, the HTTP workers to say them again to a hub that has just started.

Several clients may share a key (two tabs, one address), so the *smallest* cursor noted for a key
counts: a client that gets an event twice drops it, a client that misses one never knows. Notes
go into the newest of several buckets, all are read, and the oldest is dropped when it has been
closed for `limits.NOTE_TTL_S`; so a note lives that long, and at most a `_STEPS`th longer.

A client that flaps is therefore sent again what came since its oldest pull of about a minute. A
connection does not use up a note, because nobody can know whose it was: "one tab pulls, the same
tab connects" looks like "one tab pulls, another socket of that session connects", be it one that
never pulled (it came for rooms), or one whose own note was lost or is late. The second tab would
then begin behind what it misses. What the next pull says it has (`since`) does not tell either,
for it may come from a third tab. Only time decides, so only the window was made narrow.

Invariants: at most `limits.NOTES` keys in a bucket, and twice as many notes in all. When either
is reached the oldest notes go first, and their clients get the newest events of the log instead.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pylon import limits, metrics
from pylon.clock import Clock

_STEPS: Final = 4  # buckets to a window


class CursorNotes:
    """The notes of one process."""

    __slots__ = ("_buckets", "_clock", "_max_keys", "_rotate_at_s", "_step_s")

    def __init__(
        self, clock: Clock, window_s: float = limits.NOTE_TTL_S, max_keys: int = limits.NOTES
    ) -> None:
        self._clock = clock
        self._step_s = window_s / _STEPS
        self._max_keys = max_keys
        self._buckets: deque[dict[str, int]] = deque([{}], maxlen=_STEPS + 1)  # the newest first
        self._rotate_at_s = clock.monotonic_s() + self._step_s

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def put(self, key: str, cursor: int) -> None:
        """Remember that a client of `key` has pulled up to `cursor`."""
        self._rotate_if_due()
        known = self._buckets[0].get(key)
        if known is None:
            self._make_room()
        if known is None or cursor < known:
            self._buckets[0][key] = cursor

    def get(self, key: str) -> int | None:
        """The smallest cursor noted for `key` in this window."""
        self._rotate_if_due()
        return min((bucket[key] for bucket in self._buckets if key in bucket), default=None)

    def all(self) -> dict[str, int]:
        """Every note, as `get` would give it."""
        self._rotate_if_due()
        found: dict[str, int] = {}
        for bucket in self._buckets:
            for key, cursor in bucket.items():
                found[key] = min(cursor, found.get(key, cursor))
        return found

    def _make_room(self) -> None:
        """One more note must fit."""
        if len(self._buckets[0]) >= self._max_keys:
            if len(self._buckets) > _STEPS:
                metrics.NOTES_DROPPED.inc(len(self._buckets[-1]))
            self._rotate(self._clock.monotonic_s())
        while len(self) >= 2 * self._max_keys:
            metrics.NOTES_DROPPED.inc(len(self._buckets.pop()))

    def _rotate_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        while now_s >= self._rotate_at_s and len(self):
            self._rotate(self._rotate_at_s)
        if now_s >= self._rotate_at_s:  # all are forgotten
            self._rotate(now_s)

    def _rotate(self, begin_s: float) -> None:
        self._buckets.appendleft({})
        self._rotate_at_s = begin_s + self._step_s


def note_key(session_id: str | None, address: str) -> str:
    """The key of a client: its session, or without one its address."""
    return f"s:{session_id}" if session_id is not None else f"ip:{address}"
