"""Plan draft: a migration plan under construction, and the steps that its parts share.

Called by `plan` and `fold_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import apsw

from pylon.schema.options import MigrationOptions
from pylon.schema.steps import Step
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema.live import LiveColumn, LiveIndex, LiveSchema, LiveTable

_SHOWN: Final = 3  # conflicting values named in a refusal
_SHOWN_CHARS: Final = 40  # characters of each value


@dataclass(slots=True)
class PlanDraft:
    """A plan under construction."""

    conn: apsw.Connection
    live: LiveSchema
    options: MigrationOptions
    own: dict[str, str]  # indexes that Pylon made -> the entity's name after the renames
    steps: list[Step] = field(default_factory=list)
    rewrites: list[Step] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def count(self, select: str, *values: object) -> int:
        """Return the number that `select` yields."""
        return int(self.conn.execute(select, values).get)

    def removed(self) -> set[str]:
        """Return the lower-case names of the indexes that the plan removes so far."""
        planned = (*self.steps, *self.rewrites)
        return {s.name.lower() for s in planned if s.kind == "remove_index"}


def remove_index(index: LiveIndex, destructive: bool, detail: str = "") -> Step:
    """Return the step that drops an index."""
    return Step("remove_index", index.table, index.name, f"DROP INDEX {quote(index.name)}",
                detail, destructive)


def find_repeated(
    draft: PlanDraft, table: LiveTable, columns: Sequence[LiveColumn], where: str = "1",
    function: str = "",
) -> str:
    """Return the values that several rows share, as text; "" if there are none.

    A null is equal to nothing.

    Args:
        where: the condition of a partial index.
        function: values are equal if it returns the same for them.
    """
    names = [f"{function}({quote(column.source)})" for column in columns]
    group = ", ".join(names)
    rows: list[Any] = draft.conn.execute(
        f"SELECT {group}, count(*) FROM {quote(table.source)} "
        f"WHERE {' AND '.join(f'{name} IS NOT NULL' for name in names)} AND ({where}) "
        f"GROUP BY {group} HAVING count(*) > 1 LIMIT {_SHOWN}"
    ).fetchall()
    return ", ".join(
        f"{' and '.join(repr(str(value)[:_SHOWN_CHARS]) for value in values)} ({count} times)"
        for *values, count in rows
    )
