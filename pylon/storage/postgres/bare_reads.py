"""Bare reads: reads rows with the driver alone, without Pylon's layers.

The benchmark compares reads by key with them: a prepared statement on one connection, one round
trip each, as in a program that uses libpq directly. Made by `backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq.abc import PGconn

from pylon.storage.postgres.connect import open_connection, translate
from pylon.storage.postgres.names import quote
from pylon.storage.postgres.parameters import encode_parameters


class PostgresBareReads:
    """Reads rows on a connection of its own."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            StoreUnavailable
        """
        try:
            self._conn = open_connection(url, "bench", "", writes=False)
        except psycopg.Error as error:
            raise translate(error) from error
        self._pgconn: PGconn = self._conn.pgconn
        self._count = 0

    def get(self, entity: str) -> Callable[[str], Any]:
        """Return the function that reads a row by its id."""
        return self._prepare(f"SELECT _json FROM {quote(entity)} WHERE id = $1")

    def lookup(self, entity: str, field: str) -> Callable[[object], Any]:
        """Return the function that reads the first row with a value in a field."""
        return self._prepare(
            f"SELECT _json FROM {quote(entity)} WHERE {quote(field)} = $1 ORDER BY id LIMIT 1"
        )

    def close(self) -> None:
        """Close the connection."""
        self._conn.close()

    def _prepare(self, text: str) -> Callable[[Any], Any]:
        self._count += 1
        name = b"bare_%d" % self._count
        self._pgconn.prepare(name, text.encode())
        execute = self._pgconn.exec_prepared

        def read(value: Any) -> bytes | None:
            values: Any = encode_parameters((value,))[0]
            result = execute(name, values)
            return result.get_value(0, 0) if result.ntuples else None

        return read
