"""Plan watch: finds queries of large tables that no index serves, by the plan of the store.

A store notes the queries of a read that took long, and afterwards asks for the plan of each shape
of query, once. A plan that scans a table for a filter, or sorts all rows, is a finding if the table
has more than `limits.UNINDEXED_ROWS` rows. The watch logs a finding the first time and counts it
each time.

Invariants: a finding names fields and no values. Bounds: `limits.PLANS_WATCHED` shapes for a
worker; further ones are not judged. Log event: query.unindexed. Metric:
pylon_unindexed_queries_total. All readers of a worker that run long reads share one watch. Called
by the readers of the stores, `pylon.storage.sqlite.pool` and `pylon.storage.postgres.scanners`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Protocol

import msgspec

from pylon import limits
from pylon.errors import PylonError
from pylon.log import get_logger
from pylon.metrics.families import UNINDEXED_QUERIES
from pylon.query.predicate import FALSE
from pylon.query.rows import Query
from pylon.storage.records import QueryPlan
from pylon.storage.sql.clause import SqlClause

TRIGRAM = "trigram"  # in the metric: `trigram(field)` for an index that serves patterns
_NOTED = limits.GRAPH_NODES  # queries of one read

_log = get_logger("store")


class PlanSource(Protocol):
    """The plans of a store."""

    def select(self, entity: str, query: Query) -> SqlClause:
        """Return the SELECT of a query's rows; its text is the shape of the query.

        Raises:
            PylonError: of the query.
        """

    def plan(self, entity: str, query: Query, select: SqlClause) -> QueryPlan:
        """Return the plan of a SELECT, and the index that would help it."""

    def count_rows(self, entity: str, most: int) -> int:
        """Return the number of rows of a table, `most` at the most."""


class _Finding(msgspec.Struct):
    """A query of a large table that no index serves. `times` it ran are not counted yet."""

    entity: str
    steps: tuple[str, ...]
    index: tuple[str, ...]
    patterns: tuple[str, ...]
    times: int = 0
    is_logged: bool = False


class PlanWatch:
    """The shapes of the queries of one worker."""

    __slots__ = ("_found_by_shape", "_pending")

    def __init__(self) -> None:
        self._found_by_shape: dict[int, _Finding | None] = {}  # by the hash of the SQL
        self._pending: list[_Finding] = []

    def judge(
        self, source: PlanSource, entity: str, query: Query, select: SqlClause
    ) -> None:
        """Judge a query that took long."""
        shape = hash(select.sql)
        if shape not in self._found_by_shape:
            if len(self._found_by_shape) >= limits.PLANS_WATCHED:
                return
            self._found_by_shape[shape] = self._find(source, entity, query, select)
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
            if not index and found.patterns:
                index = f"{TRIGRAM}({','.join(found.patterns)})"
            UNINDEXED_QUERIES.labels(entity=found.entity, index=index or "none").inc()
            if not found.is_logged:
                found.is_logged = True
                _log.warning(
                    "query.unindexed", entity=found.entity, index=index or None,
                    plan="; ".join(found.steps),
                    hint=_hint_of(found),
                )

    def _find(
        self, source: PlanSource, entity: str, query: Query, select: SqlClause
    ) -> _Finding | None:
        plan = source.plan(entity, query, select)
        if plan.is_indexed:
            return None
        bound = limits.UNINDEXED_ROWS
        if source.count_rows(entity, bound + 1) <= bound:
            return None
        return _Finding(entity, plan.steps, plan.index, plan.patterns)


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

    @property
    def are_there(self) -> bool:
        """Whether any query was noted since the last `judge`."""
        return bool(self._queries)

    def judge(self, source: PlanSource) -> None:
        """Judge the plans of the queries since the last call."""
        queries, self._queries = self._queries, []
        if self._watch is None:
            return
        for entity, query in queries:
            if query.relevance is None and query.where is not FALSE:
                with suppress(PylonError):  # the query has its answer
                    self._watch.judge(source, entity, query, source.select(entity, query))


def _hint_of(found: _Finding) -> str:
    if not found.index and found.patterns:
        return "pylonctl schema advise proposes a trigram index"
    if not found.index:
        return "no single index serves this filter"
    name = "_".join(["by", *[field.removeprefix("-") for field in found.index]])
    line = json.dumps({"name": name, "fields": found.index})
    return f"add {line} to the indexes of {found.entity} in the manifest"
