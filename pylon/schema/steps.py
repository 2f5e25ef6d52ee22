"""Schema plan: the steps of a schema change, and the changes that are refused.

A backend builds and executes the plan (`pylon.storage.schemas`); `pylonctl schema plan` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from pylon.errors import SchemaRefused

StepKind = Literal[
    "create_entity", "add_field", "add_json", "add_seq", "add_index", "remove_index",
    "remove_search_index", "rename_entity", "rename_field", "alter_field", "remove_field",
    "remove_entity", "add_fold", "fill_fold", "remove_fold",
]
# Steps after which rows have another shape, so that every client resyncs.
RESHAPING: Final = frozenset(
    {"rename_entity", "rename_field", "alter_field", "remove_field", "remove_entity", "add_field"}
)
# Those among the rewrites that change the columns of a table.
REBUILDING: Final = frozenset({"alter_field", "remove_field", "add_field"})
# The API reports these steps as `add_field`, because spec/http.md §8 has no name for them.
_OPERATIONS: Final = {
    "add_json": "add_field", "add_seq": "add_field", "add_fold": "add_field",
    "fill_fold": "add_field", "remove_fold": "remove_index",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. A step that rewrites has no SQL; the backend's `rewrite` module executes it.
    """

    kind: StepKind
    entity: str  # name after the renames
    name: str  # of the field or index; for a table the entity's name
    sql: str = ""
    detail: str = ""
    destructive: bool = False

    def render(self) -> str:
        """Return one line of text."""
        text = f"{self.kind} {self.entity}" + (f".{self.name}" if self.name != self.entity else "")
        return f"{text}: {self.detail}" if self.detail else text

    def to_json(self) -> dict[str, Any]:
        """Return the operation object of spec/http.md §8."""
        body: dict[str, Any] = {
            "op": _OPERATIONS.get(self.kind, self.kind), "entity": self.entity,
            "name": self.name, "destructive": self.destructive,
        }
        if self.detail:
            body["detail"] = self.detail
        return body


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan. `refusals` has one line for each change that is not possible."""

    steps: tuple[Step, ...]  # executed by a start
    rewrites: tuple[Step, ...]  # executed only by `schema apply`, before the steps
    refusals: tuple[str, ...]

    @property
    def destructive(self) -> bool:
        """Whether any step rewrites or removes data."""
        return any(s.destructive for s in self.rewrites)

    def check(self) -> None:
        """Check that a start can execute the plan.

        Raises:
            SchemaRefused: with the refusals and the plan.
        """
        stops = [_stop(s) for s in self.rewrites] + list(self.refusals)
        if not stops:
            return
        steps = "; ".join(s.render() for s in self.steps) or "nothing"
        raise SchemaRefused(
            f"the database cannot be brought to the manifest: {'; '.join(stops)} "
            f"(additive steps that could be done: {steps})",
            hint="change the manifest back, or stop the server and see: pylonctl schema plan, "
            "pylonctl schema apply --allow-destructive",
            refusals=stops, steps=[s.render() for s in self.steps],
        )


    def check_apply(self, *, allow_destructive: bool) -> None:
        """Check that `schema apply` may execute the plan.

        Raises:
            SchemaRefused: with the refusals, or the steps that rewrite or remove data.
        """
        if self.refusals:
            raise SchemaRefused("; ".join(self.refusals), refusals=list(self.refusals))
        if self.destructive and not allow_destructive:
            lines = [s.render() for s in self.rewrites if s.destructive]
            raise SchemaRefused(
                f"this rewrites or removes data: {'; '.join(lines)}",
                hint="give --allow-destructive if that is wanted", refusals=lines,
            )


class Prepared(msgspec.Struct, frozen=True):
    """The result of a start's additive migration.

    `retained_columns` has, for each entity, the columns that the manifest no longer names and that
    need a value in each row, with the value that inserts give them.
    """

    plan: Plan
    created: bool  # the database had no lineage: Pylon has not opened it before
    epoch_opened: bool
    lineage: str
    retained_columns: dict[str, dict[str, object]]


def _stop(step: Step) -> str:
    return f"{step.entity}.{step.name}: {step.detail}" if step.detail else step.render()
