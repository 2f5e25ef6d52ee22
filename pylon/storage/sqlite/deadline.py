"""Deadline: the time limit of the statements that one SQLite connection runs.

SQLite calls `is_over` between rows, as its progress handler. The deadline reads the clock there
only, so a statement that SQLite never interrupts costs one assignment. A statement's time begins
at the first call of `is_over`. Between `begin_group` and `end_group`, all statements share one
limit, which begins at the first call for any of them.

Invariant: `is_over` returns True as soon as `timeout_s` have passed since its first call for the
statement, or for the group. Called by `reader`; another thread may call `is_over` as well.
"""

from __future__ import annotations

from math import inf

from pylon.clock import Clock


class Deadline:
    """See the module; for one connection."""

    __slots__ = ("_clock", "_ends_s", "_group_ends_s", "_group_timeout_s", "_timeout_s", "in_group")

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        """
        Args:
            timeout_s: limit of each statement outside of a group.
        """
        self._clock = clock
        self._timeout_s = timeout_s
        self._group_timeout_s = timeout_s
        self._ends_s: float | None = None  # None: no call of `is_over` yet
        self._group_ends_s: float | None = None
        self.in_group = False  # read only for others

    def start_statement(self) -> None:
        """Note that a statement begins."""
        self._ends_s = self._group_ends_s

    def exempt_statement(self) -> None:
        """Note that a statement begins which must run to its end, however late it is."""
        self._ends_s = inf

    def begin_group(self, timeout_s: float) -> None:
        """Limit all statements until `end_group` to `timeout_s` together."""
        self._group_timeout_s = timeout_s
        self.in_group = True

    def end_group(self) -> None:
        """Give each statement its own limit again."""
        self.in_group = False
        self._group_ends_s = None

    def is_over(self) -> bool:
        """Return whether the running statement must end; the first call starts its time."""
        now_s = self._clock.monotonic_s()
        ends_s = self._ends_s  # one read: the other thread may start a statement meanwhile
        if ends_s is not None:
            return now_s > ends_s
        if self.in_group:
            self._ends_s = self._group_ends_s = now_s + self._group_timeout_s
        else:
            self._ends_s = now_s + self._timeout_s
        return False
