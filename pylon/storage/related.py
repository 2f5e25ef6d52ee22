"""Related rows of a store: answers what a rule's ``exists(...)`` asks, by reads of committed rows.

Each answer is one look-up by an index (`pylon.policy.exists_check` refuses rules without one), of
the newest commit that the reader sees. Invariant: it answers as the predicates of
`pylon.policy.bind` do at the same commit. Called by the API, the hub, pulls and documents; the
writer has a source of its own (`pylon.storage.core.related`).
"""

from __future__ import annotations

from functools import partial

from pylon.policy.related import CheckValues, ExistsCheck
from pylon.query.predicate import FALSE, Predicate
from pylon.storage.interface import PointRead, Reader


class StoredRelated:
    """The related rows that a store has at each call."""

    __slots__ = ("_point",)

    def __init__(self, point: PointRead) -> None:
        """Args: `point` is `Store.point`, or `Store.point_inline` where no switch may happen."""
        self._point = point

    def has_row(self, check: ExistsCheck, values: CheckValues) -> bool:
        """See `pylon.policy.related.RelatedRows`.

        Raises: what the reader raises.
        """
        where = check.predicate(values)
        if where is FALSE:
            return False
        return self._point(partial(_has_row, entity=check.entity, where=where))


def _has_row(reader: Reader, entity: str, where: Predicate) -> bool:
    return reader.has_row(entity, where)
