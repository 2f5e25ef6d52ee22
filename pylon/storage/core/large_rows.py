"""Large row budget: limits the bytes of large rows that one transaction changes.

A change of a row of 1 MB costs the writer milliseconds; a usual change costs microseconds. So a
transaction has a budget for rows above `limits.LARGE_ROW_BYTES`. A request that would exceed it is
deferred to a later transaction, and the requests of other clients continue.

Invariant: `rows` calls `charge` before the request changes anything, except within a `Transact`,
which is undone as a whole. Bound: the writer passes it to `begin`, in bytes of images before and
after. Called by `engine` and `rows`.
"""

from __future__ import annotations

from typing import Final

from pylon import limits

_IMAGES: Final = 2  # before and after


class DeferredError(Exception):
    """The request has changed nothing; execute it in a later transaction."""


class LargeRowBudget:
    """The budget of the open transaction. `rows`: number of changed large rows; `spent_bytes`:
    the size of their images."""

    __slots__ = ("_bound_bytes", "_has_begun", "_is_held", "known", "rows", "spent_bytes")

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], int] = {}  # sizes of the last rows that were large
        self.begin(None)

    def begin(self, bound_bytes: int | None) -> None:
        """Begin a transaction. A bound of None defers no large row; 0 defers every one."""
        self.rows = 0
        self.spent_bytes = 0
        self._bound_bytes = bound_bytes
        self.release()

    def hold(self) -> None:
        """Begin a `Transact`: after its first large row has fit, all its large rows fit."""
        self._is_held, self._has_begun = True, False

    def release(self) -> None:
        """End the `Transact`."""
        self._is_held = self._has_begun = False

    def check_known(self, entity: str, row_id: str) -> None:
        """Defer a request whose row was large at its last change, if it does not fit.

        PERF: SQLite reads a large row whole to compare its id, so a look-up of a row of 1 MiB
        takes 1.5 ms.

        Raises:
            DeferredError: the row does not fit into this transaction.
        """
        size_bytes = self.known.get((entity, row_id))
        if size_bytes is not None and not self._fits(_IMAGES * size_bytes):
            raise DeferredError

    def charge(self, entity: str, row_id: str, row_bytes: int) -> None:
        """Count a row above `limits.LARGE_ROW_BYTES` before its change.

        The first large row of a transaction fits, whatever its size.

        Raises:
            DeferredError: the row does not fit into this transaction.
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
