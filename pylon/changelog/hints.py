"""Cursor notes: up to where a client has pulled, so that its next socket begins there.

The official clients pull and then connect; what is committed in between would be lost
(spec/realtime.md §1.7). So each HTTP worker notes the cursor that it serves to a session (or an
address) in `pylon.changelog.hint_journal`. The hubs read the journal into `CursorHints`.

Several clients may share a key (two tabs, one address), so the *smallest* cursor noted for a key
counts: a client that gets an event twice drops it, a client that misses one never knows. Notes
go into the bucket of their age, all buckets are read, and the oldest is dropped when it has been
closed for `limits.HINT_TTL_S`; so a note lives that long, and at most a `_STEPS`th longer.

A client that flaps is therefore sent again what came since its oldest pull of about a minute. A
connection does not use up a note, because the hub cannot know which client pulled: "one tab pulls,
the same tab connects" looks like "one tab pulls, another socket of that session connects". The
second tab would then begin behind what it misses. Only time decides, so only the window was made
narrow.

Invariants: at most `limits.NOTES` keys in a bucket, and twice as many notes in all. At either
bound the oldest notes go first (`pylon_cursor_hints_dropped_total`). Code that drops notes, or
cannot read some, calls `lose`: until a window later `is_whole` is False, and the hub trusts no
note to be the smallest of its key. Used by `workers.hub.start_cursors` and `pylon.api.sync.hints`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Final

from pylon import limits, metrics
from pylon.clock import Clock

_STEPS: Final = 4  # buckets to a window
_STEP_SHARE: Final = 1 / _STEPS


class CursorHints:
    """The notes of one process, by key (`note_key`)."""

    __slots__ = ("_buckets", "_clock", "_max_keys", "_rotate_at_s", "_step_s", "_whole_at_s",
                 "window_s")

    def __init__(
        self, clock: Clock, window_s: float = limits.HINT_TTL_S, max_keys: int = limits.NOTES
    ) -> None:
        self._clock = clock
        self.window_s = window_s
        self._step_s = window_s / _STEPS
        self._max_keys = max_keys
        self._buckets: deque[dict[int, int]] = deque([{}], maxlen=_STEPS + 1)  # the newest first
        self._rotate_at_s = clock.monotonic_s() + self._step_s
        self._whole_at_s = float("-inf")

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def put(self, key: int, cursor: int, age_s: float = 0.0) -> bool:
        """Remember that a client of `key` pulled up to `cursor`, `age_s` ago.

        Returns:
            Whether that told anything new: the newest bucket had no note as small.
        """
        self._rotate_if_due()
        known = self._buckets[0].get(key)
        if known is not None and known <= cursor:
            return False
        bucket = self._buckets[0]
        if age_s >= self._step_s:
            if age_s >= self.window_s:
                return False
            back = int(age_s / self._step_s)
            while len(self._buckets) <= back:
                self._buckets.append({})
            bucket = self._buckets[back]
        if key not in bucket:
            bucket = self._make_room(bucket)
        if cursor < bucket.get(key, cursor + 1):
            bucket[key] = cursor
        return True

    def get(self, key: int) -> int | None:
        """The smallest cursor noted for `key` in this window."""
        self._rotate_if_due()
        return min((bucket[key] for bucket in self._buckets if key in bucket), default=None)

    def lose(self, before_s: float) -> None:
        """Notes put before `before_s` (monotonic) may be missing."""
        self._whole_at_s = max(self._whole_at_s, before_s + (1 + _STEP_SHARE) * self.window_s)

    @property
    def is_whole(self) -> bool:
        """Whether every note of this window is here."""
        return self._clock.monotonic_s() >= self._whole_at_s

    def _make_room(self, bucket: dict[int, int]) -> dict[int, int]:
        """The bucket that takes one more note."""
        if len(bucket) >= self._max_keys:
            if len(self._buckets) > _STEPS:
                self._count_dropped(self._buckets[-1])
            self._rotate(self._clock.monotonic_s())
            bucket = self._buckets[0]
        while len(self) >= 2 * self._max_keys:
            self._count_dropped(self._buckets.pop())
        return bucket

    def _count_dropped(self, bucket: dict[int, int]) -> None:
        if bucket:
            metrics.HINTS_DROPPED.inc(len(bucket))
            self.lose(self._clock.monotonic_s())

    def _rotate_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        while now_s >= self._rotate_at_s and len(self):
            self._rotate(self._rotate_at_s)
        if now_s >= self._rotate_at_s:  # all are forgotten
            self._rotate(now_s)

    def _rotate(self, begin_s: float) -> None:
        self._buckets.appendleft({})
        self._rotate_at_s = begin_s + self._step_s


def note_key(session_id: str | None, address: str) -> int:
    """The key of a client: a 64-bit digest of its session, or without one of its address.

    Two clients with equal digests share their notes, which is safe: the smallest counts.
    """
    name = f"s:{session_id}" if session_id is not None else f"ip:{address}"
    # Never 0, which marks other records of the journal.
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") or 1
