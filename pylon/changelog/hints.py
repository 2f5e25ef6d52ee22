"""Cursor hints: the cursor at which a client's last pull ended, so that its socket begins there.

The published clients pull and then connect; without hints they would lose every change that is
committed in between (spec/realtime.md §1.7). So each HTTP worker writes the cursor of every pull,
under the client's session or address, to `pylon.changelog.hint_journal`. The hubs read the journal
into `CursorHints`.

Several clients may share a key (two tabs, one address), so the *smallest* cursor of a key counts:
a client drops an event that it gets twice, but cannot notice a missing one. A hint goes into the
bucket of its age. A lookup reads all buckets. The oldest bucket is dropped when it has been closed
for `limits.HINT_TTL_S`, so a hint lives that long, and at most a `_STEPS`th longer.

A hint is not consumed on connect. Two tabs of one session share a key, so the hub cannot know
which of them connects. Consuming the hint could make the other tab miss events. Hints therefore
expire by time only, and a client that reconnects often gets about a minute of events again.

Invariants: at most `limits.HINTS` keys in a bucket, and twice as many hints in all. At either bound
the oldest hints are dropped (`pylon_cursor_hints_dropped_total`). Code that drops hints or fails to
read some calls `mark_incomplete`. Until a window later `is_complete` is False, and the hub trusts
no hint to be the smallest of its key. Called by `pylon.changelog.hint_journal`,
`workers.hub.start_cursors` and `pylon.api.sync.hints`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Final

from pylon import limits, metrics
from pylon.clock import Clock

_STEPS: Final = 4  # buckets in a window
_STEP_SHARE: Final = 1 / _STEPS


class CursorHints:
    """The hints of one process, by key (`hint_key`)."""

    __slots__ = (
        "_buckets",
        "_clock",
        "_complete_at_s",
        "_max_keys",
        "_rotate_at_s",
        "_step_s",
        "window_s",
    )

    def __init__(
        self, clock: Clock, window_s: float = limits.HINT_TTL_S, max_keys: int = limits.HINTS
    ) -> None:
        self._clock = clock
        self.window_s = window_s
        self._step_s = window_s / _STEPS
        self._max_keys = max_keys
        self._buckets: deque[dict[int, int]] = deque([{}], maxlen=_STEPS + 1)  # the newest first
        self._rotate_at_s = clock.monotonic_s() + self._step_s
        self._complete_at_s = float("-inf")

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def put(self, key: int, cursor: int, age_s: float = 0.0) -> bool:
        """Add the hint that a client of `key` pulled up to `cursor`, `age_s` ago.

        Returns:
            Whether the hint is new: the newest bucket had no cursor as small for `key`.
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
        """Return the smallest cursor of `key` in this window; None without a hint."""
        self._rotate_if_due()
        return min((bucket[key] for bucket in self._buckets if key in bucket), default=None)

    def mark_incomplete(self, before_s: float) -> None:
        """Record that hints from before `before_s` (monotonic) may be missing."""
        self._complete_at_s = max(self._complete_at_s, before_s + (1 + _STEP_SHARE) * self.window_s)

    @property
    def is_complete(self) -> bool:
        """Whether every hint of this window is present."""
        return self._clock.monotonic_s() >= self._complete_at_s

    def _make_room(self, bucket: dict[int, int]) -> dict[int, int]:
        """Return `bucket`, or a new one if it is full; drop the oldest hints at the bound."""
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
            self.mark_incomplete(self._clock.monotonic_s())

    def _rotate_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        while now_s >= self._rotate_at_s and len(self):
            self._rotate(self._rotate_at_s)
        if now_s >= self._rotate_at_s:  # no hints are left, so one rotation is enough
            self._rotate(now_s)

    def _rotate(self, begin_s: float) -> None:
        self._buckets.appendleft({})
        self._rotate_at_s = begin_s + self._step_s


def hint_key(family: str | None, address: str) -> int:
    """Return the key of a client: a 64-bit digest of its family of sessions, or of its address.

    Clients with equal digests share their hints. That is safe, because the smallest counts.
    """
    name = f"s:{family}" if family is not None else f"ip:{address}"
    # Never 0: `hint_journal.NO_KEY` marks records that are no hints.
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") or 1
