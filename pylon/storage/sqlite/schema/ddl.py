"""DDL: the SQL text of every table and index that Pylon makes in SQLite (spec/http.md §2.7).

Entity tables are WITHOUT ROWID, so that a look-up by id is one search, not two. Behind the
manifest's columns each has `_json`, the row's JSON text, which reads return without decoding; and
`_seq`, the seq of the row's last change, which is its version (null: not known).

Invariant: system tables are made with IF NOT EXISTS; an existing one only gets the columns of
`LATER_COLUMNS`, and then the indexes of `SYSTEM_INDEXES`. So tables of the Rust server keep their
form. Called by the modules of this package, and by `pylon.storage.sqlite.backup.restore`.
"""

from __future__ import annotations

from typing import Any, Final

import apsw

from pylon.manifest.model import Entity, Field, FieldType, Index
from pylon.query.index_filters import index_filter
from pylon.query.predicate import Column, Compare, InValues, IsNull, Literal, Not, Predicate
from pylon.query.predicate_parts import conjuncts
from pylon.schema.columns import (
    JSON_COLUMN,
    SEQ_COLUMN,
    fold_column,
    fold_fields,
)
from pylon.storage.auth_tables import TABLES
from pylon.storage.sql import record_sql
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.records import DIALECT
from pylon.values import fold_case

FOLD_FUNCTION: Final = "pylon_fold"

COLUMN_TYPES: Final[dict[FieldType, str]] = {
    FieldType.STRING: "TEXT",
    FieldType.RICHTEXT: "TEXT",
    FieldType.ID: "TEXT",
    FieldType.DATETIME: "TEXT",
    FieldType.ENUM: "TEXT",
    FieldType.DATE: "TEXT",
    FieldType.DECIMAL: "TEXT",  # a sort text, see `pylon.values.decimals`
    FieldType.JSON: "TEXT",
    FieldType.INT: "INTEGER",
    FieldType.FLOAT: "REAL",
    FieldType.BOOL: "INTEGER",
}

SYSTEM_TABLES: Final[tuple[str, ...]] = (
    """CREATE TABLE IF NOT EXISTS _pylon_change_log (
        seq INTEGER PRIMARY KEY, entity TEXT NOT NULL, row_id TEXT NOT NULL, kind TEXT NOT NULL,
        data TEXT, prev_data TEXT, timestamp INTEGER NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS _pylon_change_seq (id INTEGER PRIMARY KEY, value INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS _pylon_op_ids (
        identity TEXT NOT NULL, op_id TEXT NOT NULL, seq INTEGER NOT NULL, row_id TEXT NOT NULL,
        at INTEGER NOT NULL, digest TEXT, PRIMARY KEY (identity, op_id)) WITHOUT ROWID""",
    # Retention removes the oldest first; seqs ascend with time.
    "CREATE INDEX IF NOT EXISTS _pylon_op_ids_by_seq ON _pylon_op_ids (seq)",
    *(record_sql.create_table(DIALECT, table) for table in TABLES),
    """CREATE INDEX IF NOT EXISTS _pylon_auth_sessions_by_expiry
        ON _pylon_auth_sessions (expires_at) WHERE expires_at > 0""",
    # Guests whose token no client has presented yet; dropped after limits.GUEST_UNUSED_S.
    """CREATE TABLE IF NOT EXISTS _pylon_unused_guests (
        session_id TEXT PRIMARY KEY NOT NULL, created_at INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS _pylon_unused_guests_by_age
        ON _pylon_unused_guests (created_at)""",
    """CREATE TABLE IF NOT EXISTS _pylon_epochs (
        first_seq INTEGER PRIMARY KEY, void_from INTEGER NOT NULL, reason TEXT NOT NULL,
        at INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS _pylon_meta (
        key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS _pylon_crdt_snapshots (
        entity TEXT NOT NULL, row_id TEXT NOT NULL, snapshot BLOB NOT NULL,
        updated_at TEXT NOT NULL, PRIMARY KEY (entity, row_id))""",
    """CREATE TABLE IF NOT EXISTS _pylon_crdt_updates (
        number INTEGER PRIMARY KEY AUTOINCREMENT, entity TEXT NOT NULL, row_id TEXT NOT NULL,
        prev INTEGER NOT NULL, seq INTEGER NOT NULL, data BLOB NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS _pylon_crdt_updates_by_row
        ON _pylon_crdt_updates (entity, row_id, number)""",
    """CREATE TABLE IF NOT EXISTS _pylon_crdt_views (
        entity TEXT NOT NULL, row_id TEXT NOT NULL, number INTEGER NOT NULL,
        before BLOB NOT NULL, after BLOB NOT NULL, facts TEXT NOT NULL,
        PRIMARY KEY (entity, row_id, number)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS _pylon_shards (
        id TEXT PRIMARY KEY NOT NULL, tick INTEGER NOT NULL, data BLOB, home TEXT,
        saved_at INTEGER NOT NULL, generation INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS _pylon_schema_history (
        id INTEGER PRIMARY KEY AUTOINCREMENT, manifest_version INTEGER NOT NULL,
        app_version TEXT NOT NULL, applied_at TEXT NOT NULL, operation_count INTEGER NOT NULL,
        baseline TEXT NOT NULL, plan_json TEXT NOT NULL)""",
)

# After the later columns, which some of them are over.
SYSTEM_INDEXES: Final[tuple[str, ...]] = tuple(
    statement for table in TABLES for statement in record_sql.create_indexes(table).values()
)

