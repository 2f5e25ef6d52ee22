"""DDL: the SQL text of every table and index that Pylon makes in PostgreSQL.

Tables and columns have the names that they have in SQLite. All texts are `COLLATE "C"`, so that
they order by code points and ILIKE folds ASCII letters only. A searchable entity has its words in
`_words`, with a GIN index; fastupdate is off, so that no write pays for the list of many.

An index orders nulls first, or last where it descends, as the compiler does in ORDER BY; `id` is
never null, and has PostgreSQL's own order. A field is kept unique by an index and not by a
constraint, because a constraint's index orders nulls last only. An index that is not unique ends
with `id`, as SQLite's do: so a page in the order of its fields, or of ids at one value, needs no
sort.

A text may have several statements, with ``;`` and a line break in between. Names over 63 bytes are
cut by `fitting_name`. Called by the modules of this package.
"""

from __future__ import annotations

from typing import Final

from pylon.manifest.model import Entity, Field, FieldType, Index
from pylon.query.index_filters import index_filter
from pylon.query.predicate import Column, Compare, InValues, IsNull, Literal, Not, Predicate
from pylon.query.predicate_parts import conjuncts
from pylon.query.words import text_fields
from pylon.schema.columns import (
    JSON_COLUMN,
    SEQ_COLUMN,
    constant_of,
    fold_column,
    fold_fields,
    fold_index,
    index_name,
    sort_index_name,
    unique_name,
)
from pylon.storage.auth_tables import TABLES
from pylon.storage.postgres.names import (
    DOCUMENT_SEQUENCE,
    MARK_SEQUENCE,
    SEQ_SEQUENCE,
    TEXT,
    WORDS_COLUMN,
    fitting_name,
    quote,
)
from pylon.storage.postgres.record_rows import DIALECT
from pylon.storage.sql import record_sql

NEXT: Final = ";\n"  # between the statements of one text

COLUMN_TYPES: Final[dict[FieldType, str]] = {
    FieldType.STRING: "TEXT",
    FieldType.RICHTEXT: "TEXT",
    FieldType.ID: "TEXT",
    FieldType.DATETIME: "TEXT",
    FieldType.ENUM: "TEXT",
    FieldType.DATE: "TEXT",
    FieldType.DECIMAL: "TEXT",  # a sort text, see `pylon.values.decimals`
    FieldType.JSON: "TEXT",
    FieldType.INT: "BIGINT",
    FieldType.FLOAT: "DOUBLE PRECISION",
    FieldType.BOOL: "BOOLEAN",
}

