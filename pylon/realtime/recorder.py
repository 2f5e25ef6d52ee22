"""Recorder: what a shard reports of its life, so that a replay can repeat it.

A replay repeats joins, leaves and inputs in their order and between the same ticks. `ticking`
comes before the tick runs, so a recording also has the inputs of a tick that failed.

Invariants: the shard calls `stopped` once, and nothing after it. A recorder keeps write errors to
itself, for example of a full disk. `ticked` may run the app's code (for a digest), so the shard
calls it inside its guard. Implemented by `pylon.realtime.replay`; called by `pylon.realtime.shard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pylon.auth_context import AuthContext
from pylon.realtime.simulation import Simulation


class Recorder(Protocol):
    """Records the calls that a replay repeats (`pylon.realtime.replay`)."""

    def joined(self, tick: int, sid: str, auth: AuthContext) -> None:
        """Record that `sid` joined after the tick `tick`."""

    def left(self, tick: int, sid: str) -> None:
        """Record that `sid` left after the tick `tick`."""

    def ticking(self, tick: int, dt_s: float, inputs: Sequence[tuple[str, Any]]) -> None:
        """Record the inputs and the step of the tick `tick`, before it runs."""

    def ticked(self, simulation: Simulation) -> None:
        """Record the state after a tick."""

    def stopped(self, tick: int, digest: str | None) -> None:
        """End the recording. `digest` is None if the last state has no digest."""
