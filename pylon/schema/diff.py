"""Diff: lists the differences of two manifests.

The spec (http.md §8) has these kinds: `manifest_version_changed`, and `_added` and `_removed` for
entities, fields, routes, queries, actions and policies. The kinds `_changed`, and those of indexes,
are Pylon's own. Called by `pylonctl schema diff`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pylon.manifest.model import FORMAT_VERSION, Entity, Field, Manifest


class Difference(msgspec.Struct, frozen=True):
    kind: str
    entity: str | None = None
    name: str | None = None
    detail: str | None = None

    def to_json(self) -> dict[str, str]:
        """Return the object of the spec; `detail` has the old and the new value."""
        pairs = {
            "kind": self.kind, "entity": self.entity, "name": self.name, "detail": self.detail,
        }
        return {key: value for key, value in pairs.items() if value is not None}

    def render(self) -> str:
        """Return one line of text."""
        place = ".".join(part for part in (self.entity, self.name) if part)
        return f"{self.kind} {place}".rstrip() + (f": {self.detail}" if self.detail else "")


def differences(old: Manifest, new: Manifest) -> list[Difference]:
    """Return the differences from `old` to `new`, entities first."""
    found: list[Difference] = []
    versions = [m.source.get("manifest_version") or FORMAT_VERSION for m in (old, new)]
    if versions[0] != versions[1]:
        found.append(Difference(
            "manifest_version_changed", detail=f"from {versions[0]} to {versions[1]}"
        ))
    for name, old_value, new_value in _value_pairs(old.by_name, new.by_name):
        if old_value is None or new_value is None:
            found.append(Difference(_kind("entity", old_value), name))
        else:
            found += _compare_entities(old_value, new_value)
    for kind, before, after in (
        ("route", {r.path: r for r in old.routes}, {r.path: r for r in new.routes}),
        ("query", {q.name: q for q in old.queries}, {q.name: q for q in new.queries}),
        ("action", {a.name: a for a in old.actions}, {a.name: a for a in new.actions}),
        ("policy", {p.name: p for p in old.policies}, {p.name: p for p in new.policies}),
    ):
        found += _compare_named(kind, None, before, after)
    return found


def summary(found: list[Difference]) -> dict[str, int]:
    """Return the number of differences, in all and by sort."""
    return {
        "total": len(found),
        "added": sum(d.kind.endswith("_added") for d in found),
        "removed": sum(d.kind.endswith("_removed") for d in found),
        "changed": sum(d.kind.endswith("_changed") for d in found),
    }


def _compare_entities(old: Entity, new: Entity) -> list[Difference]:
    found = []
    for name, old_value, new_value in _value_pairs(old.by_name, new.by_name):
        if old_value is None or new_value is None:
            found.append(Difference(_kind("field", old_value), old.name, name))
        elif old_value != new_value:
            detail = f"from {_field_text(old_value)} to {_field_text(new_value)}"
            found.append(Difference("field_changed", old.name, name, detail))
    return found + _compare_named(
        "index", old.name, {i.name: i for i in old.indexes}, {i.name: i for i in new.indexes}
    )


def _compare_named(
    kind: str, entity: str | None, old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[Difference]:
    found = []
    for name, old_value, new_value in _value_pairs(old, new):
        if old_value is None or new_value is None:
            found.append(Difference(_kind(kind, old_value), entity, name))
        elif old_value != new_value:
            found.append(Difference(f"{kind}_changed", entity, name))
    return found


def _value_pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*old, *new)):
        yield name, old.get(name), new.get(name)


def _kind(noun: str, old_value: object) -> str:
    return f"{noun}_added" if old_value is None else f"{noun}_removed"


def _field_text(field: Field) -> str:
    text = field.type.value + (f"({field.target})" if field.target else "")
    words = [
        word for word, on in (
            ("optional", field.optional), ("unique", field.unique), ("fixed", field.fixed),
        ) if on
    ]
    values = [
        f"{name} {value.argument or value.kind}"
        for name, value in (("default", field.default), ("onUpdate", field.on_update))
        if value is not None
    ]
    values += [
        f"{name} {word}"
        for name, word in (("references", field.references), ("onDelete", field.on_delete)) if word
    ]
    return " ".join([*words, text, *values])
