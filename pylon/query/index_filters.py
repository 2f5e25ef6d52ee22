"""Index filters: the condition on the rows of a partial index, from the manifest's `where`.

A filter of a query, of which all conditions compare a field with constants. Called by
`pylon.manifest_loader` for the diagnostics, and by backends.
"""

from __future__ import annotations

import orjson

from pylon.errors import PylonError
from pylon.manifest.build import build_entity
from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, items_of
from pylon.manifest.model import Entity, Index
from pylon.manifest.protected import protected_names
from pylon.query.parse import parse_where
from pylon.query.predicate import TRUE, Column, Compare, InValues, IsNull, Literal, Not, Predicate
from pylon.query.predicate_parts import conjuncts


def index_filter(entity: Entity, index: Index) -> Predicate:
    """Return the condition that the rows of an index meet; `TRUE` for an index of all rows."""
    return TRUE if index.where is None else parse_where(entity, orjson.loads(index.where))


def check_index_filters(root: Node, findings: Findings) -> None:
    """Report each `where` of an index that is no such filter. Skip entities with errors."""
    protected = protected_names(root.plain())
    for node in items_of(root, "entities"):
        if findings.touch(node):
            continue
        entity = build_entity(node, protected)
        for index, index_node in zip(entity.indexes, items_of(node, "indexes"), strict=True):
            problem = None if index.where is None else _problem(entity, index)
            if problem is not None:
                findings.error(
                    "INDEX_WHERE_INVALID", problem, index_node.value["where"].at,
                    'for example {"archivedAt": null} or {"state": {"$ne": "done"}}',
                )


def _problem(entity: Entity, index: Index) -> str | None:
    try:
        conditions = conjuncts(index_filter(entity, index))
    except PylonError as error:
        return error.message
    if not conditions:
        return "the filter of the index has no condition"
    if not all(map(_is_plain, conditions)):
        return "the filter of the index must compare fields with constants, and all must hold"
    return None


def _is_plain(item: Predicate) -> bool:
    if type(item) is Compare:
        return type(item.left) is Column and type(item.right) is Literal
    operand = item.operand if type(item) is Not else item
    if type(operand) is IsNull:
        return type(operand.operand) is Column
    return type(item) is InValues and not item.has_null and not item.is_negated
