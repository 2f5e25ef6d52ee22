"""PostgreSQL schema manager: implements `pylon.storage.schemas.SchemaManager` for one database.

Every method opens a connection of its own and closes it. It converts errors of psycopg to Pylon's,
with the database's address and the server's reason. Made by `pylon.storage.postgres.backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final, TypeVar

import orjson
import psycopg
from psycopg import errors

from pylon.clock import SystemClock
from pylon.database_url import shown_url
from pylon.errors import PylonError, SchemaRefused, StartRefused, StoreUnavailable
from pylon.manifest.model import Entity, Manifest
from pylon.manifest.references import FACT, checked_references
from pylon.schema.columns import fold_column, fold_fields
from pylon.schema.live import LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Plan, Step
from pylon.storage.core.constraint_errors import constraint_error
from pylon.storage.core.references import reference_not_found
from pylon.storage.ops import InsertRow
from pylon.storage.postgres import meta
from pylon.storage.postgres.connect import Limits, error_text, open_session
from pylon.storage.postgres.constraint_errors import ConstraintErrors
from pylon.storage.postgres.names import fitting_name, quote
from pylon.storage.postgres.schema import ddl, history, search
from pylon.storage.postgres.schema.catalogue import (
    PostgresCatalogue,
    decoder_of,
    plan_for,
    references_by_default,
)
from pylon.storage.postgres.schema.contract import finish_contract, plan_contract
from pylon.storage.postgres.schema.leader import alone
from pylon.storage.postgres.schema.live import has_table, introspect, table_names
from pylon.storage.postgres.schema.online import FAULTS, OnlineSteps, refusal_text
from pylon.storage.postgres.schema.pending import count_pending, finish_pending
from pylon.storage.postgres.schema.references import find_broken
from pylon.storage.postgres.schema.results import ask_one, text_rows
from pylon.storage.postgres.schema.rewrite import apply_plan
from pylon.storage.postgres.unique_keys import unique_keys
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.schemas import ColumnInfo, IndexInfo, ReferenceReport, SearchCheck, TableInfo
from pylon.values import EntityCodec, fold_case

T = TypeVar("T")

_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WAIT_S: Final = 10.0  # for a start or another command that changes the schema
_FAULTS: Final = (
    errors.UndefinedTable, errors.UndefinedColumn, errors.DatatypeMismatch, errors.SyntaxError,
)
_UNBOUND: Final = Limits(lock_ms=5_000, statement_ms=0, idle_in_transaction_ms=0)


class PostgresSchema:
    """See the module."""

    def __init__(self, url: str) -> None:
        """Args: `url`: of the database; its connection must be a session's own, not a pooler's."""
        self._url = url
        self._place = shown_url(url)

    def refuse_unreachable(self, manifest: Manifest) -> None:
        """See `SchemaManager`. A start tries out no statement here: a transaction that makes them
        and undoes them would stop the nodes that serve."""
        try:
            with self._snapshot() as session:
                history.refuse_newer(session)
                plan_for(session, manifest).check()
        except StoreUnavailable as ex:
            raise StartRefused(f"the database cannot be used: {ex.message}") from ex

    def inspect(self) -> list[TableInfo]:
        """See `SchemaManager`."""
        with self._snapshot() as session:
            live = introspect(session, table_names(session))
        return [_table_info(table) for table in live.tables.values()]

    def history(self, limit: int) -> list[dict[str, Any]]:
        """See `SchemaManager`."""
        with self._snapshot() as session:
            return history.entries(session, limit)

    def plan(self, manifest: Manifest, options: MigrationOptions) -> Plan:
        """See `SchemaManager`."""
        with self._snapshot() as session:
            history.refuse_newer(session)
            return plan_for(session, manifest, options)

    def apply(
        self, manifest: Manifest, options: MigrationOptions, *, allow_destructive: bool
    ) -> list[Step]:
        """See `SchemaManager`."""
        with self._session() as session:
            planned, prepared = apply_plan(
                session, manifest, options, allow_destructive, SystemClock()
            )
        return [*planned.rewrites, *prepared.plan.steps]

    def count_pending(self, manifest: Manifest) -> int:
        """See `SchemaManager`."""
        with self._snapshot() as session:
            return count_pending(session, manifest)

    def finish_pending(self, manifest: Manifest) -> int:
        """See `SchemaManager`."""
        with self._session() as session:
            return finish_pending(session, manifest)

    def plan_contract(self, manifest: Manifest, options: MigrationOptions) -> Plan:
        """See `SchemaManager`."""
        with self._snapshot() as session:
            history.refuse_newer(session)
            return plan_contract(session, manifest, options)

    def finish_contract(
        self, manifest: Manifest, options: MigrationOptions, *, allow_destructive: bool
    ) -> list[Step]:
        """See `SchemaManager`."""
        with self._session() as session:
            return finish_contract(
                session, manifest, options, SystemClock(), allow_destructive=allow_destructive
            )

    def trigram_statements(self, entity: str, field: str) -> list[str]:
        """See `SchemaManager`. The index is no part of the manifest: no start drops it."""
        name = fitting_name(f"{entity}_{field}_trgm")
        with self._snapshot() as session:
            if any(index.name == name for index in introspect(session, [entity]).indexes.values()):
                return []
        return [
            "CREATE EXTENSION IF NOT EXISTS pg_trgm",
            f"CREATE INDEX CONCURRENTLY {quote(name)} ON {quote(entity)} "
            f"USING gin ({quote(field)} gin_trgm_ops) WITH (fastupdate = off)",
        ]

    def make_trigram_index(self, entity: str, field: str) -> None:
        """See `SchemaManager`."""
        statements = self.trigram_statements(entity, field)
        if not statements:
            return
        extension, index = statements
        with self._session() as session, alone(session, _WAIT_S):
            try:
                session.execute_script(extension)
                OnlineSteps(session).make_index(
                    fitting_name(f"{entity}_{field}_trgm"),
                    index.replace(" CONCURRENTLY", "", 1), is_new=False,
                )
            except FAULTS as error:
                raise SchemaRefused(
                    f"{entity}.{field}: the database refuses the index: {refusal_text(error)}",
                    hint="pg_trgm belongs to PostgreSQL's contrib modules; making it needs the "
                    "right CREATE in the database",
                ) from error

    def check_search(self, entities: Sequence[Entity]) -> list[SearchCheck]:
        """See `SchemaManager`."""
        with self._session() as session:
            return self._search(lambda: [search.check(session, entity) for entity in entities])

    def build_search(self, entities: Sequence[Entity]) -> dict[str, int]:
        """See `SchemaManager`. In steps, so that the nodes go on."""
        with self._session() as session, alone(session, _WAIT_S):
            return self._search(lambda: {e.name: search.build(session, e) for e in entities})

    def export(self, entities: Sequence[Entity]) -> Iterator[tuple[Entity, bytes]]:
        """See `SchemaManager`."""
        with ExitStack() as stack:
            session = stack.enter_context(self._snapshot())
            history.refuse_newer(session)
            for entity in entities:
                for row_json in _rows_of(session, entity):
                    yield entity, row_json

    def has_rows(self, manifest: Manifest) -> bool:
        """See `SchemaManager`."""
        with self._snapshot() as session:
            tables = introspect(session, [e.name for e in manifest.entities]).tables.values()
            return any(
                ask_one(session, f"SELECT 1 FROM {quote(table.source)} LIMIT 1") is not None
                for table in tables
            )

    def find_conflict(
        self, manifest: Manifest, inserts: Sequence[InsertRow]
    ) -> tuple[InsertRow, PylonError] | None:
        """See `SchemaManager`. The empty tables are temporary ones."""
        with self._session() as session:
            by_default = references_by_default(session)
            session.execute("BEGIN")
            try:
                session.execute("SET LOCAL search_path = pg_temp")
                found = _first_refused(session, manifest, inserts)
                if found is not None:
                    return found
                wanted = checked_references(manifest, by_default=by_default)
                for broken in find_broken(session, wanted):
                    row_id, value = broken.examples[0]
                    insert = next(
                        i for i in inserts
                        if (i.entity, i.row_id) == (broken.reference.entity, row_id)
                    )
                    return insert, reference_not_found(broken.reference, value)
            finally:
                session.execute("ROLLBACK")
        return None

    def references(self, manifest: Manifest) -> ReferenceReport:
        """See `SchemaManager`."""
        wanted = checked_references(manifest, by_default=True)
        with self._snapshot() as session:
            history.refuse_newer(session)
            return ReferenceReport(
                references_by_default(session), tuple(find_broken(session, wanted))
            )

    def check_references(self, *, is_default: bool) -> None:
        """See `SchemaManager`."""
        with self._session() as session:
            history.refuse_newer(session)
            if not has_table(session, "_pylon_meta"):
                raise SchemaRefused(
                    f"{self._place} is not as the manifest has it: it has no table of Pylon",
                    hint="start the server once, or: pylonctl schema apply",
                )
            meta.put(session, FACT, "check" if is_default else "none")

    @contextmanager
    def _session(self) -> Iterator[BlockingSession]:
        """Open a session for the block, and convert the errors of psycopg."""
        try:
            with closing(
                open_session(self._url, "schema", "", SystemClock(), _UNBOUND)
            ) as session:
                yield session
        except psycopg.Error as ex:
            raise StoreUnavailable(
                f"the database {self._place} cannot be used: {error_text(ex)}"
            ) from ex

    @contextmanager
    def _snapshot(self) -> Iterator[BlockingSession]:
        """As `_session`, with one snapshot for all reads."""
        with self._session() as session:
            session.execute(_SNAPSHOT)
            yield session

    def _search(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except _FAULTS as ex:
            raise search.mismatch(ex, self._place) from ex


def _first_refused(
    session: BlockingSession, manifest: Manifest, inserts: Sequence[InsertRow]
) -> tuple[InsertRow, PylonError] | None:
    """Insert rows into new tables; return the first that a constraint refuses, and why."""
    catalogue = PostgresCatalogue(session)
    found = {}
    for entity in manifest.entities:
        found[entity.name] = ConstraintErrors(entity, unique_keys(entity, EntityCodec(entity)))
        session.execute_script(catalogue.create_table(entity))
        for index in entity.indexes:
            if index.unique:
                session.execute_script(ddl.create_manifest_index(entity, index))
        for field in fold_fields(entity):
            session.execute_script(ddl.create_fold_index(entity, field))
    for insert in inserts:
        entity = manifest.by_name[insert.entity]
        folds = fold_fields(entity)
        names = (*entity.columns, *map(fold_column, folds))
        columns = ", ".join(quote(name) for name in names)
        marks = ", ".join(f"${place}" for place in range(1, len(names) + 1))
        row = orjson.loads(insert.row_json)
        try:
            session.execute(
                f"INSERT INTO {quote(entity.name)} ({columns}) VALUES ({marks})",
                (insert.row_id, *insert.values, *(fold_case(row[f.name]) for f in folds)),
            )
        except errors.IntegrityError as ex:
            return insert, constraint_error(
                entity.name, found[entity.name].translate(ex), row,
                client_id_given=insert.client_id_given,
            )
    return None


def _rows_of(session: BlockingSession, entity: Entity) -> Iterator[bytes]:
    table = introspect(session, (entity.name,)).tables.get(entity.name.lower())
    if table is None:
        return
    codec = EntityCodec(entity)
    live = [table.columns.get(name.lower()) for name in entity.columns]
    columns = ", ".join("NULL" if column is None else quote(column.source) for column in live)
    decoders = [decoder_of("" if column is None else column.type) for column in live]
    for part in session.stream(f"SELECT {columns} FROM {quote(table.source)} ORDER BY id"):
        for texts in text_rows(part):
            yield codec.encode(codec.row_from_sql([
                None if text is None else decode(text)
                for text, decode in zip(texts, decoders, strict=True)
            ]))


def _table_info(table: LiveTable) -> TableInfo:
    return TableInfo(
        table.name,
        tuple(
            ColumnInfo(c.name, c.type, c.not_null, c.primary_key) for c in table.columns.values()
        ),
        tuple(IndexInfo(i.name, _index_fields(i.fields), i.unique) for i in table.indexes),
    )


def _index_fields(fields: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fields of an index without the `id` that `ddl.key_columns` has appended."""
    return fields[:-1] if len(fields) > 1 and fields[-1] == "id" else fields
