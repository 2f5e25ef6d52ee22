"""How many sockets each client address has open, against `PYLON_SOCKETS_PER_IP`.

Counted in one worker process: with n processes of a role an address may have up to n times as
many. The address is the one behind trusted proxies (`pylon.auth.forwarded`). Called by the
handshakes of ws, sse and shards.
"""

from __future__ import annotations

from pylon.errors import SocketLimit


class AddressCap:
    """Counts sockets by address; `limit` 0 means any number."""

    __slots__ = ("_limit", "_open")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[str, int] = {}

    def check(self, address: str) -> None:
        """Pass if `address` may open one more.

        Raises:
            SocketLimit: it has as many as the setting allows.
        """
        if self._limit and self._open.get(address, 0) >= self._limit:
            raise SocketLimit(
                f"{self._limit} sockets are open from {address}, which is the limit",
                hint="Close some, or raise PYLON_SOCKETS_PER_IP; behind a proxy set "
                "PYLON_TRUST_PROXY_HOPS",
            )

    def opened(self, address: str) -> None:
        """One more."""
        self._open[address] = self._open.get(address, 0) + 1

    def closed(self, address: str) -> None:
        """One less."""
        left = self._open[address] - 1
        if left:
            self._open[address] = left
        else:
            del self._open[address]
