"""Quota of shards: how many shards each client may make in one process.

A shard that a subscriber makes counts for that identity and that address until the registry forgets
it, so one client cannot use up the shards of a process.

Bounds: limits.SHARDS_OF_USER, SHARDS_OF_ADDRESS; the rates SHARDS_BY_USER and SHARDS_BY_ADDRESS
(`pylon.rates`). Invariant: a subject without shards takes no memory. Used by
`workers.shards.registry`.
"""

from __future__ import annotations

from collections import Counter

from pylon import limits
from pylon.errors import SubscribeFailed
from pylon.limiter import RateLimiter
from pylon.rates import SHARDS_BY_ADDRESS, SHARDS_BY_USER, is_user_subject


class ShardQuota:
    """The shards of one process by the subjects that they count for."""

    __slots__ = ("_count_by_subject", "_limiter", "_subjects_by_shard")

    def __init__(self, limiter: RateLimiter) -> None:
        """`limiter`: the rate at which clients may make shards."""
        self._limiter = limiter
        self._subjects_by_shard: dict[str, tuple[str, ...]] = {}
        self._count_by_subject: Counter[str] = Counter()

    def is_reached(self, subjects: tuple[str, ...]) -> bool:
        """Return whether a subject has as many shards as it may have."""
        return any(self._count_by_subject[each] >= _limit_of(each) for each in subjects)

    def check(self, subjects: tuple[str, ...]) -> None:
        """Raise if one more shard may not count for each of the subjects.

        Raises:
            SubscribeFailed: a subject has too many shards.
            RateLimited: a subject makes shards too fast.
        """
        for subject in subjects:
            if self._count_by_subject[subject] >= _limit_of(subject):
                raise SubscribeFailed(
                    f"{_limit_of(subject)} shards that you have made are here, which is the limit",
                    hint="They end when nobody is in them; join one that is there, or wait",
                )
        for subject in subjects:
            is_user = is_user_subject(subject)
            self._limiter.require(SHARDS_BY_USER if is_user else SHARDS_BY_ADDRESS, subject)

    def add(self, shard_id: str, subjects: tuple[str, ...]) -> None:
        """Count a shard for the subjects that made it."""
        if subjects:
            self._subjects_by_shard[shard_id] = subjects
            self._count_by_subject.update(subjects)

    def remove(self, shard_id: str) -> None:
        """Stop counting a shard. Does nothing for a shard that counts for nobody."""
        for subject in self._subjects_by_shard.pop(shard_id, ()):
            self._count_by_subject[subject] -= 1
            if not self._count_by_subject[subject]:
                del self._count_by_subject[subject]


def _limit_of(subject: str) -> int:
    return limits.SHARDS_OF_USER if is_user_subject(subject) else limits.SHARDS_OF_ADDRESS
