"""Plan watch: finds queries of large tables that no index serves, by SQLite's own plan.

The reader pool runs a query in a thread once it has taken longer than its inline limit. The thread
then asks for the plan of each shape of query (`EXPLAIN QUERY PLAN`), once. A plan that scans a
table for a filter, or sorts all rows, is a finding if the table has more than
`limits.UNINDEXED_ROWS` rows. The pool logs a finding the first time and counts it each time.

Invariants: a finding names fields and no values. Bounds: `limits.PLANS_WATCHED` shapes for a
worker; further ones are not judged. Log event: query.unindexed. Metric:
pylon_unindexed_queries_total. Threads of a pool share one watch. Called by `reader` and `pool`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pylon import limits
from pylon.errors import PylonError
from pylon.log import get_logger
from pylon.metrics.families import UNINDEXED_QUERIES
from pylon.query.index_advice import advise_index
from pylon.query.predicate import FALSE, TRUE
from pylon.query.rows import Query
from pylon.storage.records import QueryPlan
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sqlite.names import quote

_NOTED = limits.GRAPH_NODES  # queries of one read

Execute = Callable[[str, tuple[object, ...]], Sequence[tuple[Any, ...]]]

_SORT = "USE TEMP B-TREE FOR ORDER BY"

_log = get_logger("store")


@dataclass(slots=True)
class _Finding:
    """A query of a large table that no index serves. `times` it ran are not counted yet."""

    entity: str
    steps: tuple[str, ...]
    index: tuple[str, ...]
    times: int = 0
    is_logged: bool = False


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


class PlanWatch:
    """The shapes of the queries of one pool."""

    __slots__ = ("_found_by_shape", "_pending")

    def __init__(self) -> None:
        self._found_by_shape: dict[int, _Finding | None] = {}  # by the hash of the SQL
        self._pending: list[_Finding] = []

    def judge(
        self, fetch: Execute, entity: str, query: Query, text: str, params: tuple[object, ...]
    ) -> None:
        """Judge a query that took long, in a thread."""
        shape = hash(text)
        if shape not in self._found_by_shape:
            if len(self._found_by_shape) >= limits.PLANS_WATCHED:
                return
            self._found_by_shape[shape] = self._find(fetch, entity, query, text, params)
        found = self._found_by_shape[shape]
        if found is not None:
            found.times += 1
            self._pending.append(found)

    def report(self) -> None:
        """Log and count the findings since the last call, in the thread of the worker's loop."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        for found in pending:
            index = ",".join(found.index)
            UNINDEXED_QUERIES.labels(entity=found.entity, index=index or "none").inc()
            if not found.is_logged:
                found.is_logged = True
                _log.warning(
                    "query.unindexed", entity=found.entity, index=index or None,
                    plan="; ".join(found.steps),
                    hint=_hint_of(found),
                )

    def _find(
        self, fetch: Execute, entity: str, query: Query, text: str, params: tuple[object, ...]
    ) -> _Finding | None:
        plan = explain_select(fetch, entity, query, text, params)
        if plan.is_indexed:
            return None
        bound = limits.UNINDEXED_ROWS
        ((rows,),) = fetch(
            f"SELECT count(*) FROM (SELECT 1 FROM {quote(entity)} LIMIT ?)", (bound + 1,)
        )
        return _Finding(entity, plan.steps, plan.index) if rows > bound else None


class PendingQueries:
    """The queries of one reader whose plans are yet to be judged; none without a watch."""

    __slots__ = ("_queries", "_watch")

    def __init__(self, watch: PlanWatch | None) -> None:
        self._watch = watch
        self._queries: list[tuple[str, Query]] = []

    def add(self, entity: str, query: Query) -> None:
        """Note a query that the reader runs."""
        if self._watch is not None and len(self._queries) < _NOTED:
            self._queries.append((entity, query))

    def judge(self, fetch: Execute, select_of: Callable[[str, Query], SqlClause]) -> None:
        """Judge the plans of the queries since the last call."""
        queries, self._queries = self._queries, []
        if self._watch is None:
            return
        for entity, query in queries:
            if query.relevance is None and query.where is not FALSE:
                with suppress(PylonError):  # the query has its answer
                    select = select_of(entity, query)
                    self._watch.judge(fetch, entity, query, select.sql, select.params)


def _hint_of(found: _Finding) -> str:
    if not found.index:
        return "no single index serves this filter"
    name = "_".join(["by", *[field.removeprefix("-") for field in found.index]])
    line = json.dumps({"name": name, "fields": found.index})
    return f"add {line} to the indexes of {found.entity} in the manifest"
