"""Holdings: count the live queries of each identity and network address, and limit their share.

A worker has fixed bounds for live queries, for their memory, and for each entity's live queries
without an indexed equality. An identity may use a part of each over all its sockets, so that no
single client takes everything. An address may use a larger part, enough for many people behind one
router (`limits.LIVE_*_OF_USER`, `limits.LIVE_*_OF_ADDRESS`).

Invariants: a live query counts for its first identity and address until it ends. Equal live
queries of one holder without an indexed equality count once, because they share the work. Live
queries of the admin token do not count. A holder without live queries takes no memory. Called by
`workers.ws.live_queries`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from pylon import limits
from pylon.errors import LimitExceeded
from pylon.rates import address_subject, user_subject
from workers.hub.connection import Connection
from workers.ws.live_subscriptions import Subscription, WatchKey

_IDENTITY: Final = "user:"


class _Holding:
    """The live queries of one holder."""

    __slots__ = ("count", "scanned", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self.scanned: dict[str, Counter[WatchKey]] = {}  # by entity


class Holdings:
    """The holdings of all holders of a worker."""

    __slots__ = ("_by_holder",)

    def __init__(self) -> None:
        self._by_holder: dict[str, _Holding] = {}

    def __len__(self) -> int:
        """Return the number of holders."""
        return len(self._by_holder)

    def holders_of(self, connection: Connection) -> tuple[str, ...]:
        """Return the holders of new live queries of a connection."""
        auth = connection.caller.auth
        if auth.is_admin:
            return ()
        address = (address_subject(connection.address),) if connection.address else ()
        return address if auth.user_id is None else (user_subject(auth.user_id), *address)

    def check(self, subscription: Subscription) -> None:
        """Check that each holder may have one more live query.

        Raises:
            LimitExceeded: the message names the limit.
        """
        watch = subscription.watch
        for holder in subscription.holders:
            holding = self._by_holder.get(holder) or _Holding()
            is_user = holder.startswith(_IDENTITY)
            subject = "You have" if is_user else "Your address has"
            if holding.count >= _limit(limits.LIVE_QUERIES_OF_USER, limits.LIVE_QUERIES_OF_ADDRESS,
                                       is_user=is_user):
                raise LimitExceeded(
                    f"{subject} {holding.count} live queries over all connections, "
                    "which is the limit",
                    hint="unsubscribe those that are not shown",
                )
            self._check_bytes(holder, subscription.size_bytes)
            scanned = holding.scanned.get(watch.key[0]) or Counter[WatchKey]()
            if (
                watch.field is None and watch.key not in scanned
                and len(scanned) >= _limit(limits.LIVE_SCANNED_OF_USER,
                                          limits.LIVE_SCANNED_OF_ADDRESS, is_user=is_user)
            ):
                raise LimitExceeded(
                    f"{subject} {len(scanned)} live queries of {watch.key[0]} over all connections "
                    "that no equality finds, which is the limit",
                    hint="add a condition like {\"listId\": \"…\"} to the filter",
                )

    def check_growth(self, subscription: Subscription, size_bytes: int) -> None:
        """Check that a live query may take more memory.

        Raises:
            LimitExceeded: the message names the limit.
        """
        for holder in subscription.holders:
            self._check_bytes(holder, size_bytes)

    def _check_bytes(self, holder: str, size_bytes: int) -> None:
        holding = self._by_holder.get(holder) or _Holding()
        is_user = holder.startswith(_IDENTITY)
        subject = "You have" if is_user else "Your address has"
        max_bytes = _limit(
            limits.LIVE_BYTES_OF_USER, limits.LIVE_BYTES_OF_ADDRESS, is_user=is_user
        )
        if holding.size_bytes + size_bytes > max_bytes:
            raise LimitExceeded(
                f"{subject} live queries whose filters would be too large together "
                f"({holding.size_bytes + size_bytes} of {max_bytes} bytes of memory)"
            )

    def grow(self, subscription: Subscription, size_bytes: int) -> None:
        """Count more memory of a live query."""
        for holder in subscription.holders:
            self._by_holder[holder].size_bytes += size_bytes

    def add(self, subscription: Subscription) -> None:
        """Count one live query."""
        watch = subscription.watch
        for holder in subscription.holders:
            holding = self._by_holder.setdefault(holder, _Holding())
            holding.count += 1
            holding.size_bytes += subscription.size_bytes
            if watch.field is None:
                holding.scanned.setdefault(watch.key[0], Counter())[watch.key] += 1

    def remove(self, subscription: Subscription) -> None:
        """Stop counting one live query."""
        watch = subscription.watch
        for holder in subscription.holders:
            holding = self._by_holder[holder]
            holding.count -= 1
            holding.size_bytes -= subscription.size_bytes
            if not holding.count:
                del self._by_holder[holder]
            elif watch.field is None:
                scanned = holding.scanned[watch.key[0]]
                scanned[watch.key] -= 1
                if not scanned[watch.key]:
                    del scanned[watch.key]


def _limit(of_user: int, of_address: int, *, is_user: bool) -> int:
    return of_user if is_user else of_address
