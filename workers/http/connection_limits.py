"""Limits of HTTP connections: how many a worker has, and which of them it closes for others.

A client may have as many connections as the worker has room for. When others need the room, the
worker closes connections that wait for their client. It closes idle ones first, then those with
an unfinished head or body, then those whose client reads slowly. Of each kind the connection that
has waited longest goes first. Only the address with the most connections loses any, so a newcomer
is let in, and a client that fills the server loses its own connections.

Invariant: a connection whose request is in the app is never closed.

Bounds: a worker is full at limits.HTTP_CONNECTIONS, or when its descriptors run out. One address
has at most limits.HTTP_ADDRESS_CONNECTIONS for each worker, counted over all workers
(`workers.net.counts`). A connection that was used in the last limits.HTTP_GRACE_S seconds stays
while others can be closed. Unfinished bodies share one memory limit, unread answers another. Above
it `choose_holder` names the connection that gives up its memory. Metric:
pylon_http_connections_aborted_total.

The address is that of the connection; an IPv6 client counts by its /64. Behind trusted proxies no
limit by address holds, since a proxy's connections are everybody's. Bytes count for the client
that the proxy names. Called by `accepting` and `loop`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from pylon import limits
from workers.net.counts import SharedCounts

if TYPE_CHECKING:
    from workers.http.connection import Connection

# Kinds of waiting for a client, in the order in which connections give way.
IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2
READER: Final = 3
NAME_BY_KIND: Final = {IDLE: "idle", HEAD: "head", BODY: "body", READER: "reader"}

_CLOSED_AT_ONCE: Final = 64  # connections closed in one search, which looks at all of the worker
_PUBLISHED_FROM: Final = 64  # connections of an address; siblings ignore smaller counts
_FRUITLESS_S: Final = 0.1  # no further search for so long after one that found none


class ConnectionLimits:
    """The connections of one worker by client network."""

    __slots__ = ("_by_network", "_counts", "_fruitless_s", "_has_proxies", "_workers")

    def __init__(self, workers: int, counts: SharedCounts | None, *, has_proxies: bool) -> None:
        """
        Args:
            workers: how many processes serve.
            counts: the connections by address in all workers; None with a single worker.
            has_proxies: whether trusted proxies hold the connections.
        """
        self._by_network: dict[str, int] = {}
        self._workers = workers
        self._counts = counts
        self._has_proxies = has_proxies
        self._fruitless_s = 0.0

    def add(self, network: str) -> None:
        """Count a connection that was opened."""
        count = self._by_network.get(network, 0) + 1
        self._by_network[network] = count
        if self._counts is not None and count >= _PUBLISHED_FROM:
            self._counts.publish(network, count)

    def remove(self, network: str) -> None:
        """Count a connection that was closed."""
        count = self._by_network[network] - 1
        if count:
            self._by_network[network] = count
        else:
            del self._by_network[network]
        if self._counts is not None and count >= _PUBLISHED_FROM - 1:
            self._counts.publish(network, count if count >= _PUBLISHED_FROM else 0)

    def has_too_many(self, network: str) -> bool:
        """Whether the network has more connections than one may have, in all workers."""
        if self._has_proxies or not network:
            return False
        limit = limits.HTTP_ADDRESS_CONNECTIONS * self._workers
        count = self._by_network[network]
        if count > limit:
            return True
        if self._counts is None or count < _PUBLISHED_FROM:
            return False
        return count + self._counts.count_in_siblings(network, limit - count) > limit

    def choose_yielding(
        self, connections: Iterable[Connection], network: str | None, now_s: float,
        grace_s: float,
    ) -> list[Connection]:
        """The connections to close now, in that order.

        Args:
            connections: all of this worker.
            network: the one to choose from; None: the network, or networks, with the most.
            grace_s: a connection that has waited for less stays.
        """
        if now_s < self._fruitless_s:
            return []
        counts = self._by_network
        if network is None:
            most = max(counts.values(), default=0)
            networks = {each for each, count in counts.items() if count == most}
            rest = max((count for count in counts.values() if count < most), default=0)
            spare = (most - rest) * len(networks)
        else:
            networks = {network}
            spare = counts[network]
        number = max(1, min(_CLOSED_AT_ONCE, spare, sum(counts.values()) // _CLOSED_AT_ONCE))
        latest_s = now_s - grace_s
        waiting = [
            (*since, connection.fd, connection)
            for connection in connections
            if connection.network in networks
            and (since := connection.waiting_since()) is not None and since[1] <= latest_s
        ]
        if not waiting:
            self._fruitless_s = now_s + _FRUITLESS_S
        return [connection for *_, connection in heapq.nsmallest(number, waiting)]


def choose_holder(
    holders: Iterable[tuple[Connection, int, float]], asking: Connection, now_s: float
) -> Connection:
    """The connection that gives up its memory, so that `asking` can have more.

    If some connections moved no byte for limits.HTTP_STALLED_S seconds, it is one of those. Of
    them (or else of all) it belongs to the address that holds most bytes.

    Args:
        holders: each connection that holds bytes, their number, and when the last one moved.
    """
    held = list(holders)
    stalled = [each for each in held if now_s - each[2] >= limits.HTTP_STALLED_S]
    by_network: dict[str, int] = {}
    for connection, size_bytes, _ in stalled or held:
        network = connection.client_network
        by_network[network] = by_network.get(network, 0) + size_bytes
    if not by_network:
        return asking
    greediest = max(by_network, key=by_network.__getitem__)
    if not stalled and asking.client_network == greediest:
        return asking
    _, _, chosen = min(
        (since_s, connection.fd, connection)
        for connection, _, since_s in stalled or held if connection.client_network == greediest
    )
    return chosen
