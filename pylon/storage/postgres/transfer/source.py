"""PostgreSQL source: reads all data of a schema in one REPEATABLE READ transaction.

Invariant: nothing is written. Called by `manager`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pylon.errors import MigrationRefused
from pylon.manifest.model import Manifest
from pylon.storage.postgres import sequences
from pylon.storage.postgres.names import DOCUMENT_SEQUENCE
from pylon.storage.postgres.transfer import rows
from pylon.storage.postgres.transfer.rows import Connection, find_number, server_errors
from pylon.storage.transfer import (
    Key,
    Row,
    SourceFacts,
    TransferTable,
    list_tables,
)

_REMEDY: Final = "start the server on it once with this manifest, stop it, and move it then"
_COLUMNS: Final = (
    "SELECT relname, attname, format_type(atttypid, NULL) FROM pg_attribute "
    "JOIN pg_class ON pg_class.oid = attrelid "
    "WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') "
    "AND attnum > 0 AND NOT attisdropped"
)
_SHOWN_TYPES: Final = {
    "text": "text", "int8": "bigint", "float8": "double precision", "bool": "boolean",
    "bytea": "bytea",
}
_DERIVED: Final = "_words"


class PostgresSource:
    """See the module, and `pylon.storage.transfer.TransferSource`."""

    def __init__(self, conn: Connection, place: str, manifest: Manifest) -> None:
        """Use the connection, which becomes the source's own.

        Raises:
            MigrationRefused: the schema is not that of the manifest.
            StoreUnavailable
        """
        self._conn = conn
        self._place = place
        self._manifest = manifest
        try:
            with server_errors(place):
                conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                self._columns = {
                    (table, column): kind for table, column, kind in conn.execute(_COLUMNS)
                }
                self._require_current()
                self.facts = self._read_source_facts()
        except BaseException:
            conn.close()
            raise

    def list_left_behind(self) -> list[str]:
        """See `TransferSource`."""
        known = {table.name: table for table in list_tables(self._manifest)}
        found: dict[str, None] = {}
        for table, column in self._columns:
            if table in known:
                if column not in known[table].columns and column != _DERIVED:
                    found[f"{table}.{column}: the manifest has no such field"] = None
            elif not table.startswith("_pylon_"):
                found[f"{table}: the manifest has no such entity"] = None
        return list(found)

    def count_rows(self, table: TransferTable) -> int:
        """See `TransferSource`."""
        with server_errors(self._place):
            return rows.count_rows(self._conn, table)

    def read_rows(self, table: TransferTable, after: Key | None = None) -> Iterator[Row]:
        """See `TransferSource`."""
        with server_errors(self._place):
            yield from rows.read_rows(self._conn, table, after)

    def find_rows(self, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
        """See `TransferSource`."""
        with server_errors(self._place):
            return rows.find_rows(self._conn, table, keys)

    def read_facts(self) -> dict[str, str]:
        """See `TransferSource`."""
        with server_errors(self._place):
            return rows.moved_facts(self._conn)

    def close(self) -> None:
        """See `TransferSource`."""
        self._conn.close()

    def _require_current(self) -> None:
        if ("_pylon_meta", "key") not in self._columns:
            raise MigrationRefused(
                f"Pylon has never opened the database {self._place}", hint=_REMEDY
            )
        for table in list_tables(self._manifest):
            for column, kind in zip(table.columns, table.kinds, strict=True):
                wanted = _SHOWN_TYPES[rows.TYPES[kind]]
                found = self._columns.get((table.name, column))
                if found != wanted:
                    raise MigrationRefused(
                        f"the database {self._place} has not the schema of the manifest: "
                        f"{table.name}.{column} is {found or 'missing'}, expected {wanted}",
                        hint=_REMEDY,
                    )

    def _read_source_facts(self) -> SourceFacts:
        head = find_number(self._conn, sequences.HEAD)
        number = find_number(self._conn, sequences.NEWEST_UPDATE)
        starts = find_number(self._conn, "SELECT count(*) FROM _pylon_schema_history")
        marks = find_number(self._conn, sequences.NEWEST_MARK)
        facts = rows.moved_facts(self._conn)
        # Documents may be gone whose numbers clients have seen.
        used = find_number(
            self._conn, f"SELECT last_value FROM {DOCUMENT_SEQUENCE} WHERE is_called"
        )
        return SourceFacts(
            store="postgresql", place=self._place, lineage=facts.get("lineage", ""), head=head,
            document_number=max(number, used),
            log_from=(find_number(self._conn, sequences.OLDEST) or head + 1) - 1,
            stamp=f"{head}/{number}/{starts}/{marks}",
        )
