"""A simulation and its time, without subscribers: what a shard runs, and what a replay repeats.

Given the same beginning and the same calls, it goes through the same states: its chance comes
from a seed, its time from the steps alone. `Saved` is it at rest.

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
    """A simulation at rest: enough to go on from."""

    id: str
    tick: int
    time_s: float
    params: dict[str, Any]
    seed: int
    state: msgspec.Raw  # what `SimState.save` gave, as MessagePack
    random_state: tuple[int, tuple[int, ...], float | None]  # of `SimState.random`


class Simulation:
    """One state, and how far it is. Every method may raise what the app's code raises."""

    __slots__ = ("_failure", "context", "state", "tick", "time_s")

    def __init__(self, kind: Kind, context: ShardContext, saved: Saved | None = None) -> None:
        """Begin, or go on from where `saved` was."""
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
        """One tick: apply the inputs (sid, value) in order, then let `dt_s` pass.

        Returns:
            For each input why it was refused, or None. One that fails is refused as well, as
            it is its sender's to have found what the app did not think of.
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
        """The traceback of the last input that failed, once."""
        failure, self._failure = self._failure, None
        return failure

    def digest(self) -> str:
        """A hash of what everybody sees now: equal states have equal ones."""
        encoded = msgspec.json.encode(self.state.snapshot(), order="deterministic")
        return hashlib.sha256(encoded).hexdigest()

    def save(self) -> Saved | None:
        """The simulation at rest; None where its class keeps nothing."""
        saved = self.state.save()
        if saved is None:
            return None
        context = self.context
        return Saved(
            context.id, self.tick, self.time_s, dict(context.params), context.seed,
            msgspec.Raw(msgspec.msgpack.encode(saved)), self.state.random.getstate(),
        )
