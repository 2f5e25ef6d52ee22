"""SQLite explain: SQLite's plan of a query, and whether an index serves it.

Called by `reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pylon.query.index_advice import advise_index
from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from pylon.storage.records import QueryPlan

Execute = Callable[[str, tuple[object, ...]], Sequence[tuple[Any, ...]]]

_SORT = "USE TEMP B-TREE FOR ORDER BY"


def explain_select(
    fetch: Execute, entity: str, query: Query, text: str, params: tuple[object, ...]
) -> QueryPlan:
    """Return SQLite's plan of a query's SELECT, and the index that would help it."""
    plan = fetch(f"EXPLAIN QUERY PLAN {text}", params)
    steps = tuple([str(line) for _, _, _, line in plan])
    by_select: dict[int, list[str]] = {}
    for step, (_, parent, _, _) in zip(steps, plan, strict=True):
        by_select.setdefault(parent, []).append(step)
    scans = any(
        step == f"SCAN {entity}" or step.startswith(f"SCAN {entity} ") for step in steps
    )
    # The page before a position is sorted once more; so is nothing else of a position.
    is_sorted = any(_sorts_rows(entity, own) for own in by_select.values()) and (
        query.position is None or not query.position.is_before
    )
    is_served = not is_sorted and not (scans and query.where is not TRUE)
    index = () if is_served else advise_index(query.where, query.order)
    return QueryPlan(steps, is_served, index)


def _sorts_rows(entity: str, steps: Sequence[str]) -> bool:
    """Whether a SELECT sorts rows that it has read, and not ids from an index or the rows of a page
    (`page_sql`).
    """
    ids = f"SEARCH {entity} USING COVERING INDEX ", f"SEARCH {entity} USING PRIMARY KEY (id=?)"
    return _SORT in steps and not any(step.startswith(ids) for step in steps)
