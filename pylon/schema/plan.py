"""Migration plan: computes the steps from a live schema to the manifest (spec/http.md §2.9).

A start executes additive steps and changes of indexes. Only `pylonctl schema apply` executes steps
that rewrite or remove data: changes of type, nullability or uniqueness, values for a new required
field, and requested renames and removals. The plan also lists changes that the present data does
not allow, as refusals. A start with rewrites or refusals fails and prints the whole plan. Fields,
tables and indexes that the manifest does not name stay as they are.

Invariant: a backend makes the plan where nobody else changes the schema until it has executed the
plan, so the schema cannot change in between. Called by the schema code of the backends.
"""

from __future__ import annotations

from collections.abc import Mapping

from pylon.manifest import references
from pylon.manifest.model import Entity, Field, Index, Manifest
from pylon.schema import options
from pylon.schema.columns import (
    JSON_COLUMN,
    SEQ_COLUMN,
    constant_of,
    fold_column,
    fold_fields,
    where_fields,
)
from pylon.schema.convert import has_other_form, lossy_value
from pylon.schema.database import Database
from pylon.schema.draft import PlanDraft
from pylon.schema.fold_plan import plan_folds
from pylon.schema.live import LiveColumn, LiveIndex, LiveTable, renamed
from pylon.schema.names import name_clashes
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Plan, Step


def make_plan(
    database: Database, manifest: Manifest, asked: MigrationOptions = options.NONE
) -> Plan:
    """Compare the database, after the renames in `asked`, with the manifest. Return the plan."""
    names = (*(e.name for e in manifest.entities), *asked.rename_entities, *asked.drop_entities)
    live = database.introspect(names)
    own = {name: asked.entity_now(entity) for name, entity in database.own_indexes().items()}
    draft = PlanDraft(database, live, asked, own)
    manifest = references.with_reference_indexes(
        manifest, by_default=database.references_by_default()
    )
    draft.refusals += name_clashes(manifest, database)
    _plan_renames(draft)
    draft.live = live = renamed(live, asked)
    _plan_removals(draft)
    _plan_index_removals(draft, manifest)
    for entity in manifest.entities:
        table = live.tables.get(entity.name.lower())
        if table is None:
            _count_columns(draft, entity, {})
            draft.steps.append(
                Step("create_entity", entity.name, entity.name, database.create_table(entity))
            )
        else:
            if database.has_case and table.name != entity.name:
                draft.rewrites.append(
                    Step("rename_entity", entity.name, entity.name, detail=f"was {table.name}")
                )
            _compare_table(draft, entity, table)
        plan_folds(draft, entity, table)
        for index in entity.indexes:
            _compare_index(draft, entity, index)
    return Plan(tuple(draft.steps), tuple(draft.rewrites), tuple(draft.refusals))


def _plan_renames(draft: PlanDraft) -> None:
    tables = draft.live.tables
    for old, new in draft.options.rename_entities.items():
        if old not in tables:
            draft.refusals.append(f"--rename-entity {old}:{new}: there is no table {old}")
        elif new.lower() in tables:
            draft.refusals.append(f"--rename-entity {old}:{new}: there is a table {new} already")
        else:
            name = tables[old].name
            draft.rewrites.append(Step("rename_entity", new, new, detail=f"was {name}"))
    sources = {new.lower(): old for old, new in draft.options.rename_entities.items()}
    for (entity, old), new in draft.options.rename_fields.items():
        table = tables.get(sources.get(entity, entity))
        if table is None or old not in table.columns:
            draft.refusals.append(f"--rename-field {entity}.{old}:{new}: there is no such column")
        elif new.lower() in table.columns:
            draft.refusals.append(f"--rename-field {entity}.{old}:{new}: {new} exists already")
        else:
            name = draft.options.entity_now(table.name)
            was = table.columns[old].name
            draft.rewrites.append(Step("rename_field", name, new, detail=f"was {was}"))


