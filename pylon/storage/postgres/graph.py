"""Graphs: what PostgreSQL writes in its own way (`pylon.storage.sql.graph`).

The server adds up the sizes of the rows as it goes, and joins none beyond `limits.LIST_BYTES`; then
the statement fails. Called by `reader`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson

from pylon import limits
from pylon.storage.postgres.functions import TOO_LARGE, WITHOUT
from pylon.storage.sql.graph import GraphDialect, literal
from pylon.storage.sql.predicate_sql import Dialect

_RUNNING: Final = "sum(octet_length(_j)) OVER (ROWS UNBOUNDED PRECEDING) AS _total"


def _joined(order: str = "") -> str:
    """Return the SQL of the joined rows. TOO_LARGE fails with program_limit_exceeded, which the
    reader takes for an answer that is too large."""
    most = limits.LIST_BYTES
    return (
        f"CASE WHEN max(_total) > {most} THEN {TOO_LARGE}() "
        f"ELSE string_agg(_j, ','{order}) FILTER (WHERE _total <= {most}) END"
    )


def _rows(row: str, source: str) -> str:
    return (
        f"SELECT count(*), {_joined()} FROM (SELECT _j, {_RUNNING} FROM "
        f"(SELECT {row} AS _j FROM {source}) AS _p) AS _q"
    )


def _sorted_rows(ids: str, name: str, table: str, alias: str) -> str:
    return (
        f"(SELECT _id, row_number() OVER () AS _n FROM ({ids}) AS _s) AS {name} "
        f"JOIN {table} AS {alias} ON {alias}.id = {name}._id ORDER BY {name}._n"
    )


def _arrays(places: str, name: str, row: str, table: str, alias: str) -> str:
    return (
        f"SELECT to_json(_k)::text, {_joined(' ORDER BY _n')}, count(*) "
        f"FROM (SELECT _k, _n, _j, {_RUNNING} FROM "
        f"(SELECT {name}._k, {name}._n, {row} AS _j FROM ({places}) AS {name} "
        f"JOIN {table} AS {alias} ON {alias}.id = {name}._id OFFSET 0) AS _p) AS _q GROUP BY _k"
    )


def _ids(ids: Iterable[bytes]) -> list[str]:
    return [orjson.loads(row_id) for row_id in ids]


def _without(own: str, member: str) -> str:
    return f"{WITHOUT}({own}, {literal(member)})"


def graphs_of(base: Dialect) -> GraphDialect:
    """Return the dialect of graphs."""
    return GraphDialect(
        base, _rows, _sorted_rows, _arrays, "= ANY (?)", _ids, "to_json({})::text", _without
    )
