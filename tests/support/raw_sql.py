"""A predicate of SQL text, for tests of the SQLite reader's time limits."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from pylon.query.predicate import Predicate
from pylon.storage.sql.predicate_sql import Sql
from pylon.storage.sqlite.dialect import SQLITE


class _RawSql(msgspec.Struct, frozen=True):
    sql: str


def raw_sql(sql: str) -> Predicate:
    """The rows for which `sql` is true. Only the SQLite compiler knows this node."""
    return cast(Predicate, _RawSql(sql))


def _walk(node: _RawSql, shape: list[object], _: list[object]) -> None:
    shape += (_RawSql, node.sql)


def _write(_: Any, node: _RawSql) -> Sql:
    return Sql(node.sql)


SQLITE.walks[_RawSql] = _walk
SQLITE.writes[_RawSql] = _write
