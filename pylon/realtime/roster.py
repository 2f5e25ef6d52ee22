"""Who sits in a shard: subscribers by sid, and seats that are kept for somebody.

A sid sits as long as one of its connections lives; then its seat is kept for `keep_s`, if the
kind says so. A match reserves seats for players who have not come yet. All three count against
`most`.

Invariant: a sid is here, away, or expected, and never two of these. Called by
`pylon.realtime.shard`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pylon.errors import SubscribeFailed


class Roster:
    """The seats of one shard."""

    __slots__ = ("_away", "_expected", "_here", "_keep_s", "_most")

    def __init__(self, most: int, keep_s: float) -> None:
        """Args: `most` seats, 0 for any number; `keep_s` is how long one is kept."""
        self._most = most
        self._keep_s = keep_s
        self._here: dict[str, int] = {}  # how many connections each has
        self._away: dict[str, float] = {}  # until when they may come back
        self._expected: dict[str, float] = {}  # for whom one is kept who was never here

    def __len__(self) -> int:
        """All that are taken."""
        return len(self._here) + len(self._away) + len(self._expected)

    @property
    def here(self) -> Collection[str]:
        """The sids that have a connection."""
        return self._here.keys()

    def has(self, sid: str) -> bool:
        """Whether `sid` is here, or a seat is kept for it."""
        return sid in self._here or sid in self._away or sid in self._expected

    def check_room(self, wanted: int) -> None:
        """Pass if so many more may come.

        Raises:
            SubscribeFailed.
        """
        if self._most and len(self) + wanted > self._most:
            raise SubscribeFailed(
                "shard is at max subscribers", hint=f"There are {self._most}; come again later"
            )

    def connect(self, sid: str) -> bool:
        """A connection of `sid` has come; whether `sid` is new to the simulation."""
        is_new = sid not in self._here and sid not in self._away
        self._away.pop(sid, None)
        self._expected.pop(sid, None)
        self._here[sid] = self._here.get(sid, 0) + 1
        return is_new

    def disconnect(self, sid: str, now_s: float) -> bool:
        """A connection of `sid` is gone; whether `sid` has left for good."""
        left = self._here[sid] - 1
        if left:
            self._here[sid] = left
            return False
        del self._here[sid]
        if self._keep_s:
            self._away[sid] = now_s + self._keep_s
        return not self._keep_s

    def reserve(self, sids: Sequence[str], until_s: float) -> None:
        """Keep a seat for each of them that has none.

        Raises:
            SubscribeFailed: there is no room for all of them.
        """
        wanted = [sid for sid in dict.fromkeys(sids) if not self.has(sid)]
        self.check_room(len(wanted))
        self._expected.update(dict.fromkeys(wanted, until_s))

    def expire(self, now_s: float) -> list[str]:
        """End the seats whose time is over; those whose sid has left for good by that."""
        for sid in [sid for sid, until_s in self._expected.items() if until_s <= now_s]:
            del self._expected[sid]
        gone = [sid for sid, until_s in self._away.items() if until_s <= now_s]
        for sid in gone:
            del self._away[sid]
        return gone

    def ends_s(self) -> float | None:
        """When the next kept seat ends."""
        return min((*self._away.values(), *self._expected.values()), default=None)

    def clear(self) -> None:
        """Nobody is here, and nobody is expected."""
        self._here.clear()
        self._away.clear()
        self._expected.clear()
