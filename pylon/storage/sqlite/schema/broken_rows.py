"""Broken rows of a SQLite database: see `pylon.storage.core.broken_rows`. Called by `apply`, within
the transaction of a start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from pylon import limits
from pylon.manifest.model import Entity, Field, Manifest
from pylon.storage.core import broken_rows
from pylon.storage.sqlite import meta
from pylon.storage.sqlite.names import quote


def report_broken_rows(conn: apsw.Connection, manifest: Manifest) -> dict[tuple[str, str], int]:
    """Log the number of broken rows of each field that has some. Return the numbers."""
    def read_first(entity: Entity, fields: Sequence[Field]) -> Iterable[Sequence[Any]]:
        columns = ", ".join(quote(field.name) for field in fields)
        rows: Any = conn.execute(
            f"SELECT {columns} FROM {quote(entity.name)} ORDER BY id LIMIT ?",
            (limits.BROKEN_ROWS_SCANNED,),
        )
        return rows  # type: ignore[no-any-return]

    return broken_rows.report_broken_rows(manifest, _Facts(conn), read_first)


class _Facts:
    """The facts of the connection's database."""

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn

    def get(self, key: str) -> str | None:
        """See `Facts`."""
        return meta.get(self._conn, key)

    def put(self, key: str, value: str) -> None:
        """See `Facts`."""
        meta.put(self._conn, key, value)
