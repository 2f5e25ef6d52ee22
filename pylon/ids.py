"""Ids: row ids, and UUIDs for fields whose default is one.

Row ids are 40 lower-case hex characters that sort by creation (spec/http.md §2.6).

The first 32 are nanoseconds since 1970, the last 8 a counter. Several processes make ids at once,
so each begins its counter at a random number: two ids are equal only with the same nanosecond and
the same counter.

Invariant: the time part increases with every id of a process, whatever the wall clock does. Called
by `pylon.app`, `workers.boot`, `supervisor.main` and `pylon.values`.
"""

from __future__ import annotations

import re

from pylon.clock import Clock, RandomSource

_ROW_ID = re.compile(r"[0-9a-f]{40}")
_COUNTER_MODULUS = 1 << 32
_MS_NS = 1_000_000
_UUID_MS_MASK = (1 << 48) - 1


class RowIds:
    """Makes row ids. One for each process."""

    __slots__ = ("_clock", "_counter", "_last_ns", "_random")

    def __init__(self, clock: Clock, random: RandomSource) -> None:
        self._clock = clock
        self._random = random
        self._last_ns = 0
        self.begin()

    def begin(self) -> None:
        """Begin the counter at a random number. Call it after a fork, in the new process."""
        self._counter = self._random.below(_COUNTER_MODULUS)

    def new(self) -> str:
        """Return the next id."""
        now_ns = self._clock.wall_ns()
        if now_ns <= self._last_ns:
            now_ns = self._last_ns + 1
        self._last_ns = now_ns
        self._counter = (self._counter + 1) % _COUNTER_MODULUS
        # PERF: one number in one format costs half of two.
        return "%040x" % (now_ns << 32 | self._counter)


def make_uuid(clock: Clock, random: RandomSource) -> str:
    """Return a new UUID of version 7 (RFC 9562): milliseconds, then 74 random bits.

    UUIDs of one process sort by time, so a B-tree index gets new ones at its end. They are hard to
    guess, but they are not secrets.
    """
    ms = clock.wall_ns() // _MS_NS & _UUID_MS_MASK
    low, high = random.below(1 << 62), random.below(1 << 12)
    digits = f"{ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def is_row_id(text: object) -> bool:
    """Whether `text` has the form of a row id that a client may supply."""
    return isinstance(text, str) and _ROW_ID.fullmatch(text) is not None
