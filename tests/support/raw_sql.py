"""A predicate of SQL text, for tests of the SQLite reader's time limits."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from pylon.query.predicate import Predicate
from pylon.storage.sqlite import compiler


class _RawSql(msgspec.Struct, frozen=True):
    sql: str


def raw_sql(sql: str) -> Predicate:
    """The rows for which `sql` is true. Only the SQLite compiler knows this node."""
    return cast(Predicate, _RawSql(sql))


def _walk(node: _RawSql, shape: list[object], _: list[object]) -> None:
    shape += (_RawSql, node.sql)


def _write(_: Any, node: _RawSql) -> compiler._Sql:
    return compiler._Sql(node.sql)


compiler._WALKS[_RawSql] = _walk
compiler._WRITES[_RawSql] = _write
