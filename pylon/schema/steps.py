"""What a schema plan is made of, and what no plan can be made for.

Built and carried out by a backend (`pylon.storage.schemas`), shown by `pylonctl schema plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from pylon.errors import SchemaRefused

StepKind = Literal[
    "create_entity", "add_field", "add_json", "add_seq", "add_index", "remove_index",
    "remove_search_index", "rename_entity", "rename_field", "alter_field", "remove_field",
    "remove_entity",
]
# The operations of spec/http.md §8 know no such ones.
_OPERATIONS: Final = {"add_json": "add_field", "add_seq": "add_field"}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. A rewriting step has no SQL of its own; `rewrite` knows how."""

    kind: StepKind
    entity: str  # as it is named after the renames
    name: str  # of the field or index; the entity's for a table
    sql: str = ""
    detail: str = ""
    destructive: bool = False

    def render(self) -> str:
        """One line for people."""
        text = f"{self.kind} {self.entity}" + (f".{self.name}" if self.name != self.entity else "")
        return f"{text}: {self.detail}" if self.detail else text

    def to_json(self) -> dict[str, Any]:
        """The operation object of spec/http.md §8."""
        body: dict[str, Any] = {
            "op": _OPERATIONS.get(self.kind, self.kind), "entity": self.entity,
            "name": self.name, "destructive": self.destructive,
        }
        if self.detail:
            body["detail"] = self.detail
        return body


@dataclass(frozen=True, slots=True)
class Plan:
    """`refusals` says, one line each, what cannot be done as things are."""

    steps: tuple[Step, ...]  # what a start does
    rewrites: tuple[Step, ...]  # what only `schema apply` does, before the steps
    refusals: tuple[str, ...]

    @property
    def destructive(self) -> bool:
        """Whether any step rewrites or removes data."""
        return any(s.destructive for s in self.rewrites)

    def check(self) -> None:
        """Raises SchemaRefused, with refusals and plan, if a start cannot do it."""
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


def _stop(step: Step) -> str:
    return f"{step.entity}.{step.name}: {step.detail}" if step.detail else step.render()