def _plan_removals(draft: PlanDraft) -> None:
    """Plan the requested removals."""
    live, asked = draft.live, draft.options
    for name in sorted(asked.drop_indexes):
        index = live.indexes.get(name)
        if index is None or index.constraint:
            draft.refusals.append(f"--drop-index {name}: there is no such index")
        else:
            draft.rewrites.append(draft.remove_index(index, destructive=True))
    for name in sorted(asked.drop_entities):
        table = live.tables.get(name)
        if table is None:
            draft.refusals.append(f"--drop-entity {name}: there is no such table")
        else:
            rows = draft.database.count_rows(table)
            draft.rewrites.append(Step(
                "remove_entity", table.name, table.name, detail=f"{rows} rows are removed",
                destructive=True,
            ))
    for entity, name in sorted(asked.drop_fields):
        table = live.tables.get(entity)
        column = table.columns.get(name) if table is not None else None
        if table is None or column is None:
            draft.refusals.append(f"--drop-field {entity}.{name}: there is no such column")
        else:
            draft.rewrites.append(Step(
                "remove_field", table.name, column.name, detail="its values are removed",
                destructive=True,
            ))


def _plan_index_removals(draft: PlanDraft, manifest: Manifest) -> None:
    """Plan the removal of indexes that Pylon made and the manifest no longer names."""
    wanted = {draft.index_name(e, i).lower() for e in manifest.entities for i in e.indexes}
    entities = {e.name.lower() for e in manifest.entities}
    for name, entity in sorted(draft.own.items()):
        index = draft.live.indexes.get(name)
        if index is None or name in wanted or name in draft.options.drop_indexes:
            continue
        if entity.lower() in entities:
            draft.steps.append(draft.remove_index(index, destructive=False))


def _compare_table(draft: PlanDraft, entity: Entity, table: LiveTable) -> None:
    key = table.columns.get("id")
    if key is None or not key.primary_key:
        draft.refusals.append(f"{entity.name}: the table has no primary key `id`")
        return
    changed_key = draft.database.key_change(key)
    if changed_key:
        draft.rewrites.append(Step("alter_field", entity.name, "id", detail=changed_key,
                                   destructive=not draft.options.adopts))
    for name, sql in draft.database.foreign_search(table.source):
        draft.steps.append(Step("remove_search_index", entity.name, name, sql,
                                 "another server's text search; Pylon has its own"))
    if JSON_COLUMN not in table.columns:
        draft.steps.append(
            Step("add_json", entity.name, JSON_COLUMN, draft.database.add_json_column(entity))
        )
    if SEQ_COLUMN not in table.columns:
        draft.steps.append(
            Step("add_seq", entity.name, SEQ_COLUMN, draft.database.add_seq_column(entity))
        )
    _count_columns(draft, entity, table.columns)
    for wanted in entity.fields:
        column = table.columns.get(wanted.name.lower())
        if column is None:
            _add_field(draft, entity, wanted, table)
        else:
            _compare_field(draft, entity, wanted, table, column)
    draft.refusals += [
        f"{entity.name}.{column.name}: the field is gone from the manifest but its column is "
        "unique and NOT NULL, so no two rows could be inserted "
        f"(remove it: --drop-field {entity.name}.{column.name})"
        for column in columns_to_fill(draft.database, entity, table)
        if any(i.unique and column.name in i.fields for i in table.indexes)
        and (entity.name.lower(), column.name.lower()) not in draft.options.drop_fields
    ]


def _count_columns(
    draft: PlanDraft, entity: Entity, live: Mapping[str, LiveColumn]
) -> None:
    """Refuse more columns than the database's limit, which counts those of removed fields too."""
    dropped = {name for owner, name in draft.options.drop_fields if owner == entity.name.lower()}
    wanted = {c.lower() for c in entity.columns} | {JSON_COLUMN, SEQ_COLUMN}
    wanted |= {fold_column(field).lower() for field in fold_fields(entity)}
    stay = live.keys() - dropped - wanted
    limit, title = draft.database.column_limit, draft.database.title
    if len(wanted) > limit:
        draft.refusals.append(
            f"{entity.name}: {len(wanted):,} columns; {title} takes {limit:,}"
        )
    elif stay and len(wanted) + len(stay) > limit:
        draft.refusals.append(
            f"{entity.name}: {len(wanted) + len(stay):,} columns, of which the manifest no "
            f"longer names {len(stay):,}; {title} takes {limit:,} "
            f"(remove some: --drop-field {entity.name}.{min(stay)})"
        )


