"""The simulations that bench/shards.py puts under load."""

from __future__ import annotations

from typing import Any

import msgspec

from pylon import SimState, shard
from pylon.realtime.area import Grid

SIGHT = 100.0
SIDE = 2_000.0


class Steer(msgspec.Struct):
    x: float
    y: float


@shard("small", tick_rate_hz=20, idle_ticks_before_shutdown=0)
class Small(SimState):
    """Players who run about: what a game of ten does in a tick."""

    Input = Steer

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.players: dict[str, list[float]] = {}

    def joined(self, sid: str, auth: Any) -> None:
        self.players[sid] = [0.0, 0.0, 0.0, 0.0]

    def left(self, sid: str) -> None:
        del self.players[sid]

    def apply_input(self, sid: str, input: Steer, received_at_s: float) -> None:  # noqa: A002
        player = self.players[sid]
        player[2], player[3] = input.x, input.y

    def tick(self, dt_s: float) -> None:
        for player in self.players.values():
            player[0] += player[2] * dt_s
            player[1] += player[3] * dt_s

    def snapshot(self) -> Any:
        return self.players


@shard("crowd", tick_rate_hz=20, max_subscribers=0)
class Crowd(Small):
    """Hundreds on one map, who all get the same 2 KB."""

    def snapshot(self) -> Any:
        return {"players": len(self.players), "map": "." * 2_000}


@shard("city", tick_rate_hz=20, max_subscribers=0)
class City(Small):
    """Hundreds on one map, each of whom sees what is near."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.grid: Grid[str] = Grid(SIGHT)

    def joined(self, sid: str, auth: Any) -> None:
        place = [self.random.uniform(0.0, SIDE), self.random.uniform(0.0, SIDE)]
        self.players[sid] = [*place, 0.0, 0.0]
        self.grid.put(sid, *place)

    def left(self, sid: str) -> None:
        super().left(sid)
        self.grid.remove(sid)

    def tick(self, dt_s: float) -> None:
        super().tick(dt_s)
        for sid, player in self.players.items():
            self.grid.put(sid, player[0], player[1])

    def snapshot_for(self, sid: str) -> Any:
        here = self.players[sid]
        return {near: self.players[near] for near in self.grid.near(here[0], here[1], SIGHT)}
