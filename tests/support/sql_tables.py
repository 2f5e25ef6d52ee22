"""Tables on the store of the running test, for tests of conditions in SQL without a writer.

A table has the columns of an entity and indexes of its manifest. `ids` compiles a predicate twice,
with the kept shapes of the table and without any, and asks the store with or without its indexes.
Used by the tests that compare verdicts of SQL and of Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import apsw

from pylon.manifest.model import Entity, FieldType, Manifest
from pylon.query.patterns import UNMETERED
from pylon.query.predicate import Predicate
from pylon.storage.core.names import quote
from pylon.storage.postgres.dialect import dialect_of, numbered
from pylon.storage.sql.clause import SqlClause
from pylon.storage.sql.compiler import CompiledCache, PredicateCompiler, compile_predicate
from pylon.storage.sql.predicate_sql import Dialect
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.patterns import add_functions
from pylon.storage.sqlite.schema.ddl import COLUMN_TYPES
from tests.support import stores
from tests.support.moments import stored_moment
from tests.support.postgres_rows import open_tables, statements_of

Row = Mapping[str, Any]
_BOOLEAN = 16  # the type, in PostgreSQL's results
_SCANS = {
    scans: f"SELECT set_config('enable_seqscan', '{'on' if scans else 'off'}', false)"
    for scans in (True, False)
}


class Rows(Protocol):
    """The rows of one table."""

    def put(self, rows: Iterable[Row]) -> None:
        """Replace all rows."""

    def ask(self, selected: str, clause: SqlClause) -> list[Any]:
        """Return what the rows of a condition have: SQLite with every index and without any, and
        PostgreSQL the one time so and the other so."""


class SqlTable:
    """See the module."""

    def __init__(self, entity: Entity, dialect: Dialect, rows: Rows) -> None:
        self._entity = entity
        self._dialect = dialect
        self._rows = rows
        self._compiler = PredicateCompiler(dialect, entity, CompiledCache())
        self.put = rows.put

    def ids(self, predicate: Predicate, is_led: bool = False) -> set[str]:
        """Return the ids of the rows for which the predicate holds."""
        clause = self._compiler.compile(predicate, is_led)
        alone = compile_predicate(self._dialect, self._entity, predicate, is_led)
        assert clause == alone, "the shape kept other SQL"
        return set(self._rows.ask("id", clause))

    def verdicts(self, predicate: Predicate) -> list[Any]:
        """Return what the condition is, as a value, for each row."""
        clause = self._compiler.compile(predicate)
        return self._rows.ask(f"({clause.sql})", SqlClause(self._dialect.true.sql, clause.params))


class _SqliteRows:
    def __init__(self, entity: Entity) -> None:
        self._entity = entity
        self._conn = apsw.Connection(":memory:")
        add_functions(self._conn, UNMETERED)
        columns = ", ".join(f"{quote(f.name)} {COLUMN_TYPES[f.type]}" for f in entity.fields)
        table = quote(entity.name)
        self._conn.execute(
            f"CREATE TABLE {table} (id TEXT PRIMARY KEY NOT NULL, {columns}) WITHOUT ROWID"
        )
        for index in entity.indexes:
            names = ", ".join(map(quote, index.fields))
            self._conn.execute(f"CREATE INDEX {quote(index.name)} ON {table} ({names})")
        marks = ", ".join("?" * len(entity.columns))
        self._insert = f"INSERT INTO {table} VALUES ({marks})"
        self._table = table

    def put(self, rows: Iterable[Row]) -> None:
        self._conn.execute(f"DELETE FROM {self._table}")
        for row in rows:
            values = _stored(self._entity, row)
            self._conn.execute(
                self._insert, tuple([int(v) if isinstance(v, bool) else v for v in values])
            )

    def ask(self, selected: str, clause: SqlClause) -> list[Any]:
        found = {
            tuple(sorted([value for (value,) in self._conn.execute(
                f"SELECT {selected} FROM {self._table} {how} WHERE {clause.sql}", clause.params
            )], key=str))
            for how in ("", "NOT INDEXED")
        }
        assert len(found) == 1, "SQLite does not agree with itself"
        return list(found.pop())


class _PostgresRows:
    def __init__(self, entity: Entity, url: str) -> None:
        self._entity = entity
        self._session = open_tables(url, Manifest("tables", "1", (entity,)))
        self._scans = True
        self._puts: list[Any] = []  # sent with the next question
        self._table = quote(entity.name)

    def put(self, rows: Iterable[Row]) -> None:
        self._puts = statements_of(self._entity, self._entity.columns, [
            _stored(self._entity, row) for row in rows
        ])

    def ask(self, selected: str, clause: SqlClause) -> list[Any]:
        text = f"SELECT {selected} FROM {self._table} WHERE {clause.sql}"
        asked: tuple[str, Any] = numbered(text), clause.params
        self._scans = not self._scans
        puts, self._puts = self._puts, []
        *_, result = self._session.pipeline([*puts, (_SCANS[self._scans], ()), asked])
        values = [result.get_value(row, 0) for row in range(result.ntuples)]
        if result.ftype(0) == _BOOLEAN:
            return [None if value is None else value == b"t" for value in values]
        return [None if value is None else value.decode() for value in values]


def _stored(entity: Entity, row: Row) -> list[Any]:
    """The values that the columns have for a row."""
    values = []
    for name in entity.columns:
        field = entity.by_name.get(name)
        is_moment = field is not None and field.type is FieldType.DATETIME
        values.append(stored_moment(row[name]) if is_moment else row[name])
    return values


_kept: dict[tuple[str, str], tuple[str, SqlTable]] = {}


def table_of(entity: Entity) -> SqlTable:
    """Return the table of an entity on the store of the running test."""
    store = stores.current()
    make: Callable[[], Rows]
    url = ""
    if store.name == stores.SQLITE:
        dialect, make = SQLITE, lambda: _SqliteRows(entity)
    else:
        url = store.settings_at(Path(f"/tables/{id(entity)}"))["DATABASE_URL"]
        dialect = dialect_of(Manifest("tables", "1", (entity,)))
        make = lambda: _PostgresRows(entity, url)  # noqa: E731
    key = store.name, f"{entity.name} {id(entity)}"
    known = _kept.get(key)
    if known is None or known[0] != url:
        known = _kept[key] = url, SqlTable(entity, dialect, make())
    return known[1]
