"""Explain: the server's plan of a query, and whether an index serves it.

The server scans a small table whatever indexes there are. So the plan is made with scans and sorts
disabled: it has one only where nothing else is possible, as on a large table. Called by `reader`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from pylon.query.index_advice import advise_index, find_patterns
from pylon.query.predicate import TRUE
from pylon.query.rows import Query
from pylon.storage.records import QueryPlan

SETTINGS: Final = (
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)"
)
# A page in an order can walk an index and look at each row. This tells whether a trigram index
# could find the rows instead.
PATTERN_SETTINGS: Final = (
    "SELECT set_config('enable_seqscan', 'off', true), "
    "set_config('enable_indexscan', 'off', true), set_config('enable_indexonlyscan', 'off', true)"
)
_SCANS: Final = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan")
# An incremental sort only orders what is equal in the first fields, which an index has in order.
_SORT: Final = "Sort"


def plan_of(
    found: bytes, entity: str, query: Query, *, may_sort: bool = False
) -> QueryPlan:
    """Return the plan from the server's JSON, and the index that would help.

    Args:
        may_sort: the rows are few, so a sort of them is none of all rows.
        found: of EXPLAIN (FORMAT JSON) for the SELECT of the query's rows.
    """
    root = orjson.loads(found)[0]["Plan"]
    nodes = list(_walk(root, 0))
    scans = any(
        node["Node Type"] in _SCANS and node.get("Relation Name") == entity
        and not _has_condition(node)
        for node, _ in nodes
    )
    # The page before a position is sorted once more.
    is_sorted = not may_sort and any(node["Node Type"] == _SORT for node, _ in nodes) and (
        query.position is None or not query.position.is_before
    )
    is_served = not is_sorted and not (scans and query.where is not TRUE)
    steps = tuple([_step(node, depth) for node, depth in nodes])
    if is_served:
        return QueryPlan(steps, is_indexed=True)
    return QueryPlan(
        steps, False, advise_index(query.where, query.order), find_patterns(query.where)
    )


def _walk(node: dict[str, Any], depth: int) -> Iterator[tuple[dict[str, Any], int]]:
    yield node, depth
    for part in node.get("Plans", ()):
        yield from _walk(part, depth + 1)


def _has_condition(node: dict[str, Any]) -> bool:
    """Whether an index leads to the rows of a scan."""
    return "Index Cond" in node or any(
        part["Node Type"].startswith("Bitmap") for part in node.get("Plans", ())
    )


def _step(node: dict[str, Any], depth: int) -> str:
    """Return one line of the plan, without values of a caller."""
    text = "  " * depth + str(node["Node Type"])
    if "Index Name" in node:
        text += f" using {node['Index Name']}"
    if "Relation Name" in node:
        text += f" on {node['Relation Name']}"
    return text
