"""Roster: the connected subscribers of a shard, and its reserved places.

A subscriber is connected while it has at least one connection. After that its place is reserved
for `keep_s`, if the kind allows reconnection. A match reserves places for players who have not
connected yet. Connected subscribers and both sorts of reserved places count against `capacity`.

Invariant: a sid is connected, away (it may reconnect) or expected (of a match), and never two of
these. Called by `pylon.realtime.shard`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pylon.errors import SubscribeFailed


class Roster:
    """The places of one shard."""

    __slots__ = ("_away_until_s", "_capacity", "_connections", "_held_until_s", "_keep_s")

    def __init__(self, capacity: int, keep_s: float) -> None:
        """Make an empty roster.

        Args:
            capacity: the maximum number of places; 0: any number.
            keep_s: how long a place stays reserved after the last connection has ended.
        """
        self._capacity = capacity
        self._keep_s = keep_s
        self._connections: dict[str, int] = {}  # sid: number of connections
        self._away_until_s: dict[str, float] = {}  # sid: time until which it may reconnect
        self._held_until_s: dict[str, float] = {}  # sid of a match, not connected yet

    def __len__(self) -> int:
        """Return the number of places that are taken or reserved."""
        return len(self._connections) + len(self._away_until_s) + len(self._held_until_s)

    @property
    def connected_sids(self) -> Collection[str]:
        """Return the sids that have a connection."""
        return self._connections.keys()

    def has_place(self, sid: str) -> bool:
        """Whether `sid` is connected or has a reserved place."""
        return sid in self._connections or sid in self._away_until_s or sid in self._held_until_s

    def check_capacity(self, wanted: int) -> None:
        """Check that `wanted` more places are free.

        Raises:
            SubscribeFailed: the shard is full.
        """
        if self._capacity and len(self) + wanted > self._capacity:
            raise SubscribeFailed(
                "shard is at max subscribers", hint=f"There are {self._capacity}; come again later"
            )

    def connect(self, sid: str) -> bool:
        """Add a connection of `sid`, and return whether `sid` is new to the simulation."""
        is_new = sid not in self._connections and sid not in self._away_until_s
        self._away_until_s.pop(sid, None)
        self._held_until_s.pop(sid, None)
        self._connections[sid] = self._connections.get(sid, 0) + 1
        return is_new

    def disconnect(self, sid: str, now_s: float) -> bool:
        """Remove a connection of `sid`, and return whether `sid` has left for good."""
        remaining = self._connections[sid] - 1
        if remaining:
            self._connections[sid] = remaining
            return False
        del self._connections[sid]
        if self._keep_s:
            self._away_until_s[sid] = now_s + self._keep_s
        return not self._keep_s

    def reserve(self, sids: Sequence[str], until_s: float) -> None:
        """Reserve a place until `until_s` for each sid that has none.

        Raises:
            SubscribeFailed: there are not enough free places for all of them.
        """
        wanted = [sid for sid in dict.fromkeys(sids) if not self.has_place(sid)]
        self.check_capacity(len(wanted))
        self._held_until_s.update(dict.fromkeys(wanted, until_s))

    def expire(self, now_s: float) -> list[str]:
        """End the reservations whose time is over.

        Returns:
            The sids that were subscribed and have now left for good.
        """
        for sid in [sid for sid, until_s in self._held_until_s.items() if until_s <= now_s]:
            del self._held_until_s[sid]
        expired = [sid for sid, until_s in self._away_until_s.items() if until_s <= now_s]
        for sid in expired:
            del self._away_until_s[sid]
        return expired

    def next_expiry_s(self) -> float | None:
        """Return when the next reservation ends, or None."""
        return min((*self._away_until_s.values(), *self._held_until_s.values()), default=None)

    def clear(self) -> None:
        """Remove all subscribers and reservations."""
        self._connections.clear()
        self._away_until_s.clear()
        self._held_until_s.clear()
