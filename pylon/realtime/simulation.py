"""Simulation: one state with its tick count and simulated time, without subscribers.

A shard runs it, and a replay runs it again. `Saved` is its stored form.

Invariant: the same start and the same calls give the same states. Randomness comes from the seed,
and time from the steps.

Called by `pylon.realtime.shard` and `pylon.realtime.replay`.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec

from pylon import limits
from pylon.errors import InputRejected
from pylon.realtime.kinds import Kind
from pylon.realtime.state import ShardContext


class Saved(msgspec.Struct, frozen=True):
    """The stored form of a simulation, from which another process can go on."""

    id: str
    tick: int
    time_s: float
    params: dict[str, Any]
    seed: int
    state: msgspec.Raw  # the result of `SimState.save`, as MessagePack
    random_state: tuple[int, tuple[int, ...], float | None]  # of `SimState.random`


class Simulation:
    """One state, its tick count and its simulated time.

    Every method may raise any error of the app's code.
    """

    __slots__ = ("_failure", "context", "state", "tick", "time_s")

    def __init__(self, kind: Kind, context: ShardContext, saved: Saved | None = None) -> None:
        """Make a new state, or go on from `saved`."""
        self.context = context
        self.tick = 0
        self.time_s = 0.0  # the sum of all steps
        self._failure: str | None = None
        self.state = kind.state(context)
        if saved is not None:
            self.tick, self.time_s = saved.tick, saved.time_s
            self.state.random.setstate(saved.random_state)
            self.state.restore(msgspec.msgpack.decode(saved.state))

    def advance(self, inputs: Sequence[tuple[str, Any]], dt_s: float) -> list[str | None]:
        """Run one tick: apply the inputs (sid, value) in order, then advance by `dt_s`.

        Returns:
            For each input the reason of its refusal, or None. An input whose handling raises an
            unforeseen error is refused too, so that one client cannot stop the shard of all.
        """
        self.tick += 1
        started_s = self.time_s
        self.time_s += dt_s
        refused: list[str | None] = []
        for sid, value in inputs:
            try:
                self.state.apply_input(sid, value, started_s)
            except InputRejected as ex:
                refused.append(ex.message)
            except Exception as ex:  # noqa: BLE001  the app's code
                refused.append("the input failed")
                self._failure = "".join(traceback.format_exception(ex))[-limits.TRACEBACK_CHARS :]
            else:
                refused.append(None)
        self.state.tick(dt_s)
        return refused

    def take_failure(self) -> str | None:
        """Return the traceback of the last input that failed, once."""
        failure, self._failure = self._failure, None
        return failure

    def digest(self) -> str:
        """Return a hash of the shared snapshot. Equal states have equal digests."""
        encoded = msgspec.json.encode(self.state.snapshot(), order="deterministic")
        return hashlib.sha256(encoded).hexdigest()

    def save(self) -> Saved | None:
        """Return the stored form; None if the class saves nothing."""
        saved = self.state.save()
        if saved is None:
            return None
        context = self.context
        return Saved(
            context.id, self.tick, self.time_s, dict(context.params), context.seed,
            msgspec.Raw(msgspec.msgpack.encode(saved)), self.state.random.getstate(),
        )
