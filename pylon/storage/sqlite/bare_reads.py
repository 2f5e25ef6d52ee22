"""Bare reads: reads rows with SQLite's driver alone, without Pylon's layers.

The benchmark compares reads by key with them. Made by `backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pylon.storage.sqlite.connect import open_reader
from pylon.storage.sqlite.names import quote


class SqliteBareReads:
    """Reads rows on a connection of its own."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            StoreUnavailable
        """
        self._conn = open_reader(path)

    def get(self, entity: str) -> Callable[[str], Any]:
        """Return the function that reads a row by its id."""
        execute = self._conn.execute
        sql = f"SELECT CAST(_json AS BLOB) FROM {quote(entity)} WHERE id = ?"
        return lambda row_id: execute(sql, (row_id,)).get

    def lookup(self, entity: str, field: str) -> Callable[[object], Any]:
        """Return the function that reads the first row with a value in a field."""
        execute = self._conn.execute
        sql = (
            f"SELECT CAST(_json AS BLOB) FROM {quote(entity)} WHERE {quote(field)} = ? "
            "ORDER BY id LIMIT 1"
        )
        return lambda value: execute(sql, (value,)).get

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()
