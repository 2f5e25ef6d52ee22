"""Slots: one for each child that shall run; a slot outlives its processes.

A slot has the settings of its child, the child's process, and the history of the processes before.
Names are numbers; a slot of an arbiter stands for all its workers, and is named after the first.

Invariant: no two slots of a role share a name, since files and metrics of workers bear it. Owned by
`supervisor.children`; the main thread alone changes them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pylon.roles import ROLE_BY_NAME


class Slot(msgspec.Struct):
    """The state of one child and its successors."""

    role: str
    worker: str  # of an arbiter: that of its first worker
    is_arbiter: bool  # the child keeps the workers of its role itself
    environ: bytes
    workers: int = 1  # that the child stands for
    is_new: bool = False  # of a rollout whose old children do not drain yet
    is_retiring: bool = False  # it drains, and its slot ends with it
    is_changing: bool = False  # it drains, and a successor with other settings starts then
    pid: int | None = None  # of the child that lives
    started_s: float = 0.0
    start_at_s: float = 0.0  # when to start the next one
    failures: int = 0  # processes in a row that ended early
    unready: int = 0  # processes in a row that never became ready
    was_ready: bool = False  # the present process was ready once
    heard_s: float = 0.0  # the last heartbeat of the present process
    aborted_at_s: float | None = None  # when it got SIGABRT because it was silent
    is_refused: bool = False  # the last process ended because it cannot start at all

    @property
    def is_draining(self) -> bool:
        """Return whether the child ends, and its silence is expected."""
        return self.is_retiring or self.is_changing

    @property
    def names(self) -> list[str]:
        """Return the names of the workers."""
        return [str(int(self.worker) + index) for index in range(self.workers)]


def make_slots(slots: Iterable[Slot], role: str, count: int, environ: bytes) -> list[Slot]:
    """Return slots for `count` workers, with the first names that none of `slots` has."""
    used = {int(n) for slot in slots if slot.role == role for n in slot.names}
    first = 1
    while not used.isdisjoint(range(first, first + count)):
        first += 1
    if ROLE_BY_NAME[role].is_arbiter:
        return [Slot(role, str(first), True, environ, count)]
    return [Slot(role, str(first + index), False, environ) for index in range(count)]
