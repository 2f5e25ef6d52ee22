"""Graphs: what SQLite writes in its own way (`pylon.storage.sql.graph`). Called by `reader`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from pylon.storage.sql.graph import GraphDialect, literal
from pylon.storage.sqlite.dialect import SQLITE


def _rows(row: str, source: str) -> str:
    return (
        f"SELECT count(*), CAST(group_concat(_j) AS BLOB) FROM (SELECT {row} AS _j FROM {source})"
    )


def _sorted_rows(ids: str, name: str, table: str, alias: str) -> str:
    """SQLite reads the left side of CROSS JOIN first, so the rows come in the order of the ids."""
    return f"({ids}) AS {name} CROSS JOIN {table} AS {alias} ON {alias}.id = {name}._id"


def _arrays(places: str, name: str, row: str, table: str, alias: str) -> str:
    return (
        f"SELECT CAST(json_quote({name}._k) AS BLOB), CAST(group_concat({row}, ',' "
        f"ORDER BY {name}._n) AS BLOB), count(*) FROM ({places}) AS {name} "
        f"CROSS JOIN {table} AS {alias} ON {alias}.id = {name}._id GROUP BY {name}._k"
    )


def _ids(ids: Iterable[bytes]) -> str:
    return (b"[" + b",".join(ids) + b"]").decode()


def _without(own: str, member: str) -> str:
    return f"json_remove({own}, {literal('$.' + orjson.dumps(member).decode())})"


GRAPHS: Final = GraphDialect(
    SQLITE, _rows, _sorted_rows, _arrays, "IN (SELECT value FROM json_each(?))", _ids,
    "json_quote({})", _without,
)
