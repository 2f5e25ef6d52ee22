"""Cursor notes: up to where a client has pulled, so that its next socket begins there.

The official clients pull and then connect; what is committed in between would be lost
(spec/realtime.md §1.7). So HTTP workers tell every hub which cursor they have just served to
which session (or address), and the hub replays from the note. Both keep notes: the hubs to
use them, the HTTP workers to say them again to a hub that has just started.

Several clients may share a key (two tabs, one address), so a key keeps the *smallest* cursor of
a window: a client that gets an event twice drops it, a client that misses one never knows. Two
buckets make the window: notes go into the current one, both are read, and after
`limits.NOTE_TTL_S` the older is dropped; so a note lives for one to two windows.

Invariants: at most `limits.NOTES` keys in a bucket. When it is full the buckets rotate early:
the oldest notes go first, and their clients get the newest events of the log instead.
"""

from __future__ import annotations

from pylon import limits, metrics
from pylon.clock import Clock


class CursorNotes:
    """The notes of one process."""

    __slots__ = ("_clock", "_current", "_max_keys", "_previous", "_rotate_at_s", "_window_s")

    def __init__(
        self, clock: Clock, window_s: float = limits.NOTE_TTL_S, max_keys: int = limits.NOTES
    ) -> None:
        self._clock = clock
        self._window_s = window_s
        self._max_keys = max_keys
        self._current: dict[str, int] = {}
        self._previous: dict[str, int] = {}
        self._rotate_at_s = clock.monotonic_s() + window_s

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    def put(self, key: str, cursor: int) -> None:
        """Remember that a client of `key` has pulled up to `cursor`."""
        self._rotate_if_due()
        known = self._current.get(key)
        if known is None and len(self._current) >= self._max_keys:
            metrics.NOTES_DROPPED.inc(len(self._previous))
            self._rotate(self._clock.monotonic_s())
        if known is None or cursor < known:
            self._current[key] = cursor

    def get(self, key: str) -> int | None:
        """The smallest cursor noted for `key` in this window and the one before."""
        self._rotate_if_due()
        found = [bucket[key] for bucket in (self._current, self._previous) if key in bucket]
        return min(found, default=None)

    def all(self) -> dict[str, int]:
        """Every note, as `get` would give it."""
        self._rotate_if_due()
        found = dict(self._previous)
        for key, cursor in self._current.items():
            found[key] = min(cursor, found.get(key, cursor))
        return found

    def _rotate_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._rotate_at_s:
            return
        due_s = self._rotate_at_s
        self._rotate(due_s)
        if now_s >= due_s + self._window_s:  # nothing was asked for a whole window
            self._rotate(now_s)

    def _rotate(self, begin_s: float) -> None:
        self._previous, self._current = self._current, {}
        self._rotate_at_s = begin_s + self._window_s


def note_key(session_id: str | None, address: str) -> str:
    """The key of a client: its session, or without one its address."""
    return f"s:{session_id}" if session_id is not None else f"ip:{address}"
