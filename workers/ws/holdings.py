"""Holdings: the share of a worker's live queries that each identity and network address holds.

A worker has a fixed number of live queries, a fixed memory for them, and for each entity a fixed
number of live queries that no equality finds. So that no single client takes all of them, an
identity may hold a part over all of its sockets, and an address a larger part, enough for many
people behind one router (`limits.LIVE_*_OF_USER`, `limits.LIVE_*_OF_ADDRESS`).

Invariants: a live query counts for the identity and the address that it began with, until it ends.
Equal live queries of one holder that no equality finds count once, since they share the work. Live
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
from workers.ws.live_watches import Watch, WatchKey

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
        """The number of holders."""
        return len(self._by_holder)

    def holders_of(self, connection: Connection) -> tuple[str, ...]:
        """The holders that the live queries of a connection count for now."""
        auth = connection.caller.auth
        if auth.is_admin:
            return ()
        address = (address_subject(connection.address),) if connection.address else ()
        return address if auth.user_id is None else (user_subject(auth.user_id), *address)

    def check(self, holders: tuple[str, ...], watch: Watch) -> None:
        """Pass if each holder may have one more live query.

        Raises:
            LimitExceeded: the error says which limit.
        """
        for holder in holders:
            holding = self._by_holder.get(holder) or _Holding()
            is_user = holder.startswith(_IDENTITY)
            who = "You have" if is_user else "Your address has"
            if holding.count >= _part(limits.LIVE_QUERIES_OF_USER, limits.LIVE_QUERIES_OF_ADDRESS,
                                      is_user=is_user):
                raise LimitExceeded(
                    f"{who} {holding.count} live queries over all connections, which is the limit",
                    hint="unsubscribe those that are not shown",
                )
            most_bytes = _part(limits.LIVE_BYTES_OF_USER, limits.LIVE_BYTES_OF_ADDRESS,
                               is_user=is_user)
            if holding.size_bytes + watch.size_bytes > most_bytes:
                raise LimitExceeded(
                    f"{who} live queries whose filters would be too large together "
                    f"({holding.size_bytes + watch.size_bytes} of {most_bytes} bytes of memory)"
                )
            scanned = holding.scanned.get(watch.key[0]) or Counter[WatchKey]()
            if (
                watch.field is None and watch.key not in scanned
                and len(scanned) >= _part(limits.LIVE_SCANNED_OF_USER,
                                          limits.LIVE_SCANNED_OF_ADDRESS, is_user=is_user)
            ):
                raise LimitExceeded(
                    f"{who} {len(scanned)} live queries of {watch.key[0]} over all connections "
                    "that no equality finds, which is the limit",
                    hint="add a condition like {\"listId\": \"…\"} to the filter",
                )

    def add(self, holders: tuple[str, ...], watch: Watch) -> None:
        """Count one live query."""
        for holder in holders:
            holding = self._by_holder.setdefault(holder, _Holding())
            holding.count += 1
            holding.size_bytes += watch.size_bytes
            if watch.field is None:
                holding.scanned.setdefault(watch.key[0], Counter())[watch.key] += 1

    def remove(self, holders: tuple[str, ...], watch: Watch) -> None:
        """Stop counting one live query."""
        for holder in holders:
            holding = self._by_holder[holder]
            holding.count -= 1
            holding.size_bytes -= watch.size_bytes
            if not holding.count:
                del self._by_holder[holder]
            elif watch.field is None:
                scanned = holding.scanned[watch.key[0]]
                scanned[watch.key] -= 1
                if not scanned[watch.key]:
                    del scanned[watch.key]


def _part(of_user: int, of_address: int, *, is_user: bool) -> int:
    return of_user if is_user else of_address
