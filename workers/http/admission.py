"""Admission: how many connections a worker has, and which of them give way to others.

A client may have as many connections as there is room for, until others need it. Then those give
way that wait for their client, never one whose request is in the app: first idle ones, then those
whose head, body or reading is under way; of each kind the one that has waited longest. Only
connections of the address that holds most are asked, so a newcomer is let in, and whoever fills
the server loses connections of his own.

Two bounds ask for it: a worker is full (limits.HTTP_CONNECTIONS, or its descriptors), or one
address has more than limits.HTTP_ADDRESS_CONNECTIONS for each worker, counted over all of them
(`workers.net.counts`). A connection that was used in the last limits.HTTP_GRACE_S stays, as long
as there are others: clients that are busy keep theirs.

Bytes have no bound for each address either: what arrives of bodies, and what is kept of answers,
may fill the memory that is meant for it. Above that `choose_holder` says who gives way: of those
that have not moved for limits.HTTP_STALLED_S the ones of the address that holds most; where all
move, the address that holds most.

An address is that of the connection, of IPv6 its /64. Behind trusted proxies, which hold the
connections of everybody, there is no bound by address, and bytes count for the client that the
proxy names. Metric: pylon_http_cut_total. Used by `loop`.
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
NAMES: Final = {IDLE: "idle", HEAD: "head", BODY: "body", READER: "reader"}

_AT_ONCE: Final = 64  # connections that give way in one go: looking for them costs a look at all
_PUBLISHED_FROM: Final = 64  # connections of an address, below which siblings need not know
_FRUITLESS_S: Final = 0.1  # after a search that found none, there is no other one for so long


class Admission:
    """The connections of one worker by client network."""

    __slots__ = ("_by_network", "_counts", "_fruitless_s", "_has_proxies", "_workers")

    def __init__(self, workers: int, counts: SharedCounts | None, *, has_proxies: bool) -> None:
        """
        Args:
            workers: how many processes serve.
            counts: of all of them; None where this is the only one.
            has_proxies: whether connections are those of trusted proxies.
        """
        self._by_network: dict[str, int] = {}
        self._workers = workers
        self._counts = counts
        self._has_proxies = has_proxies
        self._fruitless_s = 0.0

    def opened(self, network: str) -> None:
        """Count a connection."""
        count = self._by_network.get(network, 0) + 1
        self._by_network[network] = count
        if self._counts is not None and count >= _PUBLISHED_FROM:
            self._counts.publish(network, count)

    def closed(self, network: str) -> None:
        """Count one less."""
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
        return count + self._counts.elsewhere(network, limit - count) > limit

    def yielding(
        self, connections: Iterable[Connection], network: str | None, now_s: float,
        grace_s: float,
    ) -> list[Connection]:
        """Connections that give way now, those first that should go first.

        Args:
            connections: all of this worker.
            network: whose; None: of the network that has most, or those that have equally many.
            grace_s: what has waited for less stays.
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
        number = max(1, min(_AT_ONCE, spare, sum(counts.values()) // _AT_ONCE))
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
    """Who gives back memory, so that `asking` can have more.

    Args:
        holders: the connections that hold any: how many bytes, and since when they have not moved.
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
