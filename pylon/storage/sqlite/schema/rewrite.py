"""Rewriting migration: executes schema changes that rename, rewrite or remove data.

SQLite cannot alter a column. So a changed table is rebuilt: made under a temporary name, filled,
and renamed over the old one. Columns that the manifest does not name keep their data (without NOT
NULL). Indexes and triggers of other programs are made again.

Invariants: one transaction contains everything, also the additive steps of a start and the entry
of the history. A refused change has changed nothing. If rows have another shape afterwards, an
epoch is opened, so that every client resyncs. No other connection writes meanwhile: the caller
holds the lock of the data directory. Called by `manager`, for `pylonctl schema apply`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import apsw

from pylon.clock import Clock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Entity, Manifest
from pylon.schema.columns import (
    FOLD_PREFIX,
    JSON_COLUMN,
    SEQ_COLUMN,
    fold_column,
    fold_fields,
    unique_name,
)
from pylon.schema.convert import Converter, changed_shape, has_other_form, renamed_shape
from pylon.schema.live import LiveIndex, LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import REBUILDING, RESHAPING, Plan, Prepared
from pylon.storage.sqlite import documents, meta
from pylon.storage.sqlite.epochs import open_epoch
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import ddl, history
from pylon.storage.sqlite.schema.apply import complete, make_system_tables
from pylon.storage.sqlite.schema.catalogue import SqliteCatalogue, kinds_before, plan_for
from pylon.storage.sqlite.schema.live import introspect

_NEW: Final = "_pylon_new_table"


def apply_plan(
    conn: apsw.Connection, manifest: Manifest, asked: MigrationOptions, allow_destructive: bool,
    clock: Clock,
) -> tuple[Plan, Prepared]:
    """Migrate the database to the manifest in one transaction, including rewrites.

    Returns: the whole plan, and the result of the additive steps.

    Raises:
        SchemaRefused: the data or `allow_destructive` does not allow it; nothing was changed.
        apsw.Error: the database failed; nothing was changed.
    """
    # Dropping the old table would otherwise delete rows that refer to it. SQLite ignores this
    # pragma inside a transaction.
    enforced = conn.execute("PRAGMA foreign_keys").get
    conn.execute("PRAGMA foreign_keys = OFF")
    conn.execute("BEGIN IMMEDIATE")
    try:
        make_system_tables(conn)
        plan = plan_for(conn, manifest, asked)
        plan.check_apply(allow_destructive=allow_destructive)
        try:
            _rewrite(conn, manifest, asked, plan, clock)
        except (apsw.ConstraintError, apsw.SQLError) as error:
            raise SchemaRefused(f"the database refused the change: {error_text(error)}") from error
        lines = [s.render() for s in plan.rewrites]
        prepared = complete(conn, manifest, clock, "apply", lines)
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        conn.execute("PRAGMA legacy_alter_table = OFF")
        conn.execute(f"PRAGMA foreign_keys = {int(enforced)}")
    return plan, prepared


def _rewrite(
    conn: apsw.Connection, manifest: Manifest, asked: MigrationOptions, plan: Plan, clock: Clock
) -> None:
    for step in plan.steps:
        if step.kind == "remove_search_index":  # its triggers would break the later steps
            conn.execute(step.sql)
    _drop_search(conn, manifest, asked, plan)
    _rename(conn, asked, plan)
    for step in plan.rewrites:
        if step.kind == "remove_index":
            conn.execute(step.sql)
        elif step.kind == "remove_entity":
            conn.execute(f"DROP TABLE {quote(step.name)}")
            _forget_shape(conn, step.name)
            documents.drop_entity(conn, step.name)
    rebuilt = {s.entity.lower() for s in plan.rewrites if s.kind in REBUILDING}
    for entity in manifest.entities:
        if entity.name.lower() in rebuilt:
            _rebuild(conn, entity, asked)
    if any(s.kind in RESHAPING for s in plan.rewrites):
        open_epoch(conn, "the schema was changed", clock, void_from=0)


def _drop_search(
    conn: apsw.Connection, manifest: Manifest, asked: MigrationOptions, plan: Plan
) -> None:
    """Drop the search indexes of changed entities; `complete` builds the needed ones again."""
    touched = {s.entity.lower() for s in plan.rewrites if s.kind in RESHAPING}
    old_names = [
        old for old, new in asked.rename_entities.items() if new.lower() in touched
    ]
    known = {e.name.lower(): e.name for e in manifest.entities}
    for name in [*old_names, *(known.get(t, t) for t in touched)]:
        for table in (f"_fts_{name}", f"_pylon_search_{name}"):
            conn.execute(f"DROP TABLE IF EXISTS {quote(table)}")


def _rename(conn: apsw.Connection, asked: MigrationOptions, plan: Plan) -> None:
    """Rename tables and columns, and the names that Pylon stores.

    SQLite itself adapts indexes, triggers and views.
    """
    own = history.own_indexes(conn)
    touched: set[str] = set()
    for step in plan.rewrites:
        was = step.detail.removeprefix("was ")
        if step.kind == "rename_entity":
            conn.execute(f"ALTER TABLE {quote(was)} RENAME TO {quote(step.name)}")
            _drop_sort_indexes(conn, step.name, was)
            documents.rename_entity(conn, was, step.name)
            conn.execute(
                "UPDATE OR REPLACE _pylon_meta SET key = ? WHERE lower(key) = lower(?)",
                (f"shape:{step.name}", f"shape:{was}"),
            )
        elif step.kind == "rename_field":
            conn.execute(
                f"ALTER TABLE {quote(step.entity)} RENAME COLUMN {quote(was)} "
                f"TO {quote(step.name)}"
            )
            _rename_kind(conn, step.entity, was, step.name)
        else:
            continue
        touched.add(step.entity)
    history.note_own_indexes(conn, {n: asked.entity_now(e) for n, e in own.items()})
    for table in introspect(conn, tuple(touched)).tables.values():
        for index in table.indexes:
            if index.unique and not index.constraint and len(index.fields) == 1:
                _name_unique(conn, table, index, own)


def _drop_sort_indexes(conn: apsw.Connection, table: str, was: str) -> None:
    """Drop the sort indexes of search, named after the entity; `complete` makes new ones."""
    for index in introspect(conn, (table,)).tables[table.lower()].indexes:
        if index.name.lower().startswith(f"{was}_sort_".lower()):
            conn.execute(f"DROP INDEX {quote(index.name)}")


def _name_unique(
    conn: apsw.Connection, table: LiveTable, index: LiveIndex, own: Mapping[str, str]
) -> None:
    """Rename the index that implements UNIQUE of a field: Pylon recognises it by its name."""
    (field,) = index.fields
    name = f"{table.name}_{field}_unique"
    if index.name.endswith("_unique") and index.name.lower() not in {name.lower(), *own}:
        conn.execute(f"DROP INDEX {quote(index.name)}")
        conn.execute(
            f"CREATE UNIQUE INDEX {quote(name)} ON {quote(table.name)} ({quote(field)})"
        )


def _forget_shape(conn: apsw.Connection, entity: str) -> None:
    conn.execute("DELETE FROM _pylon_meta WHERE lower(key) = lower(?)", (f"shape:{entity}",))


def _rename_kind(conn: apsw.Connection, entity: str, was: str, name: str) -> None:
    """Rename a field in the note of the types that the columns have."""
    key = f"shape:{entity}"
    shape = meta.get(conn, key)
    if shape is not None:
        meta.put(conn, key, renamed_shape(shape, was, name))


def _note_kinds(conn: apsw.Connection, entity: Entity) -> None:
    """Note the types that the columns now have. `complete` still writes the JSON of each row."""
    meta.put(conn, f"shape:{entity.name}", changed_shape(entity))


def _rebuild(conn: apsw.Connection, entity: Entity, asked: MigrationOptions) -> None:
    """Rebuild the table of `entity` as the manifest declares it, with its rows."""
    table = introspect(conn, (entity.name,)).tables[entity.name.lower()]
    key = entity.name.lower()
    known = {c.lower() for c in entity.columns} | {JSON_COLUMN, SEQ_COLUMN}
    dropped = {name for owner, name in asked.drop_fields if owner == key}
    kept = [
        c for lower, c in table.columns.items()
        if lower not in known | dropped and not lower.startswith(FOLD_PREFIX)
    ]
    statements = _dependents(conn, entity, table, dropped)

    targets, sources = ["id"], ["id"]
    kinds = _kinds_now(conn, entity, asked)
    converters: list[str] = []
    for number, field in enumerate(entity.fields):
        column = table.columns.get(field.name.lower())
        default = asked.defaults.get((key, field.name.lower()))
        was = kinds.get(field.name.lower())
        converter = Converter(entity, field, default, was)
        function = f"pylon_convert_{number}"
        plain = (
            column is not None and column.type == ddl.COLUMN_TYPES[field.type]
            and (field.optional or column.not_null)
            and not has_other_form(SqliteCatalogue(conn), field, table, column)
        )
        targets.append(quote(field.name))
        if column is not None and plain:
            sources.append(quote(column.name))
        else:
            conn.create_scalar_function(function, converter.convert)
            converters.append(function)
            value = quote(column.name) if column is not None else "NULL"
            sources.append(f"{function}(id, {value})")
    targets += [quote(c.name) for c in kept]
    sources += [quote(c.name) for c in kept]

    extra = tuple(f"{quote(c.name)} {c.type}" for c in kept)
    conn.execute(ddl.create_table(entity, name=_NEW, extra=extra))
    conn.execute(
        f"INSERT INTO {quote(_NEW)} ({', '.join(targets)}) "
        f"SELECT {', '.join(sources)} FROM {quote(table.name)}"
    )
    for function in converters:
        conn.create_scalar_function(function, None)
    conn.execute(f"DROP TABLE {quote(table.name)}")
    # The modern rename also adapts views, and would fail on those that name the dropped table.
    conn.execute("PRAGMA legacy_alter_table = ON")
    conn.execute(f"ALTER TABLE {quote(_NEW)} RENAME TO {quote(entity.name)}")
    conn.execute("PRAGMA legacy_alter_table = OFF")
    ddl.register_fold(conn)
    for field in fold_fields(entity):
        conn.execute(ddl.fill_folds(entity, field))
    for sql in statements:
        conn.execute(sql)
    _note_kinds(conn, entity)


def _kinds_now(
    conn: apsw.Connection, entity: Entity, asked: MigrationOptions
) -> dict[str, str]:
    """Return the types that the stored values have, by present lower-case names of fields."""
    key = entity.name.lower()
    return {
        asked.rename_fields.get((key, name), name).lower(): kind
        for name, kind in kinds_before(conn, entity.name).items()
    }


def _dependents(
    conn: apsw.Connection, entity: Entity, table: LiveTable, dropped: set[str]
) -> list[str]:
    """Return the SQL of the indexes and triggers of the table, to make them again."""
    own = history.own_indexes(conn)
    folds = {fold_column(field) for field in fold_fields(entity)}
    gone = {
        i.name for i in table.indexes
        if any(f.lower() in dropped for f in i.fields)
        or any(f.startswith(FOLD_PREFIX) and f not in folds for f in i.fields)
        or (i.partial and i.name.lower() in own)  # `complete` makes it again, if it is wanted
    } | {unique_name(entity, f) for f in entity.fields}  # the new table declares UNIQUE
    rows: list[Any] = conn.execute(
        "SELECT name, sql FROM sqlite_schema WHERE lower(tbl_name) = lower(?) "
        "AND type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY rowid", (table.name,)
    ).fetchall()
    names = {g.lower() for g in gone}
    return [sql for name, sql in rows if name.lower() not in names]


