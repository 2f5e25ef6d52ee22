"""Schema changes that rewrite or remove data: renames, other types, removals.

SQLite cannot alter a column, so a table is rebuilt: made anew under another name, filled,
and put in the place of the old one. Columns that the manifest does not name keep their data
(without NOT NULL), and indexes and triggers of others are made again.

Invariants: everything, the start's additive steps and the history's entry included, is one
transaction; what was refused has changed nothing. When rows have another shape afterwards, an
epoch is opened, so that every client resyncs. No other connection writes meanwhile: the caller
holds the data directory. Called by `pylonctl schema apply`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import apsw

from pylon.clock import Clock
from pylon.errors import SchemaRefused
from pylon.manifest.model import Entity, FieldType, Manifest
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Plan
from pylon.storage.sqlite import documents
from pylon.storage.sqlite.epochs import open_epoch
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import ddl, history
from pylon.storage.sqlite.schema.apply import Prepared, complete, make_system_tables
from pylon.storage.sqlite.schema.convert import Converter, kinds_before
from pylon.storage.sqlite.schema.live import LiveIndex, LiveTable, introspect
from pylon.storage.sqlite.schema.plan import make_plan

_NEW: Final = "_pylon_new_table"
_RESHAPING: Final = frozenset(
    {"rename_entity", "rename_field", "alter_field", "remove_field", "remove_entity", "add_field"}
)
_REBUILDING: Final = frozenset({"alter_field", "remove_field", "add_field"})


def apply_plan(
    conn: apsw.Connection, manifest: Manifest, asked: MigrationOptions, allow_destructive: bool,
    clock: Clock,
) -> tuple[Plan, Prepared]:
    """Bring the database to the manifest, rewriting what has to be; one transaction.

    Returns: the whole plan, and what `prepare_store` returns.

    Raises:
        SchemaRefused: it cannot be done, or may not be; nothing was changed.
        apsw.Error: the database failed; nothing was changed.
    """
    # Without this, to drop the old table would delete what refers to it. It cannot be set
    # inside a transaction.
    enforced = conn.execute("PRAGMA foreign_keys").get
    conn.execute("PRAGMA foreign_keys = OFF")
    conn.execute("BEGIN IMMEDIATE")
    try:
        make_system_tables(conn)
        plan = make_plan(conn, manifest, asked)
        _check(plan, allow_destructive)
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


def _check(plan: Plan, allow_destructive: bool) -> None:
    if plan.refusals:
        raise SchemaRefused("; ".join(plan.refusals), refusals=list(plan.refusals))
    if plan.destructive and not allow_destructive:
        lines = [s.render() for s in plan.rewrites if s.destructive]
        raise SchemaRefused(
            f"this rewrites or removes data: {'; '.join(lines)}",
            hint="give --allow-destructive if that is wanted", refusals=lines,
        )


def _rewrite(
    conn: apsw.Connection, manifest: Manifest, asked: MigrationOptions, plan: Plan, clock: Clock
) -> None:
    for step in plan.steps:
        if step.kind == "remove_search_index":  # its triggers would not survive the rest
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
    rebuilt = {s.entity.lower() for s in plan.rewrites if s.kind in _REBUILDING}
    for entity in manifest.entities:
        if entity.name.lower() in rebuilt:
            _rebuild(conn, entity, asked)
    if any(s.kind in _RESHAPING for s in plan.rewrites):
        open_epoch(conn, "the schema was changed", clock, void_from=0)


def _drop_search(
    conn: apsw.Connection, manifest: Manifest, asked: MigrationOptions, plan: Plan
) -> None:
    """The search indexes of what changes go; the start makes those that it wants again."""
    touched = {s.entity.lower() for s in plan.rewrites if s.kind in _RESHAPING}
    old_names = [
        old for old, new in asked.rename_entities.items() if new.lower() in touched
    ]
    known = {e.name.lower(): e.name for e in manifest.entities}
    for name in [*old_names, *(known.get(t, t) for t in touched)]:
        for table in (f"_fts_{name}", f"_pylon_search_{name}"):
            conn.execute(f"DROP TABLE IF EXISTS {quote(table)}")


def _rename(conn: apsw.Connection, asked: MigrationOptions, plan: Plan) -> None:
    """Indexes, triggers and views follow by themselves; what we know by name is noted anew."""
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
        else:
            continue
        touched.add(step.entity)
    history.note_own_indexes(conn, {n: asked.entity_now(e) for n, e in own.items()})
    for table in introspect(conn, tuple(touched)).tables.values():
        for index in table.indexes:
            if index.unique and not index.constraint and len(index.fields) == 1:
                _name_unique(conn, table, index, own)


def _drop_sort_indexes(conn: apsw.Connection, table: str, was: str) -> None:
    """Those that search has made are named after the entity; it makes them again."""
    for index in introspect(conn, (table,)).tables[table.lower()].indexes:
        if index.name.lower().startswith(f"{was}_sort_".lower()):
            conn.execute(f"DROP INDEX {quote(index.name)}")


def _name_unique(
    conn: apsw.Connection, table: LiveTable, index: LiveIndex, own: Mapping[str, str]
) -> None:
    """The index that stands for UNIQUE is known by its name."""
    (field,) = index.fields
    name = f"{table.name}_{field}_unique"
    if index.name.endswith("_unique") and index.name.lower() not in {name.lower(), *own}:
        conn.execute(f"DROP INDEX {quote(index.name)}")
        conn.execute(
            f"CREATE UNIQUE INDEX {quote(name)} ON {quote(table.name)} ({quote(field)})"
        )


def _forget_shape(conn: apsw.Connection, entity: str) -> None:
    conn.execute("DELETE FROM _pylon_meta WHERE lower(key) = lower(?)", (f"shape:{entity}",))


def _rebuild(conn: apsw.Connection, entity: Entity, asked: MigrationOptions) -> None:
    """Make the table of `entity` as the manifest has it, with the rows that it has."""
    table = introspect(conn, (entity.name,)).tables[entity.name.lower()]
    key = entity.name.lower()
    known = {c.lower() for c in entity.columns} | {ddl.JSON_COLUMN, ddl.SEQ_COLUMN}
    dropped = {name for owner, name in asked.drop_fields if owner == key}
    kept = [c for lower, c in table.columns.items() if lower not in known | dropped]
    again = _dependents(conn, entity, table, dropped)

    targets, sources = ["id"], ["id"]
    bools = _bool_fields(conn, entity, asked)
    converters: list[str] = []
    for number, field in enumerate(entity.fields):
        column = table.columns.get(field.name.lower())
        default = asked.defaults.get((key, field.name.lower()))
        was_bool = field.name.lower() in bools
        convert = Converter(entity, field, default, was_bool)
        function = f"pylon_convert_{number}"
        plain = (
            column is not None and column.type == ddl.COLUMN_TYPES[field.type]
            and (field.optional or column.not_null)
        )
        targets.append(quote(field.name))
        if column is not None and plain:
            sources.append(quote(column.name))
        else:
            conn.create_scalar_function(function, convert.stored)
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
    # Views that name the table would stop a rename that looks after them.
    conn.execute("PRAGMA legacy_alter_table = ON")
    conn.execute(f"ALTER TABLE {quote(_NEW)} RENAME TO {quote(entity.name)}")
    conn.execute("PRAGMA legacy_alter_table = OFF")
    for sql in again:
        conn.execute(sql)
    _forget_shape(conn, entity.name)


def _bool_fields(conn: apsw.Connection, entity: Entity, asked: MigrationOptions) -> set[str]:
    """The fields that held booleans when the rows were last brought up, by present name."""
    key = entity.name.lower()
    return {
        asked.rename_fields.get((key, name), name).lower()
        for name, kind in kinds_before(conn, entity.name).items() if kind == FieldType.BOOL.value
    }


def _dependents(
    conn: apsw.Connection, entity: Entity, table: LiveTable, dropped: set[str]
) -> list[str]:
    """The SQL of indexes and triggers that go with the table and must come again."""
    gone = {
        i.name for i in table.indexes if any(f.lower() in dropped for f in i.fields)
    } | {ddl.unique_name(entity, f) for f in entity.fields}  # the new table says UNIQUE itself
    rows: list[Any] = conn.execute(
        "SELECT name, sql FROM sqlite_schema WHERE lower(tbl_name) = lower(?) "
        "AND type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY rowid", (table.name,)
    ).fetchall()
    names = {g.lower() for g in gone}
    return [sql for name, sql in rows if name.lower() not in names]


