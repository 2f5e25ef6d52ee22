"""Rollout: the steps in which worker processes take the place of others, as pure code.

A reload replaces all workers, a scaling those of one role. The new processes start beside the old
ones. When all of them are ready, the old ones drain: they accept nothing more, finish, and end. A
role whose processes cannot run beside each other (`Role.is_exclusive`) changes with the drain: each
of its processes ends, and its successor starts at once.

    STARTING -> DRAINING -> DONE
        |           a new process dies: it is started again, as always
        +-> FAILED  a new process failed before all were ready; the old ones serve on

`supervisor.children` tells `advance` what it sees, and does what `advance` returns. Invariants: an
old process drains only when all new ones have been ready at the same time. A rollout ends: each
phase has a deadline. A rollout that has ended does nothing more.
"""

from __future__ import annotations

from enum import Enum

import msgspec
from msgspec.structs import replace


class Phase(Enum):
    """The place of a rollout among its steps."""

    STARTING = "starting"
    DRAINING = "draining"
    DONE = "done"
    FAILED = "failed"


class Action(Enum):
    """The next act of the caller of `advance`."""

    DRAIN_OLD = "drain the old processes"
    KILL_OLD = "kill the old processes that have not ended"
    KILL_NEW = "kill the new processes"


class Sight(msgspec.Struct, frozen=True):
    """The processes of a rollout as they are now."""

    now_s: float
    new_ready: bool  # all new processes that run beside old ones are ready
    failure: str | None = None  # why a new process cannot be started, if that is known
    old_alive: int = 0  # old processes that have not ended, exclusive ones included
    successors_ready: bool = True  # all successors of exclusive processes are ready


class Rollout(msgspec.Struct, frozen=True):
    """One rollout. `boot_s`, `drain_s`: the longest that new processes may take to become ready,
    and old ones to end."""

    started_s: float
    boot_s: float
    drain_s: float
    phase: Phase = Phase.STARTING
    draining_since_s: float = 0.0
    killed: bool = False  # the old processes did not end in time
    failure: str | None = None

    @property
    def has_ended(self) -> bool:
        """Return whether nothing more happens."""
        return self.phase in (Phase.DONE, Phase.FAILED)

    def advance(self, sight: Sight) -> tuple[Rollout, Action | None]:
        """Return the next state, and what the caller must do."""
        if self.phase is Phase.STARTING:
            return self._advance_starting(sight)
        if self.phase is Phase.DRAINING:
            return self._advance_draining(sight)
        return self, None

    def _advance_starting(self, sight: Sight) -> tuple[Rollout, Action | None]:
        if sight.failure is not None:
            return replace(self, phase=Phase.FAILED, failure=sight.failure), Action.KILL_NEW
        if sight.new_ready:
            draining = replace(self, phase=Phase.DRAINING, draining_since_s=sight.now_s)
            return draining, Action.DRAIN_OLD
        if sight.now_s - self.started_s >= self.boot_s:
            why = f"the new workers were not ready within {self.boot_s:g} s"
            return replace(self, phase=Phase.FAILED, failure=why), Action.KILL_NEW
        return self, None

    def _advance_draining(self, sight: Sight) -> tuple[Rollout, Action | None]:
        elapsed_s = sight.now_s - self.draining_since_s
        if sight.old_alive:
            if elapsed_s >= self.drain_s and not self.killed:
                return replace(self, killed=True), Action.KILL_OLD
            return self, None
        # A successor that does not start is a role that fails, which readiness reports.
        if sight.successors_ready or elapsed_s >= self.drain_s + self.boot_s:
            return replace(self, phase=Phase.DONE), None
        return self, None
