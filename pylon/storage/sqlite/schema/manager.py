"""SQLite schema manager: implements `pylon.storage.schemas.SchemaManager` for one SQLite file.

Every method opens a connection of its own and closes it. It converts errors of apsw to Pylon's,
with the path and SQLite's reason. Made by `pylon.storage.sqlite.backend`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import apsw
import orjson

from pylon.clock import SystemClock
from pylon.errors import PylonError, SchemaRefused, StoreUnavailable
from pylon.manifest.model import Entity, Manifest
from pylon.manifest.references import FACT, checked_references
from pylon.schema.columns import fold_column, fold_fields, fold_index, index_name
from pylon.schema.live import LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Plan, Step
from pylon.storage.core.constraint_errors import constraint_error
from pylon.storage.core.references import reference_not_found
from pylon.storage.ops import InsertRow
from pylon.storage.schemas import ColumnInfo, IndexInfo, ReferenceReport, SearchCheck, TableInfo
from pylon.storage.sqlite import meta
from pylon.storage.sqlite.connect import open_reader, open_writer
from pylon.storage.sqlite.constraint_errors import ConstraintErrors
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.pragmas import BUSY_TIMEOUT_MS
from pylon.storage.sqlite.schema import ddl, history
from pylon.storage.sqlite.schema.catalogue import plan_for, references_by_default
from pylon.storage.sqlite.schema.live import introspect, table_names
from pylon.storage.sqlite.schema.references import find_broken
from pylon.storage.sqlite.schema.rewrite import apply_plan
from pylon.storage.sqlite.schema.search import build, check
from pylon.storage.sqlite.schema.trial import refuse_unreachable
from pylon.values import EntityCodec, fold_case


class SqliteSchema:
    """See the module."""

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        """Args: `is_new`: treat the database as new, even if a file exists at the path."""
        self._path = path
        self._is_new = is_new

    def refuse_unreachable(self, manifest: Manifest) -> None:
        """See `SchemaManager`."""
        refuse_unreachable(None if self._is_new else self._path, manifest)

    def inspect(self) -> list[TableInfo]:
        """See `SchemaManager`."""
        with closing(open_reader(self._path)) as conn:
            live = introspect(conn, tuple(table_names(conn)))
        return [_table_info(table) for table in live.tables.values()]

    def history(self, limit: int) -> list[dict[str, Any]]:
        """See `SchemaManager`."""
        with closing(open_reader(self._path)) as conn:
            try:
                return history.entries(conn, limit)
            except apsw.SQLError as ex:  # the table of this name belongs to another program
                raise StoreUnavailable(f"the history cannot be read: {error_text(ex)}") from ex

    def plan(self, manifest: Manifest, options: MigrationOptions) -> Plan:
        """See `SchemaManager`."""
        try:
            with closing(self._open_or_empty()) as conn:
                history.refuse_newer(conn)
                with conn:  # one snapshot for all reads
                    planned = plan_for(conn, manifest, options)
        except apsw.Error as ex:
            raise SchemaRefused(f"{self._path} cannot be read: {error_text(ex)}") from ex
        return planned

    def apply(
        self, manifest: Manifest, options: MigrationOptions, *, allow_destructive: bool
    ) -> list[Step]:
        """See `SchemaManager`."""
        try:
            with closing(open_writer(self._path)) as conn:
                planned, prepared = apply_plan(
                    conn, manifest, options, allow_destructive, SystemClock()
                )
                conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except apsw.Error as ex:
            raise SchemaRefused(
                f"{self._path}: nothing was changed: {error_text(ex)}"
            ) from ex
        return [*planned.rewrites, *prepared.plan.steps]

    def count_pending(self, manifest: Manifest) -> int:
        """See `SchemaManager`: a start leaves nothing."""
        return 0

    def finish_pending(self, manifest: Manifest) -> int:
        """See `SchemaManager`."""
        return 0

    def plan_contract(self, manifest: Manifest, options: MigrationOptions) -> Plan:
        """See `SchemaManager`: one server has the file, so nothing waits for others."""
        return Plan((), (), ())

    def finish_contract(
        self, manifest: Manifest, options: MigrationOptions, *, allow_destructive: bool
    ) -> list[Step]:
        """See `SchemaManager`."""
        return []

    def trigram_statements(self, entity: str, field: str) -> list[str]:
        """See `SchemaManager`: a FTS5 table would be one more table to keep."""
        return []

    def make_trigram_index(self, entity: str, field: str) -> None:
        """See `SchemaManager`."""

    def check_search(self, entities: Sequence[Entity]) -> list[SearchCheck]:
        """See `SchemaManager`."""
        flags = apsw.SQLITE_OPEN_READWRITE  # the database is only read; the fresh index is in temp
        try:
            with closing(apsw.Connection(str(self._path), flags=flags)) as conn:
                conn.set_busy_timeout(BUSY_TIMEOUT_MS)
                with conn:
                    found = [check(conn, entity) for entity in entities]
        except apsw.SQLError as ex:
            raise self._schema_mismatch(ex) from ex
        return found

    def build_search(self, entities: Sequence[Entity]) -> dict[str, int]:
        """See `SchemaManager`."""
        try:
            with closing(open_writer(self._path)) as conn:
                conn.execute("BEGIN IMMEDIATE")
                built = {entity.name: build(conn, entity) for entity in entities}
                conn.execute("COMMIT")
        except apsw.SQLError as ex:
            raise self._schema_mismatch(ex) from ex
        return built

    def export(self, entities: Sequence[Entity]) -> Iterator[tuple[Entity, bytes]]:
        """See `SchemaManager`."""
        with ExitStack() as stack:
            conn = stack.enter_context(closing(open_reader(self._path)))
            try:
                history.refuse_newer(conn)
                stack.enter_context(conn)  # one transaction, so one snapshot
                for entity in entities:
                    for row_json in _rows_of(conn, entity):
                        yield entity, row_json
            except apsw.Error as ex:
                raise StoreUnavailable(
                    f"{self._path} cannot be read: {error_text(ex)}"
                ) from ex

    def has_rows(self, manifest: Manifest) -> bool:
        """See `SchemaManager`."""
        with closing(open_reader(self._path)) as conn:
            tables = introspect(conn, tuple(e.name for e in manifest.entities)).tables.values()
            return any(
                conn.execute(f"SELECT 1 FROM {quote(table.source)} LIMIT 1").get is not None
                for table in tables
            )

    def find_conflict(
        self, manifest: Manifest, inserts: Sequence[InsertRow]
    ) -> tuple[InsertRow, PylonError] | None:
        """See `SchemaManager`."""
        with closing(apsw.Connection(":memory:")) as conn:
            errors = {}
            for entity in manifest.entities:
                errors[entity.name] = ConstraintErrors(entity)
                conn.execute(ddl.create_table(entity))
                for index in entity.indexes:
                    if index.unique:
                        full = index_name(entity, index)
                        conn.execute(ddl.create_index(full, entity, index))
                for field in fold_fields(entity):
                    index = fold_index(entity, field)
                    conn.execute(ddl.create_index(index.name, entity, index))
            for insert in inserts:
                entity = manifest.by_name[insert.entity]
                folds = fold_fields(entity)
                names = (*entity.columns, *map(fold_column, folds))
                columns = ", ".join(quote(name) for name in names)
                marks = ", ".join("?" * len(names))
                row = orjson.loads(insert.row_json)
                try:
                    conn.execute(
                        f"INSERT INTO {quote(entity.name)} ({columns}) VALUES ({marks})",
                        (insert.row_id, *insert.values, *(fold_case(row[f.name]) for f in folds)),
                    )
                except apsw.ConstraintError as ex:
                    return insert, constraint_error(
                        entity.name, errors[entity.name].translate(ex),
                        orjson.loads(insert.row_json),
                        client_id_given=insert.client_id_given,
                    )
            with closing(self._open_or_empty()) as present:
                by_default = references_by_default(present)
            wanted = checked_references(manifest, by_default=by_default)
            for broken in find_broken(conn, wanted):
                row_id, value = broken.examples[0]
                insert = next(
                    i for i in inserts
                    if (i.entity, i.row_id) == (broken.reference.entity, row_id)
                )
                return insert, reference_not_found(broken.reference, value)
        return None

    def references(self, manifest: Manifest) -> ReferenceReport:
        """See `SchemaManager`."""
        wanted = checked_references(manifest, by_default=True)
        with closing(open_reader(self._path)) as conn:
            history.refuse_newer(conn)
            with conn:  # one snapshot for all reads
                is_default = references_by_default(conn)
                broken = find_broken(conn, wanted)
        return ReferenceReport(is_default, tuple(broken))

    def check_references(self, *, is_default: bool) -> None:
        """See `SchemaManager`."""
        try:
            with closing(open_writer(self._path)) as conn:
                history.refuse_newer(conn)
                meta.put(conn, FACT, "check" if is_default else "none")
        except apsw.SQLError as ex:
            raise self._schema_mismatch(ex) from ex

    def _open_or_empty(self) -> apsw.Connection:
        if self._is_new or not self._path.is_file():
            return apsw.Connection(":memory:")
        return open_reader(self._path)

    def _schema_mismatch(self, error: apsw.Error) -> SchemaRefused:
        return SchemaRefused(
            f"{self._path} is not as the manifest has it: {error}",
            hint="start the server once, or: pylonctl schema apply; both build missing indexes",
        )


def _rows_of(conn: apsw.Connection, entity: Entity) -> Iterator[bytes]:
    table = introspect(conn, (entity.name,)).tables.get(entity.name.lower())
    if table is None:
        return
    codec = EntityCodec(entity)
    columns = ", ".join(
        quote(c) if c.lower() in table.columns else "NULL" for c in entity.columns
    )
    for values in conn.execute(f"SELECT {columns} FROM {quote(table.name)} ORDER BY id"):
        yield codec.encode(codec.row_from_sql(values))


def _table_info(table: LiveTable) -> TableInfo:
    return TableInfo(
        table.name,
        tuple(
            ColumnInfo(c.name, c.type, c.not_null, c.primary_key) for c in table.columns.values()
        ),
        tuple(IndexInfo(i.name, i.fields, i.unique) for i in table.indexes),
    )
