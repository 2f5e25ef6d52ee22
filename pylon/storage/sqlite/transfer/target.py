"""SQLite target: fills a new database file, which gets its name when everything is in it.

The file is `<database>.migrating` until then. The tables of a start are made first, and their
secondary indexes are dropped until the rows are there. The texts of the dropped indexes are in a
table, and so is the caller's note, so that a killed move goes on.

Invariants: nothing is at the final name before `publish`. One process at a time has the file: its
connection holds SQLite's exclusive lock. Called by `manager`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from pylon.clock import Clock
from pylon.data_dir import give_path_to_owner, sync_path
from pylon.errors import MigrationRefused
from pylon.manifest.model import Manifest
from pylon.storage.sqlite import log, meta
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import history, search
from pylon.storage.sqlite.schema.apply import prepare_store
from pylon.storage.sqlite.short_rows import note_short_rows
from pylon.storage.sqlite.transfer.source import RowReads, moved_facts, searched, unreadable
from pylon.storage.transfer import (
    DOCUMENT_UPDATES,
    Key,
    Row,
    SourceFacts,
    TransferTable,
    list_tables,
)

_NOTE: Final = "_pylon_migration"
_INDEXES: Final = "_pylon_migration_indexes"


def unfinished_path(path: Path) -> Path:
    """Return the name of a database that is being filled."""
    return path.with_name(f"{path.name}.migrating")


class SqliteTarget:
    """See the module, and `pylon.storage.transfer.TransferTarget`."""

    def __init__(self, path: Path, manifest: Manifest, clock: Clock) -> None:
        """
        Raises:
            MigrationRefused: there is a database already.
            StoreUnavailable: the file cannot be opened.
        """
        self.place = str(path)
        self._path = path
        self._file = unfinished_path(path)
        self._manifest = manifest
        self._clock = clock
        if path.exists():
            raise MigrationRefused(
                f"there is a database at {path} already",
                hint="move it away, or name another file with --to",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._conn = self._open()

    def read_note(self) -> str | None:
        """See `TransferTarget`."""
        with self._errors():
            if not history.has_table(self._conn, _NOTE):
                return None
            note: Any = self._conn.execute(f"SELECT note FROM {_NOTE}").get
            return None if note is None else str(note)

    def make_tables(self, note: str) -> None:
        """See `TransferTarget`."""
        with self._errors():
            self._conn.close()
            _remove(self._file)
            self._conn = self._open()
            prepare_store(self._conn, self._manifest, self._clock)
        with self._step(None):
            self._conn.execute(f"CREATE TABLE {_NOTE} (id INTEGER PRIMARY KEY, note TEXT)")
            self._conn.execute(f"CREATE TABLE {_INDEXES} (name TEXT, sql TEXT)")
            for table in list_tables(self._manifest):
                self._conn.execute(f"DELETE FROM {quote(table.name)}")
                self._conn.execute(
                    f"INSERT INTO {_INDEXES} SELECT name, sql FROM sqlite_schema "
                    "WHERE type = 'index' AND sql IS NOT NULL AND tbl_name = ?", (table.name,)
                )
            for name, _ in self._listed_indexes():
                self._conn.execute(f"DROP INDEX {quote(name)}")
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
                where = " AND ".join(f"{quote(name)} = ?" for name in table.key)
                self._conn.executemany(f"DELETE FROM {quote(table.name)} WHERE {where}", keys)
            for table, _, rows in changes:
                self._insert(table, rows)

    def make_indexes(self, note: str) -> None:
        """See `TransferTarget`."""
        for name, sql in self._listed_indexes():
            with self._step(None):
                self._conn.execute(sql)
                self._conn.execute(f"DELETE FROM {_INDEXES} WHERE name = ?", (name,))
        with self._step(note):
            note_short_rows(self._conn, self._manifest, is_stale=True)

    def write_facts(self, facts: Mapping[str, str], source: SourceFacts, note: str) -> None:
        """See `TransferTarget`."""
        with self._step(note):
            # Built here and not with the other indexes: rows may change until this step.
            for entity in searched(self._manifest):
                search.build(self._conn, entity)
            note_short_rows(self._conn, self._manifest, is_stale=True)
            for key in moved_facts(self._conn):
                meta.delete(self._conn, key)
            for key, value in facts.items():
                meta.put(self._conn, key, value)
            meta.put(self._conn, "history_rows", str(history.row_count(self._conn)))
            log.put_counter(self._conn, source.head)
            self._conn.execute("DELETE FROM sqlite_sequence WHERE name = ?", (DOCUMENT_UPDATES,))
            self._conn.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
                (DOCUMENT_UPDATES, source.document_number),
            )

    def count_rows(self, table: TransferTable) -> int:
        """See `TransferTarget`."""
        with self._errors():
            return RowReads(self._conn, self._manifest).count(table)

    def read_rows(self, table: TransferTable) -> Iterator[Row]:
        """See `TransferTarget`."""
        return RowReads(self._conn, self._manifest).read(table)

    def find_rows(self, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
        """See `TransferTarget`."""
        return RowReads(self._conn, self._manifest).find(table, keys)

    def read_facts(self) -> dict[str, str]:
        """See `TransferTarget`."""
        with self._errors():
            return moved_facts(self._conn)

    def publish(self) -> None:
        """See `TransferTarget`. The file gets its name first: a move that is killed before the
        note is gone has nothing left to do."""
        with self._errors():
            self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._conn.close()
            give_path_to_owner(self._file)
            sync_path(self._file)
            try:
                os.link(self._file, self._path)
            except FileExistsError:
                raise MigrationRefused(
                    f"a database at {self._path} came into being meanwhile",
                    hint="move it away, then run this again: it has only this step left",
                ) from None
            _remove(self._file)
            sync_path(self._path.parent)
            with closing(apsw.Connection(os.fspath(self._path))) as conn:
                with conn:
                    conn.execute(f"DROP TABLE IF EXISTS {_INDEXES}")
                    conn.execute(f"DROP TABLE IF EXISTS {_NOTE}")
                conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """See `TransferTarget`."""
        self._conn.close()

    def _open(self) -> apsw.Connection:
        with self._errors():
            conn = apsw.Connection(os.fspath(self._file))
            try:
                # The lock stays with the connection: one migration at a time.
                conn.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
                conn.execute("PRAGMA journal_mode = WAL").fetchall()
                conn.execute("BEGIN IMMEDIATE; COMMIT")
            except apsw.BusyError:
                conn.close()
                raise MigrationRefused(
                    f"another migration works on {self._file}",
                    hint="wait for its end, then run this again",
                ) from None
            conn.execute("PRAGMA synchronous = NORMAL")
            conn.execute("PRAGMA cache_size = -65536")
            return conn

    def _insert(self, table: TransferTable, rows: Sequence[Row]) -> None:
        columns = ", ".join(map(quote, table.columns))
        marks = ", ".join("?" * len(table.columns))
        self._conn.executemany(
            f"INSERT INTO {quote(table.name)} ({columns}) VALUES ({marks})", rows
        )

    def _listed_indexes(self) -> list[tuple[str, str]]:
        with self._errors():
            return [
                (str(name), str(sql))
                for name, sql in self._conn.execute(f"SELECT name, sql FROM {_INDEXES}")
            ]

    def _write_note(self, note: str) -> None:
        self._conn.execute(f"INSERT OR REPLACE INTO {_NOTE} (id, note) VALUES (1, ?)", (note,))

    @contextmanager
    def _step(self, note: str | None) -> Iterator[None]:
        with self._errors(), self._conn:
            yield
            if note is not None:
                self._write_note(note)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as ex:
            raise unreadable(str(self._file), ex) from ex


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
