"""PostgreSQL target: fills an empty schema by COPY.

The tables of a start are made first, and their secondary indexes are dropped until the rows are
there: an index over all rows at once costs a fraction of one row by row. The definitions of the
dropped indexes are in a table, and so is the caller's note. While the note is there, no server
starts on the schema (`pylon.storage.postgres.schema`), and the session holds the lock of schema
changes, so that none starts before the note is there either.

Invariants: tables with rows are never dropped, except those of an unfinished move. The words of
searchable rows are made here, from the rows' JSON. Called by `manager`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson

from pylon.clock import Clock
from pylon.errors import MigrationRefused
from pylon.manifest.model import Manifest
from pylon.query.words import text_fields
from pylon.storage.postgres import meta
from pylon.storage.postgres.locks import SCHEMA, lock_key
from pylon.storage.postgres.names import DOCUMENT_SEQUENCE, SEQ_SEQUENCE, WORDS_COLUMN, quote
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.transfer import rows as row_reads
from pylon.storage.postgres.transfer.rows import find_number, key_arrays, server_errors
from pylon.storage.postgres.transfer.unfinished import NOTE_TABLE
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.postgres.word_vector import vector_of
from pylon.storage.transfer import (
    HISTORY,
    JSON_COLUMN,
    Key,
    Row,
    SourceFacts,
    TransferTable,
    list_tables,
)

_INDEX_TABLE: Final = "_pylon_migration_indexes"
_OWN_OBJECTS: Final = (
    "SELECT relname, relkind FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND relkind IN ('r', 'S')"
)
_SECONDARY_INDEXES: Final = (
    "SELECT i.relname, pg_get_indexdef(i.oid), coalesce(obj_description(i.oid, 'pg_class'), '') "
    "FROM pg_index JOIN pg_class i ON i.oid = indexrelid JOIN pg_class t ON t.oid = indrelid "
    "WHERE t.relnamespace = current_schema()::regnamespace AND NOT indisprimary "
    "AND t.relname = ANY(%s)"
)
# Tables in which a start writes rows of its own.
_STARTED: Final = frozenset({HISTORY, "_pylon_change_seq"})


class PostgresTarget:
    """See the module, and `pylon.storage.transfer.TransferTarget`."""

    def __init__(
        self, session: BlockingSession, place: str, manifest: Manifest, clock: Clock
    ) -> None:
        """Use the session, which becomes the target's own.

        Raises:
            MigrationRefused: another migration, or a start, works on the schema.
            StoreUnavailable
        """
        self.place = place
        self._session = session
        self._conn = session.conn
        self._manifest = manifest
        self._clock = clock
        self._tables = list_tables(manifest)
        try:
            with server_errors(place):
                if not find_number(self._conn, "SELECT (current_schema() IS NOT NULL)::int"):
                    raise MigrationRefused(
                        f"the schema of {place} does not exist",
                        hint="make it (CREATE SCHEMA), or name another one in the URL",
                    )
                self._execute("SET statement_timeout = 0")
                self._execute("SET idle_in_transaction_session_timeout = 0")
                key = lock_key(session, SCHEMA)
                if not find_number(self._conn, f"SELECT pg_try_advisory_lock({key})::int"):
                    raise MigrationRefused(
                        f"another migration, or the start of a server, works on {place}",
                        hint="wait for its end, then run this again",
                    )
        except BaseException:
            session.close()
            raise

    def read_note(self) -> str | None:
        """See `TransferTarget`. A schema that a server has only just made counts as empty."""
        with server_errors(self.place):
            present = self._list_objects()
            if NOTE_TABLE in present:
                found = self._conn.execute(f"SELECT note FROM {NOTE_TABLE}").fetchone()
                return None if found is None else str(found[0])
            names = {table.name for table in self._tables}
            for name in present:
                if name not in names and not name.startswith("_pylon_"):
                    raise MigrationRefused(
                        f"the schema of {self.place} has other tables, such as {name}",
                        hint="name an empty schema in the URL "
                        "(?options=-csearch_path%3DNAME), or another database",
                    )
            for table in self._tables:
                if table.name in present and table.name not in _STARTED and (
                    find_number(self._conn, f"SELECT 1 FROM {quote(table.name)} LIMIT 1")
                ):
                    raise MigrationRefused(
                        f"the database {self.place} has data already: rows in {table.name}",
                        hint="name an empty schema in the URL "
                        "(?options=-csearch_path%3DNAME), or another database",
                    )
            return None

    def make_tables(self, note: str) -> None:
        """See `TransferTarget`."""
        with server_errors(self.place):
            with self._conn.transaction():
                self._drop_own_objects()
            prepare_store(self._session, self._manifest, self._clock)
            with self._conn.transaction():
                self._execute(f"CREATE TABLE {NOTE_TABLE} (id INT PRIMARY KEY, note TEXT)")
                self._execute(
                    f"CREATE TABLE {_INDEX_TABLE} (name TEXT, definition TEXT, comment TEXT)"
                )
                names = [table.name for table in self._tables]
                self._execute(f"INSERT INTO {_INDEX_TABLE} {_SECONDARY_INDEXES}", (names,))
                for name, _, _ in self._list_indexes():
                    self._execute(f"DROP INDEX {quote(name)}")
                self._execute(f"TRUNCATE {', '.join(map(quote, names))}")
                self._write_note(note)

    def add_rows(self, table: TransferTable, rows: Sequence[Row], note: str) -> None:
        """See `TransferTarget`."""
        with self._step(note):
            self._insert(table, rows)

    def change_rows(
        self, changes: Sequence[tuple[TransferTable, Collection[Key], Sequence[Row]]], note: str
    ) -> None:
        """See `TransferTarget`."""
        with self._step(note):
            for table, keys, _ in changes:
                columns, values = key_arrays(table, list(keys))
                key = ", ".join(map(quote, table.key))
                self._execute(
                    f"DELETE FROM {quote(table.name)} WHERE ({key}) IN "
                    f"(SELECT * FROM unnest({columns}))", values,
                )
            for table, _, rows in changes:
                self._insert(table, rows)

    def make_indexes(self, note: str) -> None:
        """See `TransferTarget`. Statistics too: without them the first reads may scan tables."""
        for name, definition, comment in self._list_indexes():
            with self._step(None):
                self._execute(definition)
                if comment:
                    text = comment.replace("'", "''")
                    self._execute(f"COMMENT ON INDEX {quote(name)} IS '{text}'")
                self._execute(f"DELETE FROM {_INDEX_TABLE} WHERE name = %s", (name,))
        with self._step(note):
            for table in self._tables:
                self._execute(f"ANALYZE {quote(table.name)}")

    def write_facts(self, facts: Mapping[str, str], source: SourceFacts, note: str) -> None:
        """See `TransferTarget`."""
        with self._step(note):
            for key in row_reads.moved_facts(self._conn):
                self._execute("DELETE FROM _pylon_meta WHERE key = %s", (key,))
            for key, value in facts.items():
                meta.put(self._session, key, value)
            self._execute("DELETE FROM _pylon_change_seq")
            self._execute("INSERT INTO _pylon_change_seq VALUES (1, %s)", (source.head,))
            newest = find_number(self._conn, f"SELECT max(id) FROM {HISTORY}")
            self._execute(
                "SELECT setval(pg_get_serial_sequence(%s, 'id'), %s, %s)",
                (HISTORY, max(newest, 1), newest > 0),
            )
            for name, number in (
                (SEQ_SEQUENCE, source.head), (DOCUMENT_SEQUENCE, source.document_number),
            ):
                self._execute("SELECT setval(%s, %s, %s)", (name, max(number, 1), number > 0))

    def count_rows(self, table: TransferTable) -> int:
        """See `TransferTarget`."""
        with server_errors(self.place):
            return row_reads.count_rows(self._conn, table)

    def read_rows(self, table: TransferTable) -> Iterator[Row]:
        """See `TransferTarget`."""
        with server_errors(self.place):
            yield from row_reads.read_rows(self._conn, table, None)

    def find_rows(self, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
        """See `TransferTarget`."""
        with server_errors(self.place):
            return row_reads.find_rows(self._conn, table, keys)

    def read_facts(self) -> dict[str, str]:
        """See `TransferTarget`."""
        with server_errors(self.place):
            return row_reads.moved_facts(self._conn)

    def publish(self) -> None:
        """See `TransferTarget`."""
        with server_errors(self.place), self._conn.transaction():
            self._execute(f"DROP TABLE {_INDEX_TABLE}")
            self._execute(f"DROP TABLE {NOTE_TABLE}")

    def close(self) -> None:
        """See `TransferTarget`."""
        self._session.close()

    def _insert(self, table: TransferTable, rows: Sequence[Row]) -> None:
        if not rows:
            return
        columns = ", ".join(map(quote, table.columns))
        entity = table.entity
        if entity is not None and text_fields(entity):
            columns = f"{columns}, {WORDS_COLUMN}"
            json_at = table.columns.index(JSON_COLUMN)
            rows = [
                (*row, vector_of(entity, orjson.loads(row[json_at])).decode()) for row in rows
            ]
        statement: Any = f"COPY {quote(table.name)} ({columns}) FROM STDIN"
        with self._conn.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    def _list_objects(self) -> dict[str, str]:
        """Return the tables and sequences of the schema, with their kind."""
        return {
            str(name): kind.decode() if isinstance(kind, bytes) else str(kind)
            for name, kind in self._conn.execute(_OWN_OBJECTS)
        }

    def _drop_own_objects(self) -> None:
        present = self._list_objects()
        tables = [name for name, kind in present.items() if kind == "r"]
        for name in tables:
            self._execute(f"DROP TABLE {quote(name)} CASCADE")
        for name in self._list_objects():
            self._execute(f"DROP SEQUENCE {quote(name)}")

    def _list_indexes(self) -> list[tuple[str, str, str]]:
        with server_errors(self.place):
            statement: Any = f"SELECT name, definition, comment FROM {_INDEX_TABLE} ORDER BY name"
            return self._conn.execute(statement).fetchall()

    def _write_note(self, note: str) -> None:
        self._execute(
            f"INSERT INTO {NOTE_TABLE} VALUES (1, %s) "
            "ON CONFLICT (id) DO UPDATE SET note = excluded.note", (note,)
        )

    @contextmanager
    def _step(self, note: str | None) -> Iterator[None]:
        with server_errors(self.place), self._conn.transaction():
            yield
            if note is not None:
                self._write_note(note)

    def _execute(self, sql: str, values: Sequence[Any] | None = None) -> None:
        statement: Any = sql
        self._conn.execute(statement, values)
