"""Rewriting migration: executes schema changes that rename, rewrite or remove data.

A column that changes its type is made beside the old one, filled by a conversion that loses nothing
(`pylon.schema.convert`), and takes its place. Columns that the manifest does not name keep their
data (without NOT NULL). Indexes of other programs over such a column are made again.

Invariants: one transaction contains everything, also the additive steps of a start and the entry
of the history, so a refused change has changed nothing. It has the lock of the writers. If rows
have another shape afterwards, an epoch is opened, so that every client resyncs. No node may serve
meanwhile: it would have the manifest before. Called by `manager`, for `pylonctl schema apply`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import psycopg

from pylon.clock import Clock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Entity, Field, Manifest
from pylon.schema.columns import (
    FOLD_PREFIX,
    JSON_COLUMN,
    SEQ_COLUMN,
    sort_index_name,
    unique_name,
)
from pylon.schema.convert import Converter, changed_shape, has_other_form, renamed_shape
from pylon.schema.live import LiveColumn, LiveIndex, LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import REBUILDING, RESHAPING, Plan, Prepared
from pylon.storage.postgres import meta
from pylon.storage.postgres.documents import DROP_ENTITY, TABLES
from pylon.storage.postgres.epochs import open_epoch
from pylon.storage.postgres.names import TEXT, WORDS_COLUMN, fitting_name, quote
from pylon.storage.postgres.parameters import Item
from pylon.storage.postgres.registry import LIVING
from pylon.storage.postgres.schema import ddl, history
from pylon.storage.postgres.schema.apply import complete, make_system_tables, transaction
from pylon.storage.postgres.schema.catalogue import (
    PostgresCatalogue,
    decoder_of,
    kinds_before,
    plan_for,
)
from pylon.storage.postgres.schema.fill import remove_fill
from pylon.storage.postgres.schema.leader import alone
from pylon.storage.postgres.schema.live import has_table, introspect
from pylon.storage.postgres.schema.online import FAULTS, OnlineSteps, refusal_text
from pylon.storage.postgres.schema.results import ask, ask_one
from pylon.storage.postgres.wire import BlockingSession

_NEW: Final = "_pylon_new_column"
_ROWS: Final = 1_000  # converted in one statement
_WAIT_S: Final = 10.0  # for another command or start
_INSTANT: Final = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
# How a column of another program becomes a text that `Converter` reads.
_SOURCES: Final = {
    "TIMESTAMP WITH TIME ZONE": f"to_char({{}} AT TIME ZONE 'UTC', {_INSTANT})",
    "TIMESTAMP WITHOUT TIME ZONE": f"to_char({{}}, {_INSTANT})",
    "DATE": "to_char({}, 'YYYY-MM-DD')",
}


def apply_plan(
    session: BlockingSession, manifest: Manifest, asked: MigrationOptions,
    allow_destructive: bool, clock: Clock,
) -> tuple[Plan, Prepared]:
    """Migrate the database to the manifest: in one transaction if the plan has rewrites, else as a
    start does.

    Returns: the whole plan, and the result of the additive steps.

    Raises:
        SchemaRefused: the data, `allow_destructive` or a serving node does not allow it; nothing
            was changed.
        psycopg.Error: the database failed; nothing was changed.
    """
    with alone(session, _WAIT_S):
        history.refuse_newer(session)
        plan = plan_for(session, manifest, asked)
        plan.check_apply(allow_destructive=allow_destructive)
        if not plan.rewrites and has_table(session, "_pylon_meta"):
            make_system_tables(session)
            return plan, complete(session, manifest, clock, "apply", [])
        with transaction(session):
            make_system_tables(session)
            if plan.rewrites:
                _refuse_serving(session)
                remove_fill(session, OnlineSteps(session))
            try:
                _rewrite(session, manifest, asked, plan, clock)
            except FAULTS as error:
                raise SchemaRefused(
                    f"the database refused the change: {refusal_text(error)}"
                ) from error
            lines = [step.render() for step in plan.rewrites]
            prepared = complete(session, manifest, clock, "apply", lines)
    return plan, prepared


def _refuse_serving(session: BlockingSession) -> None:
    nodes = [str(node) for (node,) in ask(session, LIVING)]
    if nodes:
        raise SchemaRefused(
            f"nodes serve from this database: {', '.join(nodes)}",
            hint="stop them all (pylonctl stop), then: pylonctl schema apply",
        )


def _rewrite(
    session: BlockingSession, manifest: Manifest, asked: MigrationOptions, plan: Plan, clock: Clock
) -> None:
    _rename(session, asked, plan)
    for step in plan.rewrites:
        if step.kind == "remove_index":
            session.execute_script(step.sql)
        elif step.kind == "remove_entity":
            session.execute_script(f"DROP TABLE {quote(step.name)}")
            drop_facts(session, step.name)
            for statement in DROP_ENTITY:
                session.execute(statement, (step.name,))
    rebuilt = {step.entity.lower() for step in plan.rewrites if step.kind in REBUILDING}
    for entity in manifest.entities:
        if entity.name.lower() in rebuilt:
            _Rebuild(session, entity, asked).run(plan)
    if any(step.kind in RESHAPING for step in plan.rewrites):
        open_epoch(session, "the schema was changed", clock, void_from=0)


# --- Renames -----------------------------------------------------------------------------------


def _rename(session: BlockingSession, asked: MigrationOptions, plan: Plan) -> None:
    """Rename tables and columns, and the names that Pylon stores. PostgreSQL itself adapts indexes,
    triggers and views."""
    own = history.own_indexes(session)
    touched: set[str] = set()
    for step in plan.rewrites:
        was = step.detail.removeprefix("was ")
        if step.kind == "rename_entity":
            session.execute_script(f"ALTER TABLE {quote(was)} RENAME TO {quote(step.name)}")
            session.execute_script(ddl.drop_index(ddl.words_index_name(was)))
            for documents in TABLES:
                session.execute(
                    f"UPDATE {documents} SET entity = $1 WHERE entity = $2", (step.name, was)
                )
            shape = meta.get(session, f"shape:{was}")
            drop_facts(session, was)
            if shape is not None:
                meta.put(session, f"shape:{step.name}", shape)
        elif step.kind == "rename_field":
            session.execute_script(
                f"ALTER TABLE {quote(step.entity)} RENAME COLUMN {quote(was)} "
                f"TO {quote(step.name)}"
            )
            key = f"shape:{step.entity}"
            shape = meta.get(session, key)
            if shape is not None:
                meta.put(session, key, renamed_shape(shape, was, step.name))
        else:
            continue
        touched.add(step.entity)
    history.note_own_indexes(session, {n: asked.entity_now(e) for n, e in own.items()})
    for table in introspect(session, tuple(touched)).tables.values():
        _rename_indexes(session, table, own)


def _rename_indexes(
    session: BlockingSession, table: LiveTable, own: Mapping[str, str]
) -> None:
    """Give the indexes that Pylon makes for itself the names that follow from the new ones."""
    for index in table.indexes:
        if index.constraint or index.name.lower() in own:
            continue
        first = index.fields[0]
        is_single = index.unique and len(index.fields) == 1
        if is_single and first.startswith(FOLD_PREFIX):
            name = fitting_name(f"{table.name}_{first.removeprefix(FOLD_PREFIX)}_nocase")
        elif is_single and index.name.endswith("_unique"):
            name = fitting_name(f"{table.name}_{first}_unique")
        elif "_sort_" in index.name and not index.unique:
            name = fitting_name(f"{table.name}_sort_{first}")
        else:
            continue
        if name != index.name:
            session.execute_script(f"ALTER INDEX {quote(index.name)} RENAME TO {quote(name)}")


def drop_facts(session: BlockingSession, entity: str) -> None:
    """Remove what `_pylon_meta` notes about the rows of an entity."""
    for key in ("shape", "search", "constraints", "backfill", "mixed", "freed"):
        meta.remove(session, f"{key}:{entity}")


# --- Columns -----------------------------------------------------------------------------------


class _Rebuild:
    """The changes of the columns of one entity."""

    def __init__(
        self, session: BlockingSession, entity: Entity, asked: MigrationOptions
    ) -> None:
        self._session = session
        self._entity = entity
        self._asked = asked
        self._catalogue = PostgresCatalogue(session)
        self._alter = f"ALTER TABLE {quote(entity.name)}"
        self._table = self._introspect()
        key = entity.name.lower()
        self._kinds = {
            asked.rename_fields.get((key, name), name).lower(): kind
            for name, kind in kinds_before(session, entity.name).items()
        }

    def run(self, plan: Plan) -> None:
        """Change the columns that the plan names."""
        entity = self._entity
        steps = [s for s in plan.rewrites if s.entity.lower() == entity.name.lower()]
        changed = {s.name for s in steps if s.kind in ("alter_field", "add_field")}
        for step in steps:
            if step.kind == "remove_field":
                self._session.execute_script(ddl.drop_column(entity.name, step.name))
        self._table = self._introspect()
        self._free_columns()
        for field in entity.fields:
            if field.name in changed:
                self._change(field)
        if "id" in changed:
            self._session.execute_script(
                f"{self._alter} ALTER COLUMN id TYPE {TEXT} USING id::text"
            )
        meta.put(self._session, f"shape:{entity.name}", changed_shape(entity))

    def _introspect(self) -> LiveTable:
        name = self._entity.name
        return introspect(self._session, (name,)).tables[name.lower()]

    def _free_columns(self) -> None:
        """Take NOT NULL from the columns that the manifest does not name."""
        known = {c.lower() for c in self._entity.columns} | {
            JSON_COLUMN, SEQ_COLUMN, WORDS_COLUMN
        }
        for lower, column in self._table.columns.items():
            if lower not in known and column.not_null:
                self._session.execute_script(
                    f"{self._alter} ALTER COLUMN {quote(column.name)} DROP NOT NULL"
                )

    def _change(self, field: Field) -> None:
        default = self._asked.defaults.get((self._entity.name.lower(), field.name.lower()))
        column = self._table.columns.get(field.name.lower())
        converter = Converter(self._entity, field, default, self._kinds.get(field.name.lower()))
        name = quote(field.name)
        if column is None:
            self._session.execute_script(ddl.add_column(self._entity, field))
            if default is not None:
                self._fill_nulls(field, converter)
        elif self._is_plain(field, column):
            self._session.execute_script(f"{self._alter} ALTER COLUMN {name} DROP NOT NULL")
            if default is not None:
                self._fill_nulls(field, converter)
            self._drop_uniqueness(field)
        else:
            self._convert(field, column, converter)
        if not field.optional:
            self._session.execute_script(f"{self._alter} ALTER COLUMN {name} SET NOT NULL")

    def _is_plain(self, field: Field, column: LiveColumn) -> bool:
        """Whether the column's values stay as they are."""
        return column.type == self._catalogue.column_type(field) and not has_other_form(
            self._catalogue, field, self._table, column
        )

    def _fill_nulls(self, field: Field, converter: Converter) -> None:
        name = quote(field.name)
        self._session.execute(
            f"UPDATE {quote(self._entity.name)} SET {name} = $1 WHERE {name} IS NULL",
            (converter.convert("", None),),
        )

    def _drop_uniqueness(self, field: Field) -> None:
        """Drop what keeps a field unique that the manifest does not declare so."""
        if field.unique:
            return
        wanted = {
            self._catalogue.fitting_name(f"{self._entity.name}_{index.name}").lower()
            for index in self._entity.indexes
        }
        for index in self._table.indexes:
            if not index.unique or index.partial or index.fields != (field.name,):
                continue
            if index.constraint:
                self._session.execute_script(
                    f"{self._alter} DROP CONSTRAINT {quote(index.name)}"
                )
            elif index.name.lower() not in wanted:
                self._session.execute_script(ddl.drop_index(index.name))

    def _convert(self, field: Field, column: LiveColumn, converter: Converter) -> None:
        """Put a column of the field's type in the place of the old one, with converted values."""
        table, old = quote(self._entity.name), quote(column.name)
        indexes = self._foreign_indexes(column)
        kind = ddl.column_type(field)
        self._session.execute_script(f"{self._alter} ADD COLUMN {_NEW} {kind}")
        update = (
            f"UPDATE {table} AS t SET {_NEW} = n.value::{ddl.COLUMN_TYPES[field.type]} "
            "FROM unnest($1::text[], $2::text[]) AS n (id, value) WHERE t.id = n.id"
        )
        for ids, values in self._pages(column):
            converted: list[Item] = [
                converter.convert(row_id, value)
                for row_id, value in zip(ids, values, strict=True)
            ]
            texts: list[Item] = [_text_of(value) for value in converted]
            self._session.execute(update, (ids, texts))
        self._session.execute_script(
            f"{self._alter} DROP COLUMN {old};\n"
            f"{self._alter} RENAME COLUMN {_NEW} TO {quote(field.name)}"
        )
        for statement in indexes:
            self._session.execute_script(statement)

    def _pages(self, column: LiveColumn) -> Iterator[tuple[list[Item], list[Any]]]:
        """Yield ids and values of a column, by id."""
        kind = column.type.split(" COLLATE ")[0]
        source = _SOURCES.get(kind, "{}").format(quote(column.name))
        decode = decoder_of(kind)
        select = (
            f"SELECT id, {source} FROM {quote(self._entity.name)} WHERE id > $1 "
            f"ORDER BY id LIMIT {_ROWS}"
        )
        after = ""
        while rows := ask(self._session, select, (after,)):
            after = rows[-1][0] or ""
            yield (
                [row_id for row_id, _ in rows],
                [None if text is None else decode(text) for _, text in rows],
            )

    def _foreign_indexes(self, column: LiveColumn) -> list[str]:
        """Return the statements of other programs' indexes over a column."""
        own = history.own_indexes(self._session)
        return [
            ask_one(
                self._session, "SELECT pg_get_indexdef($1::regclass)", (quote(index.name),)
            ) or ""
            for index in self._table.indexes
            if column.name in index.fields and not index.constraint
            and index.name.lower() not in own and not _is_pylons(self._entity, index)
        ]


def _is_pylons(entity: Entity, index: LiveIndex) -> bool:
    """Whether Pylon makes an index for itself, and so makes it again."""
    names = {unique_name(entity, field) for field in entity.fields}
    names |= {sort_index_name(entity, field.name) for field in entity.fields}
    return index.name in {fitting_name(name) for name in names}


def _text_of(value: object) -> Item:
    """Return a value as the text that a cast reads."""
    if value is None or isinstance(value, str):
        return value
    return repr(value)


def refused(error: psycopg.Error, place: str) -> SchemaRefused:
    """Return the refusal for a database that failed."""
    return SchemaRefused(f"{place}: nothing was changed: {refusal_text(error)}")
