"""SQLite catalogue: implements `pylon.schema.database.Database` for one connection.

It reads only. A plan is made inside the transaction that executes it. Called by the modules of this
package, which pass it to `pylon.schema.plan.make_plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apsw

from pylon.manifest import references
from pylon.manifest.model import Entity, Field, Index, Manifest
from pylon.schema import options
from pylon.schema.columns import index_name
from pylon.schema.convert import kinds_of
from pylon.schema.live import LiveColumn, LiveIndex, LiveSchema, LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.plan import make_plan
from pylon.schema.steps import Plan
from pylon.storage.sqlite import meta
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import ddl
from pylon.storage.sqlite.schema.history import has_table, own_indexes
from pylon.storage.sqlite.schema.legacy_fts import legacy_search_objects
from pylon.storage.sqlite.schema.live import introspect


def plan_for(
    conn: apsw.Connection, manifest: Manifest, asked: MigrationOptions = options.NONE
) -> Plan:
    """Compare the database with the manifest. Return the plan."""
    return make_plan(SqliteCatalogue(conn), manifest, asked)


def references_by_default(conn: apsw.Connection) -> bool:
    """Whether the database checks references by default: a new one does.

    See `pylon.manifest.references`. A database that another program has made, or an earlier
    version, has no mark.
    """
    if has_table(conn, "_pylon_meta"):
        return meta.get(conn, references.FACT) == "check"
    return conn.execute("SELECT 1 FROM sqlite_schema LIMIT 1").get is None


def kinds_before(conn: apsw.Connection, entity: str) -> dict[str, str]:
    """Return the field types with which `apply` last wrote the rows of `entity`.

    The keys are lower-case field names. Empty for a table that `apply` has not written.
    """
    return kinds_of(
        meta.get(conn, f"shape:{entity}") if has_table(conn, "_pylon_meta") else None
    )


class SqliteCatalogue:
    """See the module."""

    title = "SQLite"
    name_bytes = None
    reserved_prefixes = ("sqlite_", "_pylon_")
    has_case = False
    adds_uniqueness = False

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn
        self.column_limit = conn.limit(apsw.SQLITE_LIMIT_COLUMN)

    def introspect(self, names: Sequence[str]) -> LiveSchema:
        """See `Database`."""
        return introspect(self._conn, tuple(names))

    def own_indexes(self) -> Mapping[str, str]:
        """See `Database`."""
        return own_indexes(self._conn)

    def references_by_default(self) -> bool:
        """See `Database`."""
        return references_by_default(self._conn)

    def kinds_before(self, entity: str) -> Mapping[str, str]:
        """See `Database`."""
        return kinds_before(self._conn, entity)

    def foreign_search(self, table: str) -> Sequence[tuple[str, str]]:
        """See `Database`."""
        return legacy_search_objects(self._conn, table)

    def has_default(self, table: LiveTable, column: LiveColumn) -> bool:
        """See `Database`."""
        found = self._conn.execute(
            "SELECT 1 FROM pragma_table_info(?) WHERE name = ? AND dflt_value IS NOT NULL",
            (table.source, column.source),
        ).get
        return found is not None

    def count_rows(self, table: LiveTable) -> int:
        """See `Database`."""
        return int(self._conn.execute(f"SELECT count(*) FROM {quote(table.source)}").get)

    def count_nulls(self, table: LiveTable, column: LiveColumn) -> int:
        """See `Database`."""
        return int(self._conn.execute(
            f"SELECT count(*) FROM {quote(table.source)} WHERE {quote(column.source)} IS NULL"
        ).get)

    def has_values(self, table: LiveTable, column: LiveColumn) -> bool:
        """See `Database`."""
        return self._conn.execute(
            f"SELECT 1 FROM {quote(table.source)} WHERE {quote(column.source)} IS NOT NULL LIMIT 1"
        ).get is not None

    def values(self, table: LiveTable, column: LiveColumn) -> Iterable[tuple[str, Any]]:
        """See `Database`."""
        name = quote(column.source)
        found: Any = self._conn.execute(
            f"SELECT id, {name} FROM {quote(table.source)} WHERE {name} IS NOT NULL"
        )
        return found  # type: ignore[no-any-return]

    def find_repeated(
        self, table: LiveTable, columns: Sequence[LiveColumn], where: str, *, is_folded: bool,
        limit: int,
    ) -> Sequence[tuple[Sequence[object], int]]:
        """See `Database`."""
        names = [quote(column.source) for column in columns]
        if is_folded:
            ddl.register_fold(self._conn)
            names = [f"{ddl.FOLD_FUNCTION}({name})" for name in names]
        group = ", ".join(names)
        rows: list[Any] = self._conn.execute(
            f"SELECT {group}, count(*) FROM {quote(table.source)} "
            f"WHERE {' AND '.join(f'{name} IS NOT NULL' for name in names)} AND ({where or '1'}) "
            f"GROUP BY {group} HAVING count(*) > 1 LIMIT {limit}"
        ).fetchall()
        return [(values, count) for *values, count in rows]

    def is_same_index(self, existing: LiveIndex, entity: Entity, index: Index) -> bool:
        """See `Database`."""
        if index.where is not None or index.descending:
            name = index_name(entity, index)
            return existing.sql == ddl.create_index(name, entity, index)
        return (
            existing.table.lower() == entity.name.lower()
            and tuple(f.lower() for f in existing.fields) == tuple(f.lower() for f in index.fields)
            and existing.unique == index.unique and not existing.partial
            and " DESC" not in existing.sql.upper()
        )

    def column_type(self, field: Field) -> str:
        """See `Database`."""
        return ddl.COLUMN_TYPES[field.type]

    def key_change(self, column: LiveColumn) -> str:
        """See `Database`: an id may have any type."""
        return ""

    def is_lossless(self, column: LiveColumn, field: Field) -> bool:
        """See `Database`: the published server's columns on SQLite are Pylon's."""
        return False

    def fitting_name(self, name: str) -> str:
        """See `Database`: SQLite keeps names of any length."""
        return name

    def drop_not_null(self, table: str, column: str) -> str:
        """See `Database`: the table has to be rebuilt."""
        return ""

    # The statements are functions of `ddl`.
    where_text = staticmethod(ddl.where_text)
    create_table = staticmethod(ddl.create_table)
    add_column = staticmethod(ddl.add_column)
    add_filled_column = staticmethod(ddl.add_filled_column)
    add_json_column = staticmethod(ddl.add_json_column)
    add_seq_column = staticmethod(ddl.add_seq_column)
    add_fold_column = staticmethod(ddl.add_fold_column)
    fill_folds = staticmethod(ddl.fill_folds)
    drop_column = staticmethod(ddl.drop_column)
    create_index = staticmethod(ddl.create_index)
    drop_index = staticmethod(ddl.drop_index)
