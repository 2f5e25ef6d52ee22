"""Measurement of one operation: the median rate of three runs, each of a fixed time.

Called by `pylon.bench.run`; `workers.ws.bench` uses the same number of runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from pylon.clock import Clock

REPEATS: Final = 3

Step = Callable[[], int]  # executes some operations, and returns their number


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table. Without a figure, `note` has the reason."""

    name: str
    ops_per_s: float | None
    note: str = ""

    @property
    def us_per_op(self) -> float | None:
        return None if self.ops_per_s is None else 1e6 / self.ops_per_s


def measure(name: str, step: Step, budget_s: float, clock: Clock, note: str = "") -> Measured:
    """Call `step` for `budget_s` seconds in all, after one call to warm up, and return the rate.

    `step` should take milliseconds, because the clock is read between two calls.
    """
    step()
    rates = []
    for _ in range(REPEATS):
        done = 0
        started_s = clock.monotonic_s()
        while True:
            done += step()
            took_s = clock.monotonic_s() - started_s
            if took_s >= budget_s / REPEATS:
                break
        rates.append(done / took_s)
    return Measured(name, median(rates), note)
