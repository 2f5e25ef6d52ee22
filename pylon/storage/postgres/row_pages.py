"""Row pages: the rows of a query as their JSON, within a bound of bytes.

No answer above the bound comes into memory: the server sends no row that a page has no room for.
Rows are usually so small that a page of the largest allowed ones is not too large. If one is
larger, the server adds the sizes up, for the next pages of the entity too.

Made by `reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from psycopg.pq.abc import PGresult

from pylon import limits
from pylon.storage.postgres.reads import bounded, counted
from pylon.storage.sql.clause import SqlClause

_LARGE_PAGES: Final = 64  # pages of an entity after one with a large row


class RowPages:
    """See the module."""

    __slots__ = ("_large_rows", "_run")

    def __init__(self, run: Callable[[str, Sequence[Any]], PGresult]) -> None:
        """Args: `run` carries out a statement."""
        self._run = run
        self._large_rows: dict[str, int] = {}  # pages to come, by entity

    def read(
        self, entity: str, select: SqlClause, limit: int, size_bytes: int, spare: int
    ) -> tuple[list[bytes], bool]:
        """Return the first rows of a select, as many as `size_bytes` holds and one at least, and
        whether there are more.

        Args:
            limit: the most rows that it selects.
            spare: how many times `size_bytes` the server may send.
        """
        large = self._large_rows.get(entity, 0)
        if not large:
            row_bytes = min(size_bytes * spare, limits.LIST_BYTES) // max(limit, 1)
            result = self._run(*bounded(select, row_bytes))
            value = result.get_value
            rows = [value(row, 0) for row in range(result.ntuples)]
            if None not in rows:
                return _cut(cast("list[bytes]", rows), size_bytes)
            large = _LARGE_PAGES
        self._large_rows[entity] = large - 1
        result = self._run(*counted(select, size_bytes))
        value, count = result.get_value, result.ntuples
        found = [row for n in range(count) if (row := value(n, 0)) is not None]
        total = int(value(count - 1, 1) or 0) if count else 0
        return found, total > size_bytes and len(found) < count


def _cut(rows: list[bytes], size_bytes: int) -> tuple[list[bytes], bool]:
    """Return the first rows that `size_bytes` hold, one at least, and whether there are more."""
    total = sum(map(len, rows))
    if total <= size_bytes:
        return rows, False
    count = len(rows)
    while count > 1 and total > size_bytes:
        count -= 1
        total -= len(rows[count])
    return rows[:count], count < len(rows)
