"""Large rows in the write engine: how many bytes of them one transaction takes.

A change of a row of a megabyte costs the writer milliseconds, a usual change microseconds. So a
transaction has a budget for rows above `limits.LARGE_ROW_BYTES`: a request that would pass it is
deferred, untouched, to a later transaction, and the requests of others go on.

Invariant: `charge` is called before anything of the request is changed, except within a
`Transact`, which is undone as a whole. Bound: the writer's, in bytes of images before and after.
Used by `engine` and `rows`.
"""

from __future__ import annotations

from typing import Final

from pylon import limits

_IMAGES: Final = 2  # before and after


class DeferredError(Exception):
    """The request has changed nothing, and is to be carried out in a later transaction."""


class LargeRowBudget:
    """The budget of the transaction under way. `rows`: large ones that were changed, and
    `spent_bytes` of their images."""

    __slots__ = ("_bound_bytes", "_has_begun", "_is_held", "known", "rows", "spent_bytes")

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], int] = {}  # sizes of rows that were large, the last ones
        self.begin(None)

    def begin(self, bound_bytes: int | None) -> None:
        """A transaction begins. Without a bound nothing is deferred, with 0 every large row."""
        self.rows = 0
        self.spent_bytes = 0
        self._bound_bytes = bound_bytes
        self.release()

    def hold(self) -> None:
        """A `Transact` begins: once one of its large rows fits, all of them do."""
        self._is_held, self._has_begun = True, False

    def release(self) -> None:
        """The `Transact` has ended."""
        self._is_held = self._has_begun = False

    def check_known(self, entity: str, row_id: str) -> None:
        """Pass unless the row was large when it was last seen, and does not fit.

        PERF: SQLite compares ids of large rows by reading them whole, so that a mere look for one
        of 1 MiB takes 1.5 ms.

        Raises:
            DeferredError: it does not fit into this transaction.
        """
        size_bytes = self.known.get((entity, row_id))
        if size_bytes is not None and not self._fits(_IMAGES * size_bytes):
            raise DeferredError

    def charge(self, entity: str, row_id: str, row_bytes: int) -> None:
        """Count a row above `limits.LARGE_ROW_BYTES` that is about to be changed. The first of a
        transaction fits, however large it is.

        Raises:
            DeferredError: it does not fit into this transaction.
        """
        known = self.known
        known.pop((entity, row_id), None)
        if len(known) >= limits.LARGE_ROWS_KNOWN:
            del known[next(iter(known))]
        known[entity, row_id] = row_bytes
        cost_bytes = _IMAGES * row_bytes
        if not self._fits(cost_bytes):
            raise DeferredError
        self.rows += 1
        self.spent_bytes += cost_bytes
        self._has_begun = self._is_held

    def _fits(self, cost_bytes: int) -> bool:
        bound_bytes = self._bound_bytes
        if bound_bytes is None or self._has_begun:
            return True
        spent_bytes = self.spent_bytes
        return bound_bytes > 0 and (not spent_bytes or spent_bytes + cost_bytes <= bound_bytes)
