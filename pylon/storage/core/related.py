"""Related rows of a transaction: answers what a rule's ``exists(...)`` asks, for the writer.

It sees the rows as they are at this point of the transaction: those that earlier operations of the
same batch, transaction or request have changed, too. Called by `rows` and `documents`.
"""

from __future__ import annotations

from time import monotonic

from pylon.policy.related import CheckValues, ExistsCheck
from pylon.query.predicate import FALSE
from pylon.storage.core.transaction import RowTransaction
from pylon.storage.related import count_lookup


class TransactionRelated:
    """The related rows of a writer's transaction."""

    __slots__ = ("_has_row",)

    def __init__(self, transaction: RowTransaction) -> None:
        self._has_row = transaction.has_row

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        """See `pylon.policy.related.RelatedRows`."""
        where = check.predicate(values)
        if where is FALSE:
            return False
        started_s = monotonic()
        found = self._has_row(check.entity, where)
        count_lookup(check.entity, monotonic() - started_s)
        return found
