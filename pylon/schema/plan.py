"""The additive steps from a live schema to the manifest's (spec/http.md §2.9).

What can only be done by rewriting data (another type, another nullability, another
uniqueness, a new required field on rows that lack it) is refused, with the whole plan shown.
Fields, indexes and tables that the manifest no longer names stay where they are.

Invariant: a plan is made inside the transaction that applies it, so what it saw is what it
changes. Called by `apply`; `pylonctl schema` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import apsw

from pylon.errors import SchemaRefused
from pylon.manifest.model import Entity, Field, Manifest
from pylon.schema import ddl
from pylon.schema.live import LiveColumn, LiveSchema, LiveTable, introspect
from pylon.storage.names import quote

StepKind = Literal["create_entity", "add_field", "add_json", "add_seq", "add_index"]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation."""

    kind: StepKind
    entity: str
    name: str  # of the field or index; the entity's for a table
    sql: str

    def render(self) -> str:
        """One line for people."""
        return f"{self.kind} {self.entity}" + (f".{self.name}" if self.name != self.entity else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """`refusals` says, one line each, what additive steps cannot do."""

    steps: tuple[Step, ...]
    refusals: tuple[str, ...]

    def check(self) -> None:
        """Raises SchemaRefused, with refusals and plan, if anything is refused."""
        if not self.refusals:
            return
        steps = "; ".join(s.render() for s in self.steps) or "nothing"
        raise SchemaRefused(
            f"the database cannot be brought to the manifest: {'; '.join(self.refusals)} "
            f"(additive steps that could be done: {steps})",
            hint="change the manifest back, or migrate the data to a new field",
            refusals=list(self.refusals), steps=[s.render() for s in self.steps],
        )


def make_plan(conn: apsw.Connection, manifest: Manifest) -> Plan:
    """Compare the database with the manifest."""
    live = introspect(conn, tuple(e.name for e in manifest.entities))
    steps: list[Step] = []
    refusals: list[str] = list(_name_clashes(manifest))
    for entity in manifest.entities:
        table = live.tables.get(entity.name.lower())
        if table is None:
            steps.append(
                Step("create_entity", entity.name, entity.name, ddl.create_table(entity))
            )
        else:
            _compare_table(conn, entity, table, live, steps, refusals)
        _compare_indexes(entity, live, steps, refusals)
    return Plan(tuple(steps), tuple(refusals))


def _name_clashes(manifest: Manifest) -> list[str]:
    """SQLite knows no case in names, and some names are ours or its own."""
    found = []
    entities: set[str] = set()
    indexes: set[str] = set()
    for entity in manifest.entities:
        lower = entity.name.lower()
        if lower.startswith(("sqlite_", "_pylon_")):
            found.append(f"{entity.name}: names that start with sqlite_ or _pylon_ are reserved")
        if lower in entities:
            found.append(f"{entity.name}: another entity has this name in other case")
        entities.add(lower)
        columns = {"id", ddl.JSON_COLUMN, ddl.SEQ_COLUMN}
        for field in entity.fields:
            if field.name.lower() in columns:
                found.append(f"{entity.name}.{field.name}: the name is taken (SQLite has no case)")
            columns.add(field.name.lower())
        for index in entity.indexes:
            name = ddl.index_name(entity, index).lower()
            if name in indexes:
                found.append(f"{ddl.index_name(entity, index)}: two indexes have this name")
            indexes.add(name)
    return found


def _compare_table(
    conn: apsw.Connection,
    entity: Entity,
    table: LiveTable,
    live: LiveSchema,
    steps: list[Step],
    refusals: list[str],
) -> None:
    key = table.columns.get("id")
    if key is None or not key.primary_key:
        refusals.append(f"{entity.name}: the table has no primary key `id`")
        return
    if ddl.JSON_COLUMN not in table.columns:
        steps.append(
            Step("add_json", entity.name, ddl.JSON_COLUMN, ddl.add_json_column(entity))
        )
    if ddl.SEQ_COLUMN not in table.columns:
        steps.append(Step("add_seq", entity.name, ddl.SEQ_COLUMN, ddl.add_seq_column(entity)))
    for field in entity.fields:
        column = table.columns.get(field.name.lower())
        if column is None:
            _add_field(conn, entity, field, live, steps, refusals)
        else:
            refusals += _differences(conn, entity, field, table, column)
    refusals += [
        f"{entity.name}.{column.name}: the field is gone from the manifest but its column is "
        "unique and NOT NULL, so no two rows could be inserted"
        for column in left_over(conn, entity, table)
        if any(i.unique and column.name in i.fields for i in table.indexes)
    ]


def left_over(conn: apsw.Connection, entity: Entity, table: LiveTable) -> list[LiveColumn]:
    """Columns that the manifest no longer names and that an INSERT must fill all the same."""
    known = {c.lower() for c in entity.columns}
    return [
        column
        for lower, column in table.columns.items()
        if lower not in known and column.not_null and not _has_default(conn, table, column)
    ]


def _add_field(
    conn: apsw.Connection,
    entity: Entity,
    field: Field,
    live: LiveSchema,
    steps: list[Step],
    refusals: list[str],
) -> None:
    if not field.optional and _exists(conn, f"SELECT 1 FROM {quote(entity.name)}"):
        refusals.append(
            f"{entity.name}.{field.name}: a new required field on a table that has rows "
            "(make it optional)"
        )
    steps.append(Step("add_field", entity.name, field.name, ddl.add_column(entity, field)))
    if field.unique:
        name = ddl.unique_name(entity, field)
        if name.lower() in live.indexes:
            refusals.append(f"{name}: an index of this name exists already")
        steps.append(
            Step("add_index", entity.name, name,
                 ddl.create_index(name, entity, (field.name,), unique=True))
        )


def _differences(
    conn: apsw.Connection, entity: Entity, field: Field, table: LiveTable, column: LiveColumn
) -> list[str]:
    where = f"{entity.name}.{field.name}"
    found = []
    wanted = ddl.COLUMN_TYPES[field.type]
    if column.type != wanted:
        found.append(f"{where}: the type changes from {column.type or 'none'} to {wanted}")
    if field.optional and column.not_null:
        found.append(f"{where}: required in the database, optional in the manifest")
    # Columns that were added later are never NOT NULL in the database; that is no difference
    # as long as no row makes use of it, since the codec refuses null from then on.
    if not field.optional and not column.not_null and _exists(
        conn, f"SELECT 1 FROM {quote(entity.name)} WHERE {quote(field.name)} IS NULL"
    ):
        found.append(f"{where}: required in the manifest, and rows have null there")
    single = [
        i for i in table.indexes
        if i.unique and not i.partial
        and tuple(f.lower() for f in i.fields) == (field.name.lower(),)
    ]
    if field.unique and not single:
        found.append(f"{where}: unique in the manifest, not in the database")
    own = ddl.unique_name(entity, field).lower()
    if not field.unique and any(i.constraint or i.name.lower() == own for i in single):
        found.append(f"{where}: unique in the database, not in the manifest")
    return found


def _compare_indexes(
    entity: Entity, live: LiveSchema, steps: list[Step], refusals: list[str]
) -> None:
    for index in entity.indexes:
        name = ddl.index_name(entity, index)
        existing = live.indexes.get(name.lower())
        if existing is None:
            sql = ddl.create_index(name, entity, index.fields, index.unique)
            steps.append(Step("add_index", entity.name, name, sql))
            continue
        same = (
            existing.table.lower() == entity.name.lower()
            and tuple(f.lower() for f in existing.fields) == tuple(f.lower() for f in index.fields)
            and existing.unique == index.unique
        )
        if not same:
            refusals.append(f"{name}: an index of this name exists and is another one")


def _exists(conn: apsw.Connection, select: str) -> bool:
    return conn.execute(f"{select} LIMIT 1").get is not None


def _has_default(conn: apsw.Connection, table: LiveTable, column: LiveColumn) -> bool:
    found = conn.execute(
        "SELECT 1 FROM pragma_table_info(?) WHERE name = ? AND dflt_value IS NOT NULL",
        (table.name, column.name),
    ).get
    return found is not None
