"""Tick schedule: when the ticks of one shard are due, and when an idle shard ends.

The step (the simulated time of a tick) is fixed, so that a replay gives the same states. Only the
ticks of an event-driven kind, which has no tick rate, have the time since the last tick as their
step. A shard that is more than one tick late skips the missed ticks instead of catching up.

A shard without subscribers and inputs sleeps, unless its kind ticks when empty. Both end after
`idle_ticks_before_shutdown` ticks: one that sleeps after the time that so many ticks take, the
other when it has had so many ticks in a row with nothing to do.

Times are monotonic seconds that the caller passes in. Called by `pylon.realtime.shard`.
Source: spec/realtime.md §4.
"""

from __future__ import annotations

from pylon.realtime.kinds import Kind


class TickSchedule:
    """The times of one shard."""

    __slots__ = ("_asleep_s", "_idle_ticks", "_kind", "_last_tick_s", "next_s")

    def __init__(self, kind: Kind, now_s: float) -> None:
        """Make a schedule whose first tick is due at `now_s`."""
        self._kind = kind
        self._idle_ticks = 0  # in a row
        self._asleep_s = now_s
        self._last_tick_s = now_s
        self.next_s = now_s  # when the next tick is due, if the shard is awake

    def wake(self, now_s: float) -> None:
        """Let a shard that slept continue; no tick was due meanwhile."""
        self.next_s = max(self.next_s, now_s)

    def sleep(self, now_s: float) -> None:
        """Note when the last connection ended."""
        self._asleep_s = now_s

    def sleep_end_s(self) -> float | None:
        """Return when a shard that sleeps ends; None: never."""
        ticks = self._kind.config.idle_ticks_before_shutdown
        return self._asleep_s + ticks * self._kind.interval_s if ticks else None

    def start_tick(self, ticks: int, now_s: float) -> float:
        """Set when the next tick is due, and return the step of this one in seconds.

        Args:
            ticks: how many ticks the shard has had; the first tick has the step 0.
        """
        interval_s = self._kind.interval_s
        if ticks == 0:
            dt_s = 0.0
        elif self._kind.is_event_driven:
            dt_s = round(now_s - self._last_tick_s, 6)
        else:
            dt_s = interval_s
        self._last_tick_s = now_s
        behind_s = now_s - self.next_s
        if self._kind.is_event_driven or behind_s > interval_s:
            self.next_s = now_s
        self.next_s += interval_s
        return dt_s

    def end_tick(self, *, is_idle: bool) -> bool:
        """Count an idle tick, and return whether the shard has had too many of them in a row.

        Args:
            is_idle: the tick had no input, and the shard has neither subscribers nor reserved
                places.
        """
        self._idle_ticks = self._idle_ticks + 1 if is_idle else 0
        limit = self._kind.config.idle_ticks_before_shutdown
        return bool(limit) and self._idle_ticks >= limit
