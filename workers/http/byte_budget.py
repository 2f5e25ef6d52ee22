"""Byte budgets: memory that all connections of a worker share for one purpose.

Unfinished request bodies share one budget, unsent responses another one. A connection that needs
more than is left calls `make_room`. `connection_limits.choose_holder` then names connections that
give up their bytes, until the budget holds or the caller itself must give way.

Invariant: `held_bytes` is the sum over all open connections. Bounds: limits.HTTP_BODIES_BYTES,
HTTP_OUTGOING_BYTES. Used by `loop` and `connection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from workers.http.connection_limits import choose_holder

if TYPE_CHECKING:
    from workers.http.connection import Connection

Holder: TypeAlias = "tuple[Connection, int, float]"  # its bytes, and when its last byte moved


class ByteBudget:
    """The bytes of one purpose."""

    __slots__ = ("_give_up", "_holders", "_limit_bytes", "held_bytes")

    def __init__(
        self, limit_bytes: int, holders: Callable[[], Iterable[Holder]],
        give_up: Callable[[Connection], None],
    ) -> None:
        """
        Args:
            holders: returns the connections that hold bytes.
            give_up: makes a connection free its bytes.
        """
        self._limit_bytes = limit_bytes
        self._holders = holders
        self._give_up = give_up
        self.held_bytes = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether the connections hold more than the limit."""
        return self.held_bytes > self._limit_bytes

    def make_room(self, asking: Connection, now_s: float) -> bool:
        """Have connections give up their bytes. False where `asking` itself must do so."""
        while self.is_exceeded:
            chosen = choose_holder(self._holders(), asking, now_s)
            if chosen is asking:
                return False
            self._give_up(chosen)
        return True
