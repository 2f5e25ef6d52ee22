"""Filters, graph queries and aggregates in plain Python over plain rows.

Tests compare the store's answers with these. The code is slow and short on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pylon.auth_context import AuthContext
from pylon.manifest.model import Entity, FieldType, Manifest
from pylon.policy.rules import RuleSet
from tests.support.moments import instant, stored_moment

Row = dict[str, Any]
Rows = Mapping[str, list[Row]]

MOMENT_FIELDS = frozenset({"dueAt"})
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b, "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b, "$lte": lambda a, b: a <= b,
    "$ne": lambda a, b: a != b, "$not": lambda a, b: a != b,
}


def holds(where: Mapping[str, Any], row: Row) -> bool:
    """Whether a row is one that the filter describes."""
    return all(_holds(key, operand, row) for key, operand in where.items())


def _holds(key: str, operand: Any, row: Row) -> bool:
    if key == "$or":
        return any(holds(part, row) for part in operand)
    if key == "$and":
        return all(holds(part, row) for part in operand)
    if key.startswith("$"):
        return True
    value = row[key]
    if key in MOMENT_FIELDS:
        operand = _stored_operand(operand)
    if not isinstance(operand, dict):
        return bool(value == operand)
    return all(_passes(operator, value, wanted) for operator, wanted in operand.items())


def as_stored(rows: Rows) -> Rows:
    """The rows with their datetimes in the notation of the store."""
    return {
        name: [
            {k: stored_moment(v) if k in MOMENT_FIELDS else v for k, v in row.items()}
            for row in some
        ]
        for name, some in rows.items()
    }


def _stored_operand(operand: Any) -> Any:
    if not isinstance(operand, dict):
        return stored_moment(operand)
    return {
        key: value if key in ("$exists", "$like", "$startsWith")
        else [stored_moment(v) for v in value] if isinstance(value, list) else stored_moment(value)
        for key, value in operand.items()
    }


def _passes(operator: str, value: Any, wanted: Any) -> bool:
    if operator == "$exists":
        return (value is not None) is wanted
    if operator == "$in":
        return value in wanted
    if operator == "$nin":
        return not wanted or (value is not None and value not in wanted)
    if wanted is None:
        return value is not None
    if value is None:
        return False
    if operator == "$startsWith":
        return bool(value.startswith(wanted))
    if operator == "$like":
        wild = {"%": ".*", "_": "."}
        pattern = "".join(wild.get(c, re.escape(c)) for c in wanted)
        return re.search(pattern, value, re.IGNORECASE | re.DOTALL) is not None
    return _COMPARE[operator](value, wanted)


def readable(rules: RuleSet, auth: AuthContext, rows: Rows) -> Rows:
    """What is left of all rows for a caller."""
    return {
        name: [row for row in some if rules.for_entity(name).may_read(auth, row)]
        for name, some in rows.items()
    }


def selected(node: Mapping[str, Any], rows: list[Row], most: int | None) -> list[Row]:
    """The rows of one node, without their relations."""
    found = sorted((r for r in rows if holds(node.get("where") or {}, r)), key=lambda r: r["id"])
    for field, direction in reversed(list((node.get("order") or {}).items())):
        found.sort(
            key=lambda r: (r[field] is not None, r[field] if r[field] is not None else 0),
            reverse=direction == "desc",
        )
    first, count = node.get("offset") or 0, node.get("limit")
    count = most if count is None else count
    return found[first:] if count is None else found[first : first + count]


def graph(
    manifest: Manifest, body: Mapping[str, Any], rows: Rows, most: int
) -> dict[str, list[Row]]:
    """The answer of a graph query over rows that the caller may read."""
    return {
        name: [
            _with_relations(manifest, manifest.by_name[name], node, row, rows)
            for row in selected(node, rows[name], most)
        ]
        for name, node in body.items()
    }


def _with_relations(
    manifest: Manifest, entity: Entity, node: Mapping[str, Any], row: Row, rows: Rows
) -> Row:
    full = dict(row)
    for relation in entity.relations:
        wanted = (node.get("include") or {}).get(relation.name)
        if wanted is None:
            continue
        target = manifest.by_name[relation.target]
        key, value = (relation.field, row["id"]) if relation.many else ("id", row[relation.field])
        there = [r for r in rows[target.name] if value is not None and r[key] == value]
        found = [
            _with_relations(manifest, target, wanted, r, rows)
            for r in selected(wanted if relation.many else {**wanted, "offset": 0}, there, None)
        ]
        if relation.many:
            full[relation.name] = found
        else:
            full.pop(relation.name, None)
            if found:
                full[relation.name] = found[0]
    return full


def bucket_of(text: str | None, bucket: str) -> str | None:
    """The bucket of a stored datetime."""
    if text is None:
        return None
    style = {"hour": "%Y-%m-%d %H:00:00", "day": "%Y-%m-%d", "week": "%Y-W%W",
             "month": "%Y-%m", "year": "%Y"}[bucket]
    return instant(text).strftime(style)


def aggregate(entity: Entity, body: Mapping[str, Any], rows: list[Row]) -> list[Row]:
    """The rows of an aggregate's answer, in no order."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    wanted = [g if isinstance(g, dict) else {"field": g} for g in body.get("groupBy", [])]
    names = [
        f"{g['field']}_{g['bucket']}" if "bucket" in g else g["field"] for g in wanted
    ]
    for row in rows:
        if holds(body.get("where") or {}, row):
            key = tuple(
                bucket_of(row[g["field"]], g["bucket"]) if "bucket" in g else row[g["field"]]
                for g in wanted
            )
            groups.setdefault(key, []).append(row)
    if not wanted:
        groups.setdefault((), [])
    return [
        {**dict(zip(names, key, strict=True)), **_figures(entity, body, some)}
        for key, some in groups.items()
    ]


def _figures(entity: Entity, body: Mapping[str, Any], rows: list[Row]) -> Row:
    figures: Row = {}
    if body.get("count") == "*":
        figures["count"] = len(rows)
    elif "count" in body:
        figures[f"count_{body['count']}"] = sum(r[body["count"]] is not None for r in rows)
    for name in body.get("countDistinct", []):
        there = {r[name] for r in rows} - {None}
        figures[f"count_distinct_{name}"] = len(there)
    for kind in ("sum", "avg", "min", "max"):
        for name in body.get(kind, []):
            there = [r[name] for r in rows if r[name] is not None]
            figures[f"{kind}_{name}"] = _figure(kind, there) if there else None
            is_float = name in entity.by_name and entity.by_name[name].type is FieldType.FLOAT
            if kind == "sum" and not is_float and not -(2**63) <= sum(there) < 2**63:
                figures[f"{kind}_{name}"] = float(sum(there))
    return figures


def _figure(kind: str, values: list[Any]) -> Any:
    if kind == "sum":
        return sum(values)
    return sum(values) / len(values) if kind == "avg" else (min if kind == "min" else max)(values)
