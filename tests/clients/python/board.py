"""A simulation for the tests of the Python client: each subscriber has a place on a line."""

from __future__ import annotations

from typing import Any

import msgspec

from pylon import InputRejected, SimState, shard


class Move(msgspec.Struct):
    """A step of one."""

    dx: int


@shard("line", tick_rate_hz=20, max_subscribers=8, allow_reconnection_s=5)
class Line(SimState):
    """The places of all subscribers, by their ids."""

    Input = Move

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.places: dict[str, int] = {}
        self.joins = 0

    def joined(self, sid: str, auth: Any) -> None:
        self.places[sid] = 0
        self.joins += 1

    def left(self, sid: str) -> None:
        del self.places[sid]

    def apply_input(self, sid: str, move: Move, received_at_s: float) -> None:
        if abs(move.dx) != 1:
            raise InputRejected("one step at a time")
        self.places[sid] += move.dx

    def tick(self, dt_s: float) -> None:
        pass

    def snapshot(self) -> Any:
        return {"places": self.places, "joins": self.joins}
