"""Row ids: 40 lower-case hex characters that sort by creation (spec/http.md §2.6).

The first 32 are nanoseconds since the epoch, the last 8 a counter. Several processes make ids at
once, so each begins its counter at a random number: two ids are equal only with the same nanosecond
and the same counter. Invariant: the time part increases with every id of a process, whatever the
wall clock does. Called by `pylon.app`,
`workers.boot`, `supervisor.main` and `pylon.values`.
"""

from __future__ import annotations

import re

from pylon.clock import Clock, RandomSource

_ROW_ID = re.compile(r"[0-9a-f]{40}")
_COUNTER_MODULUS = 1 << 32


class RowIds:
    """Makes row ids. One for each process."""

    __slots__ = ("_clock", "_counter", "_last_ns")

    def __init__(self, clock: Clock, random: RandomSource) -> None:
        self._clock = clock
        self._counter = random.below(_COUNTER_MODULUS)
        self._last_ns = 0

    def new(self) -> str:
        """Return the next id."""
        now_ns = self._clock.wall_ns()
        if now_ns <= self._last_ns:
            now_ns = self._last_ns + 1
        self._last_ns = now_ns
        self._counter = (self._counter + 1) % _COUNTER_MODULUS
        return f"{now_ns:032x}{self._counter:08x}"


def is_row_id(text: object) -> bool:
    """Whether `text` has the form of a row id that a client may supply."""
    return isinstance(text, str) and _ROW_ID.fullmatch(text) is not None