def columns_to_fill(
    database: Database, entity: Entity, table: LiveTable
) -> list[LiveColumn]:
    """Return the columns that the manifest no longer names and that an INSERT must still fill."""
    known = {c.lower() for c in entity.columns}
    return [
        column
        for lower, column in table.columns.items()
        if lower not in known and column.not_null and not database.has_default(table, column)
    ]


def _add_field(draft: PlanDraft, entity: Entity, wanted: Field, table: LiveTable) -> None:
    where = f"{entity.name}.{wanted.name}"
    rows = 0 if wanted.optional else draft.database.count_rows(table)
    if rows:
        default = draft.options.defaults.get((entity.name.lower(), wanted.name.lower()))
        constant = constant_of(wanted)
        if default is None and constant is not None and not wanted.unique:
            draft.steps.append(Step(
                "add_field", entity.name, wanted.name,
                draft.database.add_filled_column(entity, wanted, constant),
                f"{rows} rows get the default {constant!r}",
            ))
            return
        if default is None:
            draft.refusals.append(
                f"{where}: a new required field on a table that has rows "
                f"(make it optional, or give them a value: --default {where}=VALUE)"
            )
        elif wanted.unique and rows > 1:
            draft.refusals.append(f"{where}: {rows} rows cannot all have {default!r} in a "
                                   "unique field (add it as optional, and fill it)")
        else:
            draft.rewrites.append(Step(
                "add_field", entity.name, wanted.name,
                detail=f"a new required field; {rows} rows get {default!r}", destructive=True,
            ))
        return
    draft.steps.append(
        Step("add_field", entity.name, wanted.name, draft.database.add_column(entity, wanted))
    )
    if wanted.unique:
        _add_unique(draft, entity, wanted)


def _add_unique(draft: PlanDraft, entity: Entity, wanted: Field) -> None:
    """Plan an index in place of UNIQUE, for a field that no two rows can share a value of."""
    name = draft.unique_name(entity, wanted)
    for index in entity.indexes:
        if draft.index_name(entity, index).lower() == name.lower():
            if not index.unique or index.fields != (wanted.name,):
                draft.refusals.append(f"{entity.name}.{index.name}: this name is needed for an "
                                       f"index that keeps {wanted.name} unique")
            return
    if name.lower() in draft.live.indexes and name.lower() not in draft.removed():
        draft.refusals.append(f"{name}: an index of this name exists already")
    draft.steps.append(
        Step("add_index", entity.name, name,
             draft.database.create_index(name, entity, Index(name, (wanted.name,), True)))
    )


def _compare_field(
    draft: PlanDraft, entity: Entity, wanted: Field, table: LiveTable, column: LiveColumn
) -> None:
    where = f"{entity.name}.{wanted.name}"
    if draft.database.has_case and column.name != wanted.name:
        draft.rewrites.append(
            Step("rename_field", entity.name, wanted.name, detail=f"was {column.name}")
        )
    details: list[str] = []
    sql_type = draft.database.column_type(wanted)
    if column.type != sql_type:
        details.append(f"the type changes from {column.type or 'none'} to {sql_type}")
    elif has_other_form(draft.database, wanted, table, column):
        details.append(f"the type changes to {wanted.type.value}")
    elif (problem := lossy_value(draft.database, entity, wanted, table, column)) is not None:
        draft.refusals.append(problem)
    loosening = ""
    if wanted.optional and column.not_null:
        loosening = draft.database.drop_not_null(entity.name, column.source)
        if not loosening:
            details.append("required in the database, optional in the manifest")
    # A column added later is never NOT NULL in the database. That is no difference while no row
    # has null, because the codec refuses null from then on.
    if not wanted.optional and not column.not_null:
        nulls = draft.database.count_nulls(table, column)
        default = draft.options.defaults.get((entity.name.lower(), wanted.name.lower()))
        if nulls and default is None:
            draft.refusals.append(
                f"{where}: required in the manifest, and rows have null there ({nulls}; "
                f"give them a value: --default {where}=VALUE)"
            )
        elif nulls:
            details.append(f"required in the manifest; {nulls} rows with null get {default!r}")
    single = [
        i for i in table.indexes
        if i.unique and not i.partial
        and tuple(f.lower() for f in i.fields) == (wanted.name.lower(),)
    ]
    # An index of the manifest may leave with it, so it does not make the field unique for good.
    passing = draft.removed() | set(draft.own) | {
        draft.index_name(entity, i).lower() for i in entity.indexes
    }
    if wanted.unique and single and all(i.name.lower() in passing for i in single):
        _add_unique(draft, entity, wanted)
    elif wanted.unique and not single:
        repeated = draft.find_repeated(table, (column,))
        if repeated:
            draft.refusals.append(f"{where}: unique in the manifest, not in the database, and "
                                   f"rows share {repeated}: change or remove them first")
        elif draft.database.adds_uniqueness:
            _add_unique(draft, entity, wanted)
        else:
            details.append("unique in the manifest, not in the database")
    if not wanted.unique and any(_is_field_unique(draft, entity, wanted, i) for i in single):
        details.append("unique in the database, not in the manifest")
    if loosening and not details:
        draft.steps.append(
            Step("alter_field", entity.name, wanted.name, loosening, "it may be null now")
        )
    if details:
        is_adopted = (
            draft.options.adopts and len(details) == 1 and column.type != sql_type
            and draft.database.is_lossless(column, wanted)
        )
        draft.rewrites.append(
            Step("alter_field", entity.name, wanted.name, detail=", ".join(details),
                 destructive=not is_adopted)
        )


