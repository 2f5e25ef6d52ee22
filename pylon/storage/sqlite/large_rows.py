"""Large rows in the write engine: how many bytes of them one transaction takes.

A change of a row of a megabyte costs the writer milliseconds, a usual change microseconds. So a
transaction has a budget for rows above `limits.LARGE_ROW_BYTES`: a request that would pass it is
deferred, untouched, to a later transaction, and the requests of others go on.

Invariant: `charge` is called before anything of the request is changed, except within a
`Transact`, which is undone as a whole. Bound: what the writer says, of images before and after.
Used by `engine` and `row_writes`.
"""

from __future__ import annotations

from typing import Final

_IMAGES: Final = 2  # before and after


class DeferredError(Exception):
    """The request has changed nothing, and is to be carried out in a later transaction."""


class LargeRowBudget:
    """The budget of the transaction under way. `spent_bytes`: of images of large rows."""

    __slots__ = ("_bound_bytes", "_has_begun", "_is_held", "spent_bytes")

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, bound_bytes: int | None) -> None:
        """A transaction begins. Without a bound nothing is deferred, with 0 every large row."""
        self.spent_bytes = 0
        self._bound_bytes = bound_bytes
        self.release()

    def hold(self) -> None:
        """A `Transact` begins: once one of its large rows fits, all of them do."""
        self._is_held, self._has_begun = True, False

    def release(self) -> None:
        """The `Transact` has ended."""
        self._is_held = self._has_begun = False

    def charge(self, row_bytes: int) -> None:
        """Count a row above `limits.LARGE_ROW_BYTES` that is about to be changed. The first of a
        transaction fits, however large it is.

        Raises:
            DeferredError: it does not fit into this transaction.
        """
        cost_bytes = _IMAGES * row_bytes
        bound_bytes = self._bound_bytes
        if bound_bytes is not None and not self._has_begun and (
            not bound_bytes or (self.spent_bytes and self.spent_bytes + cost_bytes > bound_bytes)
        ):
            raise DeferredError
        self.spent_bytes += cost_bytes
        self._has_begun = self._is_held