# In this order; a start runs the statements whose object is missing (`made_by`).
SYSTEM_TABLES: Final[tuple[str, ...]] = (
    f"CREATE SEQUENCE IF NOT EXISTS {SEQ_SEQUENCE} AS BIGINT",
    f"CREATE SEQUENCE IF NOT EXISTS {DOCUMENT_SEQUENCE} AS BIGINT",
    f"CREATE SEQUENCE IF NOT EXISTS {MARK_SEQUENCE} AS BIGINT",
    f"""CREATE TABLE IF NOT EXISTS _pylon_change_log (
        seq BIGINT PRIMARY KEY, entity {TEXT} NOT NULL, row_id {TEXT} NOT NULL,
        kind {TEXT} NOT NULL, data {TEXT}, prev_data {TEXT}, timestamp BIGINT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS _pylon_change_seq (id BIGINT PRIMARY KEY, value BIGINT NOT NULL)",
    f"""CREATE TABLE IF NOT EXISTS _pylon_op_ids (
        identity {TEXT} NOT NULL, op_id {TEXT} NOT NULL, seq BIGINT NOT NULL,
        row_id {TEXT} NOT NULL, at BIGINT NOT NULL, digest {TEXT},
        PRIMARY KEY (identity, op_id))""",
    # Retention removes the oldest first; seqs ascend with time.
    "CREATE INDEX IF NOT EXISTS _pylon_op_ids_by_seq ON _pylon_op_ids (seq)",
    *(record_sql.create_table(DIALECT, table) for table in TABLES),
    """CREATE INDEX IF NOT EXISTS _pylon_auth_sessions_by_expiry
        ON _pylon_auth_sessions (expires_at) WHERE expires_at > 0""",
    # Guests whose token no client has presented yet; dropped after limits.GUEST_UNUSED_S.
    f"""CREATE TABLE IF NOT EXISTS _pylon_unused_guests (
        session_id {TEXT} PRIMARY KEY, created_at BIGINT NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS _pylon_unused_guests_by_age
        ON _pylon_unused_guests (created_at)""",
    f"""CREATE TABLE IF NOT EXISTS _pylon_epochs (
        first_seq BIGINT PRIMARY KEY, void_from BIGINT NOT NULL, reason {TEXT} NOT NULL,
        at BIGINT NOT NULL)""",
    f"""CREATE TABLE IF NOT EXISTS _pylon_meta (
        key {TEXT} PRIMARY KEY, value {TEXT} NOT NULL)""",
    f"""CREATE TABLE IF NOT EXISTS _pylon_crdt_snapshots (
        entity {TEXT} NOT NULL, row_id {TEXT} NOT NULL, snapshot BYTEA NOT NULL,
        updated_at {TEXT} NOT NULL, PRIMARY KEY (entity, row_id))""",
    f"""CREATE TABLE IF NOT EXISTS _pylon_crdt_updates (
        number BIGINT PRIMARY KEY, entity {TEXT} NOT NULL, row_id {TEXT} NOT NULL,
        prev BIGINT NOT NULL, seq BIGINT NOT NULL, data BYTEA NOT NULL)""",
    """CREATE INDEX IF NOT EXISTS _pylon_crdt_updates_by_row
        ON _pylon_crdt_updates (entity, row_id, number)""",
    f"""CREATE TABLE IF NOT EXISTS _pylon_crdt_views (
        entity {TEXT} NOT NULL, row_id {TEXT} NOT NULL, number BIGINT NOT NULL,
        before BYTEA NOT NULL, after BYTEA NOT NULL, facts {TEXT} NOT NULL,
        PRIMARY KEY (entity, row_id, number))""",
    f"""CREATE TABLE IF NOT EXISTS _pylon_shards (
        id {TEXT} PRIMARY KEY, tick BIGINT NOT NULL, data BYTEA, home {TEXT},
        saved_at BIGINT NOT NULL, owner {TEXT}, lease {TEXT}, region {TEXT},
        generation BIGINT NOT NULL DEFAULT 0)""",
    f"""CREATE TABLE IF NOT EXISTS _pylon_schema_history (
        id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, manifest_version BIGINT NOT NULL,
        app_version {TEXT} NOT NULL, applied_at {TEXT} NOT NULL, operation_count BIGINT NOT NULL,
        baseline {TEXT} NOT NULL, plan_json {TEXT} NOT NULL)""",
    # A committed end or beginning of a session, for the other nodes. Pruned by the leader.
    f"""CREATE TABLE IF NOT EXISTS _pylon_marks (
        number BIGINT PRIMARY KEY, kind {TEXT} NOT NULL, key {TEXT} NOT NULL,
        at BIGINT NOT NULL)""",
    # The nodes of the server. Times are those of the database's clock.
    f"""CREATE TABLE IF NOT EXISTS _pylon_nodes (
        node {TEXT} PRIMARY KEY, incarnation {TEXT} NOT NULL, roles {TEXT} NOT NULL,
        version {TEXT} NOT NULL, manifest {TEXT} NOT NULL, workers {TEXT} NOT NULL,
        started_at TIMESTAMPTZ NOT NULL, seen_at TIMESTAMPTZ NOT NULL, region {TEXT},
        cluster_url {TEXT}, curve_key {TEXT}, lease {TEXT}, lease_until TIMESTAMPTZ,
        schema_format BIGINT)""",
)
# Columns that a table of an earlier version lacks: table, column, type. Nodes of that version go on
# beside them: they name the columns that they write.
LATER_COLUMNS: Final[tuple[tuple[str, str, str], ...]] = (
    ("_pylon_nodes", "region", TEXT),
    ("_pylon_nodes", "cluster_url", TEXT),
    ("_pylon_nodes", "curve_key", TEXT),
    ("_pylon_nodes", "lease", TEXT),
    ("_pylon_nodes", "lease_until", "TIMESTAMPTZ"),
    ("_pylon_nodes", "schema_format", "BIGINT"),
    ("_pylon_shards", "owner", TEXT),
    ("_pylon_shards", "lease", TEXT),
    ("_pylon_shards", "region", TEXT),
    ("_pylon_shards", "generation", "BIGINT NOT NULL DEFAULT 0"),
    *(
        (table.sql_name, column.name, DIALECT.types[column.kind])
        for table in TABLES for column in table.columns if column.optional
    ),
)
# By their names: table, statement. Made after the later columns, which some of them are over.
SYSTEM_INDEXES: Final[dict[str, tuple[str, str]]] = {
    name: (table.sql_name, statement)
    for table in TABLES for name, statement in record_sql.create_indexes(table).items()
}
FIRST_HEAD: Final = (
    "INSERT INTO _pylon_change_seq (id, value) VALUES (1, 0) ON CONFLICT DO NOTHING"
)


def made_by(statement: str) -> str:
    """Return the name of the table, index or sequence that a statement of `SYSTEM_TABLES` makes."""
    return statement.split("IF NOT EXISTS ", 1)[1].split(maxsplit=1)[0]


def column_type(field: Field) -> str:
    """Return the type of a field's column, with its collation."""
    name = COLUMN_TYPES[field.type]
    return TEXT if name == "TEXT" else name


def create_table(entity: Entity, *, compression: str = "") -> str:
    """Return the statements for the table of an entity and what keeps its fields unique, with
    columns in the manifest's order.

    Args:
        compression: of `_json`, for example `lz4`; "": the server's default.
    """
    columns = [f"id {TEXT} PRIMARY KEY"]
    for field in entity.fields:
        column = f"{quote(field.name)} {column_type(field)}"
        constant = None if field.optional or field.unique else constant_of(field)
        # Nodes whose manifest lacks the field insert rows without it.
        default = "" if constant is None else f" DEFAULT {constant_text(constant)}"
        columns.append(column if field.optional else f"{column} NOT NULL{default}")
    columns += [f"{quote(fold_column(field))} {TEXT}" for field in fold_fields(entity)]
    columns += [f"{JSON_COLUMN} {_json_type(compression)}", f"{SEQ_COLUMN} BIGINT"]
    statements = []
    if text_fields(entity):
        columns.append(f"{WORDS_COLUMN} TSVECTOR")
        statements.append(create_words_index(entity))
    named = {index_name(entity, index) for index in entity.indexes}
    statements += [
        create_unique(entity, field) for field in entity.fields
        if field.unique and unique_name(entity, field) not in named
    ]
    text = f"CREATE TABLE {quote(entity.name)} ({', '.join(columns)})"
    return NEXT.join((text, *statements))


def add_column(entity: Entity, field: Field) -> str:
    """Return the statement for a new field, without NOT NULL: the values are checked by the
    writer, and nodes with the manifest before may still insert."""
    return f"{_alter(entity.name)} ADD COLUMN {quote(field.name)} {column_type(field)}"


def add_filled_column(entity: Entity, field: Field, constant: object) -> str:
    """Return the statement for a new required field that has a value in all present rows.

    PostgreSQL keeps the value once, and does not write the rows. It stays the column's default, so
    that nodes with the manifest before may still insert.
    """
    return f"{add_column(entity, field)} NOT NULL DEFAULT {constant_text(constant)}"


def add_json_column(entity: Entity, compression: str = "") -> str:
    """Return the statement for the `_json` column of a table that another program made."""
    return f"{_alter(entity.name)} ADD COLUMN {JSON_COLUMN} {_json_type(compression)}"


def add_seq_column(entity: Entity) -> str:
    """Return the statement for the `_seq` column of a table that another program made."""
    return f"{_alter(entity.name)} ADD COLUMN {SEQ_COLUMN} BIGINT"


def add_fold_column(entity: Entity, field: Field) -> str:
    """Return the statement for the fold column of a field."""
    return f"{_alter(entity.name)} ADD COLUMN {quote(fold_column(field))} {TEXT}"


def add_words_column(entity: Entity) -> str:
    """Return the statement for the `_words` column of an entity that becomes searchable."""
    return f"{_alter(entity.name)} ADD COLUMN {WORDS_COLUMN} TSVECTOR"


def drop_not_null(table: str, column: str) -> str:
    """Return the statement after which a column may be null. It reads no row."""
    return f"{_alter(table)} ALTER COLUMN {quote(column)} DROP NOT NULL"


def drop_column(table: str, column: str) -> str:
    """Return the statement that removes a column, with its indexes."""
    return f"{_alter(table)} DROP COLUMN {quote(column)}"


def words_index_name(entity: str) -> str:
    """Return the name of the GIN index over an entity's words. No name of a manifest begins so."""
    return fitting_name(f"_pylon_words_{entity}")


def create_words_index(entity: Entity) -> str:
    """Return the statement for the index over an entity's words."""
    return (
        f"CREATE INDEX {quote(words_index_name(entity.name))} ON {quote(entity.name)} "
        f"USING gin ({WORDS_COLUMN}) WITH (fastupdate = off)"
    )


def create_unique(entity: Entity, field: Field) -> str:
    """Return the statement for the index that keeps a field unique."""
    name = unique_name(entity, field)
    return create_index(name, entity, Index(name, (field.name,), True))


def create_fold_index(entity: Entity, field: Field) -> str:
    """Return the statement for the unique index over a fold column."""
    index = fold_index(entity, field)
    return create_index(index.name, entity, index)


def create_sort_index(entity: Entity, field: str) -> str:
    """Return the statement for the index of a sortable field of search."""
    name = sort_index_name(entity, field)
    return create_index(name, entity, Index(name, (field,), False))


def create_index(name: str, entity: Entity, index: Index) -> str:
    """Return the statement for an index of the entity, under the given name or its cut form.

    PostgreSQL shows the condition of a partial index in its own words, so the index carries it as
    its comment.
    """
    kind = "UNIQUE INDEX" if index.unique else "INDEX"
    columns = ", ".join(_key(field, descends) for field, descends in key_columns(index))
    named = quote(fitting_name(name))
    text = f"CREATE {kind} {named} ON {quote(entity.name)} ({columns})"
    if index.where is None:
        return text
    where = where_text(entity, index)
    return NEXT.join((
        f"{text} WHERE {where}", f"COMMENT ON INDEX {named} IS {constant_text(where)}",
    ))


def _key(field: str, descends: bool) -> str:
    if field == "id":  # never null; as the primary key has it
        return "id DESC" if descends else "id"
    return f"{quote(field)} {'DESC NULLS LAST' if descends else 'ASC NULLS FIRST'}"


def key_columns(index: Index) -> list[tuple[str, bool]]:
    """Return the columns that an index has, and whether they descend."""
    found = [(field, field in index.descending) for field in index.fields]
    if not index.unique and "id" not in index.fields:
        found.append(("id", False))
    return found


def create_manifest_index(entity: Entity, index: Index) -> str:
    """Return the statement for an index of the manifest."""
    return create_index(index_name(entity, index), entity, index)


def drop_index(name: str) -> str:
    """Return the statement that drops an index."""
    return f"DROP INDEX IF EXISTS {quote(name)}"


def where_text(entity: Entity, index: Index) -> str:
    """Return the condition of a partial index. It has constants, not parameters."""
    return " AND ".join(_condition(item) for item in conjuncts(index_filter(entity, index)))


def constant_text(value: object) -> str:
    """Return a value as an SQL constant."""
    match value:
        case None:
            return "NULL"
        case bool():
            return "TRUE" if value else "FALSE"
        case int() | float():
            return repr(value)
        case str() if "\0" not in value:
            # A backslash is a backslash: every session has standard_conforming_strings on.
            return "'" + value.replace("'", "''") + "'"
        case _:
            raise ValueError(f"no constant of SQL: {value!r}")


def _alter(table: str) -> str:
    return f"ALTER TABLE {quote(table)}"


def _json_type(compression: str) -> str:
    return f'TEXT COMPRESSION {compression} COLLATE "C"' if compression else TEXT


def _condition(item: Predicate) -> str:
    if isinstance(item, Not):
        return _condition(item.operand).replace(" IS NULL", " IS NOT NULL")
    if isinstance(item, IsNull) and isinstance(item.operand, Column):
        return f"{quote(item.operand.field)} IS NULL"
    if isinstance(item, InValues):
        values = ", ".join(map(constant_text, item.values))
        return f"{quote(item.field)} IN ({values})"
    if (
        isinstance(item, Compare) and isinstance(item.left, Column)
        and isinstance(item.right, Literal)
    ):
        return f"{quote(item.left.field)} {item.sign} {constant_text(item.right.value)}"
    raise ValueError(f"unchecked condition of an index: {item}")
