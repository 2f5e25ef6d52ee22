"""Live schema: the tables, columns and indexes that a database has, as a plan compares them.

Invariant: keys are names in lower case, and values keep the spelling of the database. A backend
reads the schema (`Database.introspect`); `plan` and the backends' own modules use it.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from pylon.schema.options import MigrationOptions


class LiveColumn(msgspec.Struct, frozen=True):
    """A column as the database declares it."""

    name: str  # after the requested renames
    type: str  # as declared, upper case
    not_null: bool
    primary_key: bool
    source: str  # its present name in the database


class LiveIndex(msgspec.Struct, frozen=True):
    """An index, and the columns that it is over."""

    name: str
    table: str
    fields: tuple[str, ...]  # "" for an expression
    unique: bool
    constraint: bool  # made by UNIQUE or PRIMARY KEY in the table itself
    partial: bool
    sql: str  # its statement; empty for a constraint


class LiveTable(msgspec.Struct, frozen=True):
    """A table with its columns and indexes."""

    name: str  # after the requested renames
    columns: dict[str, LiveColumn]  # by lower-case name
    indexes: tuple[LiveIndex, ...]
    source: str  # its present name in the database


class LiveSchema(msgspec.Struct, frozen=True):
    """The tables that were asked for, and all indexes of the database."""

    tables: dict[str, LiveTable]  # by lower-case name
    indexes: dict[str, LiveIndex]  # by lower-case name, of all tables


def renamed(live: LiveSchema, options: MigrationOptions) -> LiveSchema:
    """Return `live` with the renames of `options` applied."""
    if not options.rename_entities and not options.rename_fields:
        return live
    tables = {}
    for table in live.tables.values():
        name = options.entity_now(table.name)
        columns = {}
        for column in table.columns.values():
            now = options.rename_fields.get((name.lower(), column.name.lower()), column.name)
            columns[now.lower()] = replace(column, name=now)
        indexes = tuple(_renamed_index(i, options) for i in table.indexes)
        tables[name.lower()] = replace(table, name=name, columns=columns, indexes=indexes)
    return LiveSchema(tables, {k: _renamed_index(i, options) for k, i in live.indexes.items()})


def _renamed_index(index: LiveIndex, options: MigrationOptions) -> LiveIndex:
    table = options.entity_now(index.table)
    fields = tuple(
        options.rename_fields.get((table.lower(), f.lower()), f) for f in index.fields
    )
    return replace(index, table=table, fields=fields)