def _is_field_unique(draft: PlanDraft, entity: Entity, wanted: Field, index: LiveIndex) -> bool:
    """Whether `index` implements UNIQUE of the field, and is not an index of the manifest."""
    name = index.name.lower()
    if index.constraint:
        return True
    indexes = {draft.index_name(entity, i).lower() for i in entity.indexes}
    return (
        name == draft.unique_name(entity, wanted).lower()
        and name not in indexes and name not in draft.own
    )


def _add_index(draft: PlanDraft, entity: Entity, index: Index, add: Step) -> None:
    """Plan an index. Refuse a unique one if rows share a value."""
    draft.steps.append(add)
    table = draft.live.tables.get(entity.name.lower())
    if table is None or not index.unique or "id" in index.fields:
        return
    columns = [table.columns.get(name.lower()) for name in index.fields]
    defaults = draft.options.defaults
    present = [column for column in columns if column is not None]
    for name, column in zip(index.fields, columns, strict=True):
        if column is None and (entity.name.lower(), name.lower()) not in defaults:
            return  # a new field is null in every row, and a null is equal to nothing
    where = ""
    for name in where_fields(entity, index):
        column = table.columns.get(name.lower())
        if column is None or column.source != name:
            return  # a new or renamed field: the database itself refuses the index
        where = draft.database.where_text(entity, index)
    if present:
        repeated = draft.find_repeated(table, present, where)
    else:
        rows = draft.database.count_rows(table)
        repeated = f"the default ({rows} rows)" if rows > 1 else ""
    if repeated:
        draft.refusals.append(
            f"{add.name}: a unique index over {', '.join(index.fields)}, and rows share "
            f"{repeated}: UNIQUE constraint failed; change or remove them first"
        )


def _compare_index(draft: PlanDraft, entity: Entity, index: Index) -> None:
    name = draft.index_name(entity, index)
    existing = draft.live.indexes.get(name.lower())
    add = Step("add_index", entity.name, name,
               draft.database.create_index(name, entity, index))
    if existing is None or name.lower() in draft.options.drop_indexes:
        _add_index(draft, entity, index, add)
        return
    if draft.database.is_same_index(existing, entity, index):
        return
    if draft.own.get(name.lower(), "").lower() == entity.name.lower():
        draft.steps.append(draft.remove_index(existing, destructive=False))
        _add_index(draft, entity, index, add)
    elif existing.table.lower() == entity.name.lower() and not existing.constraint:
        draft.rewrites.append(draft.remove_index(
            existing, destructive=True,
            detail="an index of this name exists and is another one, which Pylon has not made",
        ))
        _add_index(draft, entity, index, add)
    else:
        draft.refusals.append(f"{name}: an index of this name exists and is another one")
