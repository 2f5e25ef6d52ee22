"""Additive migration: makes and completes the tables of a SQLite database at the start.

It runs in one transaction, before anything else uses the database. A database of the Rust server
keeps its tables and its change log. Its tables get `_json`, filled from the columns with the
encoder that writes use, and `_seq`. Every start adds a row to `_pylon_schema_history`. The next
start compares the number of history rows. If another server has written meanwhile, its rows lack
`_json` or have a stale one, and its changes are not in the log.

Invariants: after `prepare_store` every row has its `_json`, with the manifest's fields and no
other. A row whose JSON has changed has a `_seq` that it never had before. A database with rows has
a head seq above 0: for rows without events an epoch is opened. After an error the database is
unchanged. An unchanged schema costs a few look-ups in the catalogue. `prepare_store` is called by
the engine (`pylon.storage.sqlite.engine`), `complete` also by `rewrite`.
"""

from __future__ import annotations

from typing import Any, Final

import apsw

from pylon.clock import Clock, SystemRandom
from pylon.errors import SchemaRefused
from pylon.manifest import references
from pylon.manifest.model import Entity, Manifest
from pylon.schema.columns import JSON_COLUMN, SEQ_COLUMN, fold_fields
from pylon.schema.convert import shape_of
from pylon.schema.history import own_after, retained_columns
from pylon.schema.steps import Plan, Prepared
from pylon.storage.sqlite import log, meta
from pylon.storage.sqlite.epochs import open_epoch
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.instants import note_instants
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import ddl, history, search
from pylon.storage.sqlite.schema.broken_rows import report_broken_rows
from pylon.storage.sqlite.schema.catalogue import (
    SqliteCatalogue,
    plan_for,
    references_by_default,
)
from pylon.storage.sqlite.short_rows import note_short_rows
from pylon.values import EntityCodec

_LINEAGE_BYTES: Final = 16
_COLUMNS: Final = (
    "SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c "
    "WHERE t.type = 'table' AND t.name LIKE '\\_pylon\\_%' ESCAPE '\\'"
)
_CHUNK_COLUMNS: Final = 500  # columns passed to one Python call; SQLite's limit is 1,000
_FILL_VALUES: Final[dict[str, object]] = {"TEXT": "", "INTEGER": 0, "REAL": 0.0}


def prepare_store(conn: apsw.Connection, manifest: Manifest, clock: Clock) -> Prepared:
    """Make or complete all tables; see the module.

    Raises:
        SchemaRefused: additive steps do not suffice; nothing was changed.
        apsw.Error: the database cannot be used.
    """
    conn.execute("BEGIN IMMEDIATE")
    try:
        make_system_tables(conn)
        prepared = complete(conn, manifest, clock, "start", [])
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
    return prepared


def make_system_tables(conn: apsw.Connection) -> None:
    """Make missing system tables and columns, within the open transaction.

    Raises:
        SchemaRefused: a newer Pylon has written the database.
    """
    history.refuse_newer(conn)
    checks_references = references_by_default(conn)
    for statement in ddl.SYSTEM_TABLES:
        conn.execute(statement)
    columns = set(conn.execute(_COLUMNS))
    for table, column, statement in ddl.LATER_COLUMNS:
        if (table, column) not in columns:
            conn.execute(statement)
    for statement in ddl.SYSTEM_INDEXES:
        conn.execute(statement)
    conn.execute("INSERT OR IGNORE INTO _pylon_change_seq (id, value) VALUES (1, 0)")
    if checks_references:
        meta.put(conn, references.FACT, "check")


def complete(
    conn: apsw.Connection, manifest: Manifest, clock: Clock, baseline: str, before: list[str]
) -> Prepared:
    """Plan and execute the additive steps, within the open transaction.

    Args:
        baseline: `start` or `apply`, for the history.
        before: the steps that this transaction has executed already, for the history.
    """
    plan = plan_for(conn, manifest)
    plan.check()
    execute_steps(conn, plan)
    note_indexes(conn, manifest, plan)

    lineage = meta.get(conn, "lineage")
    written_elsewhere = lineage is not None and _written_elsewhere(conn)
    epoch_opened = False
    if written_elsewhere:
        # The other server may have written without our log: every earlier cursor is void.
        open_epoch(conn, "written by another server", clock, void_from=0)
        epoch_opened = True
    elif log.head_seq(conn) == 0 and _has_rows(conn, manifest):
        open_epoch(conn, "rows without a change log", clock)
        epoch_opened = True
    _rewrite_rows(conn, manifest, plan, written_elsewhere, epoch_opened)
    if written_elsewhere:
        _refill_folds(conn, manifest)
    search.migrate(conn, manifest, stale=written_elsewhere)
    note_short_rows(conn, manifest, is_stale=written_elsewhere)
    added = {(s.entity, s.name) for s in plan.steps if s.kind == "add_field"}
    note_instants(conn, manifest, added, is_stale=written_elsewhere)
    report_broken_rows(conn, manifest)

    created = lineage is None
    if lineage is None:
        lineage = SystemRandom().token_hex(_LINEAGE_BYTES)
        meta.put(conn, "lineage", lineage)
    lines = [*before, *(s.render() for s in plan.steps)]
    history.record(conn, manifest, baseline, lines, clock)
    return Prepared(
        plan, created, epoch_opened, lineage,
        retained_columns(SqliteCatalogue(conn), manifest, _FILL_VALUES),
    )


