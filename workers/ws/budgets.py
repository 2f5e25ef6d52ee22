"""Budgets: limit the bytes that one WebSocket, and all of one network address, send over time.

A budget counts bytes: the payload as unpacked, `limits.SOCKET_FRAME_COST_BYTES` for each frame,
and `limits.SOCKET_VALUE_COST_BYTES` for each JSON value of a large text. The sum is about in
proportion to the CPU time of a message. A budget is a token bucket that may go into debt:
the worker handles what has arrived, and then does not read the socket until the debt is paid. So a
message of any size passes, and TCP slows a client that is too fast. A socket that stays in debt
for `limits.SOCKET_DEBT_S` is closed; a socket that waits for its address is not.

Invariants: a budget is one number. Sockets of administrators have no budget. No
budget counts by address if `PYLON_SOCKETS_PER_IP` is 0, since addresses then do not stand for
clients. Bounds: `limits.SOCKET_ADDRESSES` addresses whose budget is not full. Each worker process
counts for itself, since a budget protects the CPU of one process.
PERF: 1.1 µs a step for both budgets; `pylon.limiter` takes 2.7 µs for each.
Called by `workers.ws.transport`.
"""

from __future__ import annotations

from typing import Final

from pylon import limits
from pylon.auth.forwarded import network_of
from pylon.clock import Clock
from workers.ws.frames import Parser

_SMALL_CHARS: Final = 4_096  # the values of a text up to this are not counted


class Budget:
    """A token bucket, stored as the time at which it is full again."""

    __slots__ = ("_full_s", "_interval_s", "_tolerance_s")

    def __init__(self, bytes_per_s: int, burst_bytes: int) -> None:
        self._interval_s = 1.0 / bytes_per_s
        self._tolerance_s = burst_bytes / bytes_per_s
        self._full_s = 0.0

    def spend(self, cost_bytes: int, now_s: float) -> float:
        """Spend the cost of finished work.

        Returns:
            Seconds until the debt is paid; 0.0 or less without one.
        """
        self._full_s = max(self._full_s, now_s) + cost_bytes * self._interval_s
        return self._full_s - now_s - self._tolerance_s

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the debt is paid; 0.0 or less without one."""
        return self._full_s - now_s - self._tolerance_s

    def is_full(self, now_s: float) -> bool:
        """Whether the budget is full."""
        return self._full_s <= now_s


class Inbox:
    """The parser of one socket, its budget, and the budget of its address."""

    __slots__ = ("_address", "_socket", "debt_since_s", "is_waiting", "parser")

    def __init__(self, parser: Parser, address: Budget | None) -> None:
        self.parser = parser
        self.is_waiting = False  # for its next step
        self.debt_since_s: float | None = None  # of its own budget
        self._socket = Budget(limits.SOCKET_BYTES_PER_S, limits.SOCKET_BURST_BYTES)
        self._address = address

    def spend(self, cost_bytes: int, now_s: float) -> float:
        """Spend the cost of a step, and return the seconds until both budgets have no debt."""
        socket_s = self._socket.spend(cost_bytes, now_s)
        if socket_s <= 0.0:
            self.debt_since_s = None
        elif self.debt_since_s is None:
            self.debt_since_s = now_s
        if self._address is None:
            return socket_s
        return max(socket_s, self._address.spend(cost_bytes, now_s))

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until both budgets have no debt; 0.0 or less without one."""
        socket_s = self._socket.wait_s(now_s)
        return socket_s if self._address is None else max(socket_s, self._address.wait_s(now_s))

    def is_overdrawn(self, now_s: float) -> bool:
        """Whether the socket's own budget has been in debt for `limits.SOCKET_DEBT_S`."""
        since_s = self.debt_since_s
        return since_s is not None and now_s - since_s >= limits.SOCKET_DEBT_S


class AddressBudgets:
    """The budgets of the addresses that have sent something. One for each transport."""

    __slots__ = ("_by_network", "_clock", "_is_counting")

    def __init__(self, clock: Clock, *, is_counting: bool) -> None:
        """Make an empty table.

        Args:
            is_counting: whether addresses have a budget.
        """
        self._clock = clock
        self._is_counting = is_counting
        self._by_network: dict[str, Budget] = {}

    def budget_of(self, address: str) -> Budget | None:
        """Return the budget that the sockets of an address share, or None."""
        if not self._is_counting or not address:
            return None
        network = network_of(address)
        budget = self._by_network.get(network)
        if budget is None:
            if len(self._by_network) >= limits.SOCKET_ADDRESSES:
                self._drop_full()
            budget = self._by_network[network] = Budget(
                limits.ADDRESS_BYTES_PER_S, limits.ADDRESS_BURST_BYTES
            )
        return budget

    def _drop_full(self) -> None:
        """Remove the budgets that are full again, or the oldest one if none is."""
        now_s = self._clock.monotonic_s()
        for network in [n for n, budget in self._by_network.items() if budget.is_full(now_s)]:
            del self._by_network[network]
        if len(self._by_network) >= limits.SOCKET_ADDRESSES:
            del self._by_network[next(iter(self._by_network))]


def value_cost_bytes(text: str) -> int:
    """Return the cost of the values of a JSON text, which is added to its size in bytes.

    PERF: 0.3 ms for 1 MiB. Decoding as many empty lists takes 36 ms.
    """
    if len(text) <= _SMALL_CHARS:
        return 0
    # Each value is at the start of the text or after one of three characters.
    values = 1 + text.count("[") + text.count("{") + text.count(",")
    return values * limits.SOCKET_VALUE_COST_BYTES
