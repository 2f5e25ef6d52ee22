"""Fold plan: the steps for fields that are unique without regard to case.

Such a field has a column with its folded values and a unique index over it (`columns.fold_column`).
The steps add both, fill the column, and drop both when the field is no longer unique in this way.
Called by `plan`.
"""

from __future__ import annotations

from pylon.manifest.model import Entity
from pylon.schema.columns import FOLD_PREFIX, fold_column, fold_fields, fold_index
from pylon.schema.draft import PlanDraft
from pylon.schema.live import LiveTable
from pylon.schema.steps import Step


def plan_folds(draft: PlanDraft, entity: Entity, table: LiveTable | None) -> None:
    """Plan the columns and indexes of fields that are unique without regard to case."""
    database = draft.database
    fields = fold_fields(entity)
    for folded in fields:
        column = fold_column(folded)
        index = fold_index(entity, folded)
        add_index = Step("add_index", entity.name, database.fitting_name(index.name),
                         database.create_index(index.name, entity, index))
        if table is None:
            draft.steps.append(add_index)
            continue
        has_column = column.lower() in table.columns
        if has_column and any(
            i.unique and not i.partial and i.fields == (column,) for i in table.indexes
        ):
            continue
        if not has_column:
            draft.steps.append(Step(
                "add_fold", entity.name, column, database.add_fold_column(entity, folded)
            ))
        present = table.columns.get(folded.name.lower())
        if present is not None:
            repeated = draft.find_repeated(table, [present], is_folded=True)
            if repeated:
                draft.refusals.append(
                    f"{entity.name}.{folded.name}: unique without regard to case, and rows share "
                    f"{repeated}: UNIQUE constraint failed; change or remove them first"
                )
        draft.steps.append(
            Step("fill_fold", entity.name, column, database.fill_folds(entity, folded))
        )
        draft.steps.append(add_index)
    wanted = {fold_column(folded).lower() for folded in fields}
    for lower, live in table.columns.items() if table is not None else ():
        if not lower.startswith(FOLD_PREFIX) or lower in wanted or table is None:
            continue
        for own in table.indexes:
            if own.fields == (live.name,):
                draft.steps.append(draft.remove_index(own, destructive=False))
        drop = database.drop_column(entity.name, live.name)
        draft.steps.append(Step("remove_fold", entity.name, live.name, drop))
