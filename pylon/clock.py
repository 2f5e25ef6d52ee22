"""Clocks and random sources that tests can replace.

Ids, timers, backoff, retention and ticks take a `Clock` and a `RandomSource`, so that tests need no
sleeping and a seed reproduces a run. `wall_ns` may jump (NTP, an operator). `monotonic_s` never
does, and measures durations.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final, Protocol

NS_PER_S: Final = 1_000_000_000


class Clock(Protocol):
    """A source of time."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the Unix epoch. May jump."""

    def monotonic_s(self) -> float:
        """Return seconds of a clock that never goes back."""


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    # PERF: these functions themselves cost 0.05 us; a method around each one cost 0.13.
    wall_ns = staticmethod(time.time_ns)
    monotonic_s = staticmethod(time.monotonic)


class CpuTimeClock:
    """The CPU time of the calling thread, plus a twentieth of the wall-clock time.

    It limits the cost of work for others. A thread without a core uses up little of its limit; a
    thread that waits for a disk uses it up in the end. Used from one thread.

    PERF: reading a thread's CPU time costs 0.4 us, so the clock reads it once in `_GRAIN_S`.
    """

    _GRAIN_S = 0.0001

    __slots__ = ("_last_s", "_read_s", "_wall_share")

    def __init__(self, wall_share: float = 0.05) -> None:
        self._wall_share = wall_share
        self._read_s = self._last_s = 0.0

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        now_s = time.monotonic()
        if now_s - self._read_s > self._GRAIN_S:
            self._read_s = now_s
            self._last_s = time.thread_time() + self._wall_share * now_s
        return self._last_s


class ManualClock:
    """A clock that moves only by `advance` and `jump`. For tests."""

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
        """Move the wall clock only, as NTP or an operator does."""
        self._wall_ns += int(seconds * 1e9)


class RandomSource(Protocol):
    """A source of random tokens, ids and jitter."""

    def token_hex(self, size_bytes: int) -> str:
        """Return `size_bytes` random bytes as lower-case hex."""

    def uniform(self, low: float, high: float) -> float:
        """Return a float from `low` to `high`."""

    def below(self, bound: int) -> int:
        """Return an integer from 0 to `bound` - 1."""


class SystemRandom:
    """The operating system's generator, which is secure enough for tokens."""

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
