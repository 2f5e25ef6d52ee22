"""The app of tests/test_e2e_shards.py: simulations that count, fail, hang and are kept."""

from __future__ import annotations

from typing import Any

import msgspec

from pylon import InputRejected, SimState, matchmaking, shard


class Add(msgspec.Struct):
    by: int


@shard("counter", tick_rate_hz=50, max_subscribers=3, allow_reconnection_s=30)
class Counter(SimState):
    """Adds up what it is told; kept over restarts."""

    Input = Add

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.sum = 0
        self.here: list[str] = []

    def joined(self, sid: str, auth: Any) -> None:
        self.here.append(sid)

    def left(self, sid: str) -> None:
        self.here.remove(sid)

    def apply_input(self, sid: str, input: Add, received_at_s: float) -> None:  # noqa: A002
        if input.by == 13:
            raise InputRejected("13 brings bad luck")
        if input.by == 99:
            raise ZeroDivisionError("told to")
        if input.by == 88:
            raise SystemExit
        while input.by == 77:
            pass
        self.sum += input.by

    def tick(self, dt_s: float) -> None: ...

    def snapshot(self) -> Any:
        return {"sum": self.sum, "here": self.here, **self.context.params}

    def save(self) -> Any:
        return {"sum": self.sum}

    def restore(self, saved: Any) -> None:
        self.sum = saved["sum"]


@shard("steady", tick_rate_hz=50, tick_when_empty=True, save_every_ticks=10, tick_budget_s=0.2)
class Steady(Counter):
    """Goes on without anybody."""

    def tick(self, dt_s: float) -> None:
        self.sum += 1


@shard("hasty", tick_rate_hz=50, tick_budget_s=0.1)
class Hasty(Counter):
    """Has little time."""


@shard("recorded", tick_rate_hz=50, record_bytes=1_000_000)
class Recorded(Counter):
    """Writes down what it gets."""


@shard("made", tick_rate_hz=50, on_demand=False)
class Made(Counter):
    """Is made by the server only."""


matchmaking("duel", shard="counter", group_size=2)
