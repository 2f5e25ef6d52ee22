"""The app of a fleet (`tests.nodes.shards`): a shard that ticks without anybody and saves often."""

from __future__ import annotations

import secrets
from typing import Any

from pylon import SimState, shard


@shard("trial", tick_rate_hz=20, tick_when_empty=True, save_every_ticks=10)
class Trial(SimState):
    """Its saves are numbered, and name the run of the shard that made them."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.run = secrets.token_hex(8)
        self.saves = self.ticks = 0

    def apply_input(self, sid: str, input: Any, received_at_s: float) -> None: ...  # noqa: A002

    def tick(self, dt_s: float) -> None:
        self.ticks += 1

    def snapshot(self) -> Any:
        return {"run": self.run, "ticks": self.ticks}

    def save(self) -> Any:
        self.saves += 1
        return {"run": self.run, "saves": self.saves}

    def restore(self, saved: Any) -> None:
        self.saves = saved["saves"]
