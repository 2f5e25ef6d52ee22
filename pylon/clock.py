"""Time and chance, injectable: the only places where Pylon asks what time it is or rolls dice.

Ids, timers, back-off, retention and ticks take a `Clock` and a `RandomSource`, so that tests
need no sleeping and a seed reproduces a run. `wall_*` may jump (NTP, an operator);
`monotonic_s` never does and is what durations are measured with.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final, Protocol

NS_PER_S: Final = 1_000_000_000


class Clock(Protocol):
    """What time it is."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch. May jump."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that never goes back."""


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()


class CpuTimeClock:
    """The time that the calling thread has worked, plus a twentieth of the time that passes.

    For limits on what a piece of work costs others: a thread that is not given a core does
    not use its time up, one that waits for a disk does, in the end. Within `_GRAIN_S` it says
    the same again: to ask what a thread has worked costs 0.4 us. For one thread.
    """

    _GRAIN_S = 0.0001

    __slots__ = ("_asked_s", "_last_s", "_wall_share")

    def __init__(self, wall_share: float = 0.05) -> None:
        self._wall_share = wall_share
        self._asked_s = self._last_s = 0.0

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        now_s = time.monotonic()
        if now_s - self._asked_s > self._GRAIN_S:
            self._asked_s = now_s
            self._last_s = time.thread_time() + self._wall_share * now_s
        return self._last_s


class ManualClock:
    """A clock that stands still until it is told otherwise."""

    __slots__ = ("_monotonic_s", "_wall_ns")

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self._wall_ns = int(wall_s * 1e9)
        self._monotonic_s = 0.0

    def wall_ns(self) -> int:
        return self._wall_ns

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self._wall_ns += int(seconds * 1e9)
        self._monotonic_s += seconds

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as NTP or an operator would."""
        self._wall_ns += int(seconds * 1e9)


class RandomSource(Protocol):
    """Where tokens, ids and jitter come from."""

    def token_hex(self, size_bytes: int) -> str:
        """`size_bytes` random bytes as lower-case hex."""

    def uniform(self, low: float, high: float) -> float:
        """A float from `low` to `high`."""

    def below(self, bound: int) -> int:
        """An integer from 0 up to, not including, `bound`."""


class SystemRandom:
    """The operating system's generator: fit for tokens."""

    __slots__ = ("_rng",)

    def __init__(self) -> None:
        self._rng = random.SystemRandom()

    def token_hex(self, size_bytes: int) -> str:
        return os.urandom(size_bytes).hex()

    def uniform(self, low: float, high: float) -> float:
        return self._rng.uniform(low, high)

    def below(self, bound: int) -> int:
        return self._rng.randrange(bound)


class SeededRandom:
    """A reproducible generator for tests and simulations. Never for tokens."""

    __slots__ = ("_rng",)

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def token_hex(self, size_bytes: int) -> str:
        return self._rng.randbytes(size_bytes).hex()

    def uniform(self, low: float, high: float) -> float:
        return self._rng.uniform(low, high)

    def below(self, bound: int) -> int:
        return self._rng.randrange(bound)
