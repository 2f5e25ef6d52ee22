"""Related rows of a store: answers what a rule's ``exists(...)`` asks, by reads of committed rows.

Each answer is one look-up by an index (`pylon.policy.exists_check` refuses rules without one), of
the newest commit that the reader sees. Invariant: it answers as the predicates of
`pylon.policy.bind` do at the same commit. Called by the API, the hub, pulls and documents; the
writer has a source of its own (`pylon.storage.core.related`). Metrics: pylon_policy_lookups_total,
pylon_policy_lookup_seconds_total.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final

from pylon import metrics
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
        started_s = monotonic()
        found = self._point(partial(_has_row, entity=check.entity, where=where))
        count_lookup(check.entity, monotonic() - started_s)
        return found


def _has_row(reader: Reader, entity: str, where: Predicate) -> bool:
    return reader.has_row(entity, where)


_Counts = tuple[Callable[[], None], Callable[[float], None]]
_counts: Final[dict[str, _Counts]] = {}  # by entity


def count_lookup(entity: str, elapsed_s: float) -> None:
    """Count a look-up of a row of `entity`. PERF: 0.3 us."""
    counts = _counts.get(entity)
    if counts is None:
        counts = _counts[entity] = (
            metrics.POLICY_LOOKUPS.labels(entity).inc,
            metrics.POLICY_LOOKUP_SECONDS.labels(entity).inc,
        )
    counts[0]()
    counts[1](elapsed_s)
