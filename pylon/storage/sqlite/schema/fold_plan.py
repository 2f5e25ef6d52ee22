"""Fold plan: the steps for fields that are unique without regard to case.

Such a field has a column with its folded values and a unique index over it (`ddl.fold_column`). The
steps add both, fill the column, and drop both when the field is no longer unique in this way.
Called by `plan`.
"""

from __future__ import annotations

from pylon.manifest.model import Entity
from pylon.schema.steps import Step
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import ddl
from pylon.storage.sqlite.schema.live import LiveTable
from pylon.storage.sqlite.schema.plan_draft import PlanDraft, find_repeated, remove_index


def plan_folds(draft: PlanDraft, entity: Entity, table: LiveTable | None) -> None:
    """Plan the columns and indexes of fields that are unique without regard to case."""
    fields = ddl.fold_fields(entity)
    for folded in fields:
        column = ddl.fold_column(folded)
        name, index = ddl.fold_index(entity, folded)
        add_index = Step("add_index", entity.name, name, index)
        if table is None:
            draft.steps.append(add_index)
            continue
        has_column = column.lower() in table.columns
        if has_column and any(
            i.unique and not i.partial and i.fields == (column,) for i in table.indexes
        ):
            continue
        if not has_column:
            add = f"ALTER TABLE {quote(entity.name)} ADD COLUMN {quote(column)} TEXT"
            draft.steps.append(Step("add_fold", entity.name, column, add))
        present = table.columns.get(folded.name.lower())
        if present is not None:
            ddl.register_fold(draft.conn)
            repeated = find_repeated(draft, table, [present], function=ddl.FOLD_FUNCTION)
            if repeated:
                draft.refusals.append(
                    f"{entity.name}.{folded.name}: unique without regard to case, and rows share "
                    f"{repeated}: UNIQUE constraint failed; change or remove them first"
                )
        draft.steps.append(
            Step("fill_fold", entity.name, column, ddl.fill_folds(entity, folded))
        )
        draft.steps.append(add_index)
    wanted = {ddl.fold_column(folded).lower() for folded in fields}
    for lower, live in table.columns.items() if table is not None else ():
        if not lower.startswith(ddl.FOLD_PREFIX) or lower in wanted or table is None:
            continue
        for own in table.indexes:
            if own.fields == (live.name,):
                draft.steps.append(remove_index(own, destructive=False))
        drop = f"ALTER TABLE {quote(entity.name)} DROP COLUMN {quote(live.name)}"
        draft.steps.append(Step("remove_fold", entity.name, live.name, drop))