def execute_steps(conn: apsw.Connection, plan: Plan) -> None:
    """Execute the additive steps, within the open transaction.

    Raises:
        SchemaRefused: SQLite refuses a step; the text names it.
    """
    ddl.register_fold(conn)
    for step in plan.steps:
        try:
            conn.execute(step.sql)
        except (apsw.ConstraintError, apsw.SQLError) as error:
            raise SchemaRefused(f"{step.render()}: {error_text(error)}") from error


def _rewrite_rows(
    conn: apsw.Connection, manifest: Manifest, plan: Plan, written_elsewhere: bool,
    epoch_opened: bool,
) -> None:
    """Write `_json` and `_seq` anew for entities whose JSON has to change."""
    unversioned = {s.entity for s in plan.steps if s.kind == "add_seq"}
    version = log.head_seq(conn)
    fresh = epoch_opened  # whether no row ever had this version with other content
    for entity in manifest.entities:
        shape = shape_of(entity)
        if written_elsewhere or meta.get(conn, f"shape:{entity.name}") != shape:
            if not fresh and entity.name not in unversioned and _exists(conn, entity):
                version, fresh = _next_version(conn), True
            rebuild_rows(conn, entity, version)
            meta.put(conn, f"shape:{entity.name}", shape)
        elif entity.name in unversioned:
            conn.execute(f"UPDATE {quote(entity.name)} SET {SEQ_COLUMN} = ?", (version,))


def _refill_folds(conn: apsw.Connection, manifest: Manifest) -> None:
    """Fold the values that another server has written.

    Raises:
        SchemaRefused: it has written two that differ only in case.
    """
    ddl.register_fold(conn)
    for entity in manifest.entities:
        for field in fold_fields(entity):
            try:
                conn.execute(ddl.fill_folds(entity, field))
            except apsw.ConstraintError as error:
                raise SchemaRefused(
                    f"{entity.name}.{field.name} is unique without regard to case, and another "
                    "program has written values that differ only in case",
                    hint=f'change one of them, or write "unique": true for {field.name}',
                ) from error


def _next_version(conn: apsw.Connection) -> int:
    """Take a seq that no event has, and return it.

    A row whose JSON changes must get a version that it never had. Otherwise If-None-Match of an
    old copy would match.
    """
    seq = log.head_seq(conn) + 1
    log.put_counter(conn, seq)
    return seq


def rebuild_rows(conn: apsw.Connection, entity: Entity, version: int) -> None:
    """Write `_json` of every row of `entity` anew from its columns, and set `_seq` to `version`.

    SQLite passes at most 1,000 values to a function, and an entity may have twice as many columns.
    So one function stores a chunk of a row's columns and returns the number of the chunk. A second
    function takes these numbers and returns the row's JSON.
    """
    codec = EntityCodec(entity)
    chunks: list[tuple[object, ...]] = []

    def store_chunk(*values: object) -> int:
        chunks.append(values)
        return len(chunks) - 1

    def row_json(*numbers: Any) -> str:
        values = [value for number in numbers for value in chunks[number]]
        chunks.clear()
        return codec.encode(codec.row_from_sql(values)).decode()

    conn.create_scalar_function("pylon_row_chunk", store_chunk)
    conn.create_scalar_function("pylon_row_json", row_json)
    columns = [quote(c) for c in entity.columns]
    calls = ", ".join(
        f"pylon_row_chunk({', '.join(columns[at:at + _CHUNK_COLUMNS])})"
        for at in range(0, len(columns), _CHUNK_COLUMNS)
    )
    conn.execute(
        f"UPDATE {quote(entity.name)} SET {JSON_COLUMN} = pylon_row_json({calls}), "
        f"{SEQ_COLUMN} = ?", (version,)
    )
    conn.create_scalar_function("pylon_row_chunk", None)
    conn.create_scalar_function("pylon_row_json", None)


def _has_rows(conn: apsw.Connection, manifest: Manifest) -> bool:
    return any(_exists(conn, e) for e in manifest.entities)


def _exists(conn: apsw.Connection, entity: Entity) -> bool:
    return conn.execute(f"SELECT 1 FROM {quote(entity.name)} LIMIT 1").get is not None


def _written_elsewhere(conn: apsw.Connection) -> bool:
    return meta.get(conn, "history_rows") != str(history.row_count(conn))


def has_current_rows(conn: apsw.Connection, manifest: Manifest) -> bool:
    """Whether the JSON of all rows is as a start with this manifest would leave it."""
    return not _written_elsewhere(conn) and all(
        meta.get(conn, f"shape:{entity.name}") == shape_of(entity) for entity in manifest.entities
    )


def note_indexes(conn: apsw.Connection, manifest: Manifest, plan: Plan) -> None:
    """Note which indexes Pylon made, so that it may drop them when they leave the manifest."""
    history.note_own_indexes(conn, own_after(SqliteCatalogue(conn), manifest, plan))
