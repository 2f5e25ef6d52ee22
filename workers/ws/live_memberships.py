"""Memberships of live queries: the callers with live queries whose read rules ask other rows.

Such a caller has sets of keys (`workers.hub.memberships`), which this module holds while the caller
has such a subscription. Without local reads it reads them before the subscription begins, so that
no verdict on a change waits for the store; a verdict without a set reads inline.

Invariant: the sets of a caller are held once for each of the caller's subscriptions. Log event:
live_queries.sets_unread. Called by `live_queries`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from pylon import limits, log
from pylon.app import App
from pylon.auth_context import AuthContext
from pylon.errors import PylonError
from pylon.rates import subject_of
from pylon.storage.interface import Reader, Store
from workers.hub.feed import Feed
from workers.hub.memberships import KeySets, Memberships
from workers.ws.live_subscriptions import Subscription

_SET_READS: Final = 3  # tries to read sets while related rows change
_log = log.get_logger("live_queries")


class LiveMemberships:
    """See the module."""

    __slots__ = ("_app", "_feed", "_memberships", "_store", "_subscriptions")

    def __init__(self, app: App, store: Store, feed: Feed, memberships: Memberships) -> None:
        self._app = app
        self._store = store
        self._feed = feed
        self._memberships = memberships
        self._subscriptions: dict[AuthContext, set[Subscription]] = {}

    def subscriptions_of(self, auth: AuthContext) -> Collection[Subscription]:
        """Return the caller's subscriptions whose read rules ask other rows."""
        return self._subscriptions.get(auth, ())

    def hold(self, subscription: Subscription, auth: AuthContext, sets: KeySets | None) -> None:
        """Hold the sets of a caller for a subscription.

        Args:
            sets: those that were read for this subscription.
        """
        self._memberships.hold(auth, sets)
        self._subscriptions.setdefault(auth, set()).add(subscription)

    def release(self, subscription: Subscription) -> None:
        """Hold the sets no longer for a subscription, if they are."""
        auth = subscription.watch.auth
        if auth is None or subscription not in self._subscriptions.get(auth, ()):
            return
        self._subscriptions[auth].discard(subscription)
        if not self._subscriptions[auth]:
            del self._subscriptions[auth]
        self._memberships.release(auth)

    def is_asking(self, entity: object) -> bool:
        """Whether the read rule of an entity asks other rows."""
        rules = self._app.rules.find(entity) if isinstance(entity, str) else None
        return rules is not None and bool(rules.related.checks)

    def read_sets(self, auth: AuthContext, address: str) -> KeySets | None:
        """Read the sets of a caller, if it needs them and has none. May switch greenlets.

        Returns:
            None, too, if related rows changed during each of `_SET_READS` reads.
        """
        memberships = self._memberships
        if (
            self._store.local_reads or auth.is_admin or memberships.has_sets(auth)
        ):
            return None

        def read(reader: Reader) -> tuple[int, KeySets | None]:
            return reader.at_one_commit(lambda: (
                reader.head_seq(), memberships.read(reader, auth, limits.MEMBERSHIP_KEYS)
            ))

        for _ in range(_SET_READS):
            seq, sets = self._store.scan(read, caller=subject_of(auth, address))
            missed = self._feed.tail.changes_after(seq)
            if missed is not None and not memberships.is_concerned(auth, missed):
                return sets
        return None

    def renew_sets(self, auth: AuthContext, address: str) -> None:
        """Read the sets of a caller whose memberships have changed."""
        try:
            sets = self.read_sets(auth, address)
        except PylonError as error:  # verdicts read inline, or end with the same error
            _log.warning("live_queries.sets_unread", code=error.code, message=error.message)
            return
        if sets is not None:
            self._memberships.renew(auth, sets)
