"""Plan draft: a migration plan under construction, and the steps that its parts share.

Called by `plan` and `fold_plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from pylon.manifest.model import Entity, Field, Index
from pylon.schema.columns import index_name, unique_name
from pylon.schema.database import Database
from pylon.schema.live import LiveColumn, LiveIndex, LiveSchema, LiveTable
from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Step

_SHOWN: Final = 3  # conflicting values named in a refusal
_SHOWN_CHARS: Final = 40  # characters of each value


class PlanDraft(msgspec.Struct):
    """A plan under construction."""

    database: Database
    live: LiveSchema
    options: MigrationOptions
    own: Mapping[str, str]  # indexes that Pylon made -> the entity's name after the renames
    steps: list[Step] = msgspec.field(default_factory=list)
    rewrites: list[Step] = msgspec.field(default_factory=list)
    refusals: list[str] = msgspec.field(default_factory=list)

    def index_name(self, entity: Entity, index: Index) -> str:
        """Return the name of an index of the manifest, as the database keeps it."""
        return self.database.fitting_name(index_name(entity, index))

    def unique_name(self, entity: Entity, wanted: Field) -> str:
        """Return the name of the index that keeps a field unique, as the database keeps it."""
        return self.database.fitting_name(unique_name(entity, wanted))

    def removed(self) -> set[str]:
        """Return the lower-case names of the indexes that the plan removes so far."""
        planned = (*self.steps, *self.rewrites)
        return {s.name.lower() for s in planned if s.kind == "remove_index"}

    def remove_index(self, index: LiveIndex, destructive: bool, detail: str = "") -> Step:
        """Return the step that drops an index."""
        return Step("remove_index", index.table, index.name, self.database.drop_index(index.name),
                    detail, destructive)

    def find_repeated(
        self, table: LiveTable, columns: Sequence[LiveColumn], where: str = "", *,
        is_folded: bool = False,
    ) -> str:
        """Return the values that several rows share, as text; "" if there are none."""
        found = self.database.find_repeated(
            table, columns, where, is_folded=is_folded, limit=_SHOWN
        )
        return ", ".join(
            f"{' and '.join(repr(str(value)[:_SHOWN_CHARS]) for value in values)} ({count} times)"
            for values, count in found
        )
