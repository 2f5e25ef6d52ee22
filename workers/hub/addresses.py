"""Address cap: limits the open sockets of each client address (`PYLON_SOCKETS_PER_IP`).

The count covers all processes of a role (`workers.net.counts`). Behind trusted proxies the address
is that of the client, not of the proxy. An IPv6 client counts by its /64 (`pylon.auth.forwarded`),
because it can use any address in that network.

Invariant: a worker raises its count before it compares, so two workers cannot both admit the last
socket. Both may refuse it. Called by `workers.hub.admission`.
"""

from __future__ import annotations

from pathlib import Path

from pylon.auth.forwarded import network_of
from pylon.errors import SocketLimit
from workers.net.counts import SharedCounts, shared_counts


class AddressCap:
    """Counts sockets by address; with `limit` 0 it allows any number."""

    __slots__ = ("_counts", "_limit", "_open")

    def __init__(self, limit: int, counts: SharedCounts | None = None) -> None:
        """
        Args:
            counts: the counts of all processes of the role; None if this is the only one.
        """
        self._limit = limit
        self._open: dict[str, int] = {}
        self._counts = counts

    def add_socket(self, address: str) -> None:
        """Count one more socket.

        Raises:
            SocketLimit: the address has as many as the setting allows. This one is not counted.
        """
        if not self._limit:
            return
        address = network_of(address)
        count = self._open.get(address, 0) + 1
        self._set(address, count)
        in_siblings = 0
        if self._counts is not None and count <= self._limit:
            in_siblings = self._counts.count_in_siblings(address, self._limit - count)
        if count + in_siblings > self._limit:
            self._set(address, count - 1)
            raise SocketLimit(
                f"{self._limit} sockets are open from {address}, which is the limit",
                hint="Close some, or raise PYLON_SOCKETS_PER_IP; behind a proxy set "
                "PYLON_TRUST_PROXY_HOPS",
            )

    def remove_socket(self, address: str) -> None:
        """Count one socket less."""
        if self._limit:
            address = network_of(address)
            self._set(address, self._open[address] - 1)

    def _set(self, address: str, count: int) -> None:
        if count:
            self._open[address] = count
        else:
            del self._open[address]
        if self._counts is not None:
            self._counts.publish(address, count)


def shared_cap(limit: int, folder: Path, role: str, worker: str, workers: int) -> AddressCap:
    """Return the cap of one of `workers` processes of a role."""
    return AddressCap(limit, shared_counts(folder, role, worker, workers) if limit else None)
