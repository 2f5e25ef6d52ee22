"""What changed between two manifests, for people and for `pylonctl schema diff`.

The kinds are those of spec/http.md §8 (`manifest_version_changed`, and `_added` and `_removed`
for entities, fields, routes, queries, actions and policies); `_changed`, and indexes, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pylon.manifest.model import Entity, Field, Manifest


@dataclass(frozen=True, slots=True)
class Difference:
    kind: str
    entity: str | None = None
    name: str | None = None
    detail: str | None = None

    def to_json(self) -> dict[str, str]:
        """The object of the spec; `detail` says from what to what."""
        pairs = {
            "kind": self.kind, "entity": self.entity, "name": self.name, "detail": self.detail,
        }
        return {key: value for key, value in pairs.items() if value is not None}

    def render(self) -> str:
        """One line for people."""
        place = ".".join(part for part in (self.entity, self.name) if part)
        return f"{self.kind} {place}".rstrip() + (f": {self.detail}" if self.detail else "")


def differences(old: Manifest, new: Manifest) -> list[Difference]:
    """From `old` to `new`, entities first."""
    found: list[Difference] = []
    versions = [m.source.get("manifest_version", 1) for m in (old, new)]
    if versions[0] != versions[1]:
        found.append(Difference(
            "manifest_version_changed", detail=f"from {versions[0]} to {versions[1]}"
        ))
    for name, was, now in _pairs(old.by_name, new.by_name):
        if was is None or now is None:
            found.append(Difference(_kind("entity", was), name))
        else:
            found += _inside(was, now)
    for kind, before, after in (
        ("route", {r.path: r for r in old.routes}, {r.path: r for r in new.routes}),
        ("query", {q.name: q for q in old.queries}, {q.name: q for q in new.queries}),
        ("action", {a.name: a for a in old.actions}, {a.name: a for a in new.actions}),
        ("policy", {p.name: p for p in old.policies}, {p.name: p for p in new.policies}),
    ):
        found += _named(kind, None, before, after)
    return found


def summary(found: list[Difference]) -> dict[str, int]:
    """How many there are, and of which sort."""
    return {
        "total": len(found),
        "added": sum(d.kind.endswith("_added") for d in found),
        "removed": sum(d.kind.endswith("_removed") for d in found),
        "changed": sum(d.kind.endswith("_changed") for d in found),
    }


def _inside(old: Entity, new: Entity) -> list[Difference]:
    found = []
    for name, was, now in _pairs(old.by_name, new.by_name):
        if was is None or now is None:
            found.append(Difference(_kind("field", was), old.name, name))
        elif was != now:
            detail = f"from {_field(was)} to {_field(now)}"
            found.append(Difference("field_changed", old.name, name, detail))
    return found + _named(
        "index", old.name, {i.name: i for i in old.indexes}, {i.name: i for i in new.indexes}
    )


def _named(
    kind: str, entity: str | None, old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[Difference]:
    found = []
    for name, was, now in _pairs(old, new):
        if was is None or now is None:
            found.append(Difference(_kind(kind, was), entity, name))
        elif was != now:
            found.append(Difference(f"{kind}_changed", entity, name))
    return found


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*old, *new)):
        yield name, old.get(name), new.get(name)


def _kind(what: str, was: object) -> str:
    return f"{what}_added" if was is None else f"{what}_removed"


def _field(field: Field) -> str:
    text = field.type.value + (f"({field.target})" if field.target else "")
    words = [word for word, on in (("optional", field.optional), ("unique", field.unique)) if on]
    return " ".join([*words, text])