# Columns that a table of an earlier version lacks: table, column, statement.
LATER_COLUMNS: Final[tuple[tuple[str, str, str], ...]] = (
    ("_pylon_op_ids", "digest", "ALTER TABLE _pylon_op_ids ADD COLUMN digest TEXT"),
    (
        "_pylon_shards", "generation",
        "ALTER TABLE _pylon_shards ADD COLUMN generation INTEGER NOT NULL DEFAULT 0",
    ),
    *(
        (
            table.sql_name, column.name,
            f"ALTER TABLE {table.sql_name} ADD COLUMN "
            f"{record_sql.column_definition(DIALECT, column)}",
        )
        for table in TABLES for column in table.columns if column.optional
    ),
)


def create_table(entity: Entity, name: str | None = None, extra: tuple[str, ...] = ()) -> str:
    """Return the statement for the table of an entity, with columns in the manifest's order.

    Args:
        name: replaces the name of the entity.
        extra: definitions of further columns, which the manifest does not name.
    """
    columns = ["id TEXT PRIMARY KEY NOT NULL"]
    for field in entity.fields:
        column = f"{quote(field.name)} {COLUMN_TYPES[field.type]}"
        if not field.optional:
            column += " NOT NULL"
        if field.unique:
            column += " UNIQUE"
        columns.append(column)
    columns += [f"{quote(fold_column(field))} TEXT" for field in fold_fields(entity)]
    columns += [*extra, f"{JSON_COLUMN} TEXT", f"{SEQ_COLUMN} INTEGER"]
    return f"CREATE TABLE {quote(name or entity.name)} ({', '.join(columns)}) WITHOUT ROWID"


def add_column(entity: Entity, field: Field) -> str:
    """Return the statement for a new field. SQLite cannot add NOT NULL or UNIQUE; see `plan`."""
    column = f"{quote(field.name)} {COLUMN_TYPES[field.type]}"
    return f"ALTER TABLE {quote(entity.name)} ADD COLUMN {column}"


def add_filled_column(entity: Entity, field: Field, constant: object) -> str:
    """Return the statement for a new required field that has a value in all present rows.

    SQLite keeps the value once, as the default of the column, and does not write the rows.
    """
    return f"{add_column(entity, field)} NOT NULL DEFAULT {_constant(constant)}"


def add_json_column(entity: Entity) -> str:
    """Return the statement for the `_json` column of a table that another server made."""
    return f"ALTER TABLE {quote(entity.name)} ADD COLUMN {JSON_COLUMN} TEXT"


def add_seq_column(entity: Entity) -> str:
    """Return the statement for the `_seq` column of a table of another server or version."""
    return f"ALTER TABLE {quote(entity.name)} ADD COLUMN {SEQ_COLUMN} INTEGER"


def add_fold_column(entity: Entity, field: Field) -> str:
    """Return the statement for the fold column of a field."""
    return f"ALTER TABLE {quote(entity.name)} ADD COLUMN {quote(fold_column(field))} TEXT"


def drop_column(table: str, column: str) -> str:
    """Return the statement that removes a column."""
    return f"ALTER TABLE {quote(table)} DROP COLUMN {quote(column)}"


def drop_index(name: str) -> str:
    """Return the statement that drops an index."""
    return f"DROP INDEX {quote(name)}"


def create_index(name: str, entity: Entity, index: Index) -> str:
    """Return the statement for an index of the entity under the given name."""
    kind = "UNIQUE INDEX" if index.unique else "INDEX"
    columns = ", ".join(
        quote(f) + (" DESC" if f in index.descending else "") for f in index.fields
    )
    text = f"CREATE {kind} {quote(name)} ON {quote(entity.name)} ({columns})"
    return text if index.where is None else f"{text} WHERE {where_text(entity, index)}"


def where_text(entity: Entity, index: Index) -> str:
    """Return the condition of a partial index. It has constants, not parameters."""
    return " AND ".join(_condition(item) for item in conjuncts(index_filter(entity, index)))


def _condition(item: Predicate) -> str:
    if isinstance(item, Not):
        return _condition(item.operand).replace(" IS NULL", " IS NOT NULL")
    if isinstance(item, IsNull) and isinstance(item.operand, Column):
        return f"{quote(item.operand.field)} IS NULL"
    if isinstance(item, InValues):
        return f"{quote(item.field)} IN ({', '.join(map(_constant, item.values))})"
    if (
        isinstance(item, Compare) and isinstance(item.left, Column)
        and isinstance(item.right, Literal)
    ):
        return f"{quote(item.left.field)} {item.sign} {_constant(item.right.value)}"
    raise ValueError(f"unchecked condition of an index: {item}")


def _constant(value: object) -> str:
    plain: Any = int(value) if isinstance(value, bool) else value
    return apsw.format_sql_value(plain)


def fill_folds(entity: Entity, field: Field) -> str:
    """Return the statement that fills a fold column. The connection has `register_fold`."""
    column = quote(fold_column(field))
    folded = f"{FOLD_FUNCTION}({quote(field.name)})"
    return f"UPDATE {quote(entity.name)} SET {column} = {folded} WHERE {column} IS NOT {folded}"


def register_fold(conn: apsw.Connection) -> None:
    """Let the connection's statements fold texts. No stored index or trigger uses the function, so
    that other programs can write to the database."""
    conn.create_scalar_function(
        FOLD_FUNCTION, lambda *values: fold_case(values[0]), 1, deterministic=True
    )
