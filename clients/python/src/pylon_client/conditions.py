"""Conditions as keyword arguments: ``room=x, sent_at__lt=t`` becomes the filter of a query.

A name without an operator means equality. The operator follows two underscores; the wire names are
in docs/query-semantics.md. A name on the wire that ends like an operator is written in a mapping:
``where({"size__gt": 3})`` takes names literally.

Called by `queries`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pylon_client.entities import plain

OPERATORS: Final = {
    "ne": "$ne", "gt": "$gt", "gte": "$gte", "lt": "$lt", "lte": "$lte",
    "in": "$in", "nin": "$nin", "like": "$like", "startswith": "$startsWith",
    "exists": "$exists", "contains": "$contains",
}


def filter_of(given: Mapping[str, Any], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter.

    Args:
        given: a filter of the wire, or empty.
        conditions: keyword arguments.

    Raises:
        TypeError: a keyword has an unknown operator.
    """
    found: dict[str, Any] = {}
    for keyword, value in conditions.items():
        field, mark, operator = keyword.rpartition("__")
        if not mark or not field:
            _add(found, keyword, "$eq", plain(value))
        elif operator in OPERATORS:
            _add(found, field, OPERATORS[operator], plain(value))
        else:
            raise TypeError(
                f"{keyword}: {operator} is no operator; there are {', '.join(sorted(OPERATORS))}"
            )
    return join([dict(plain(given)), *({f: _short(c)} for f, c in found.items())])


def join(filters: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the filter that holds where all of `filters` hold."""
    joined: dict[str, Any] = {}
    rest: list[dict[str, Any]] = []
    for each in filters:
        for name, condition in each.items():
            if name == "$and":
                rest.extend(condition)
            elif name in joined:
                rest.append({name: condition})
            else:
                joined[name] = condition
    return {**joined, "$and": rest} if rest else joined


def _add(found: dict[str, Any], field: str, operator: str, value: Any) -> None:
    found.setdefault(field, {})[operator] = value


def _short(condition: dict[str, Any]) -> Any:
    """Write an equality alone as its value; one beside other operators as ``$in`` of one."""
    if "$eq" not in condition:
        return condition
    value = condition.pop("$eq")
    return value if not condition else {**condition, "$in": [value]}
