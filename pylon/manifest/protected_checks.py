"""Protected checks: report what of a manifest would show a hidden field, or have no effect.

A search and a relation answer clients with the values of their fields, so neither may use a hidden
one (`pylon.manifest.protected`). Policies are checked by `pylon.policy.scope`. Called by
`pylon.manifest_loader`.
"""

from __future__ import annotations

from pylon.manifest.document import Node
from pylon.manifest.findings import Findings, items_of, text_of, texts_of
from pylon.manifest.protected import ProtectedNames, protected_names


def check_protected(root: Node, findings: Findings) -> None:
    """Report each use of a hidden field, and documents of an entity that has one."""
    names = protected_names(root.plain())
    entities = {
        name.value: entity for entity in items_of(root, "entities")
        if (name := text_of(entity, "name")) is not None
    }
    hidden = {name: _hidden_fields(name, entity, names) for name, entity in entities.items()}
    for name, entity in entities.items():
        if not isinstance(entity.value, dict):
            continue
        search = entity.value.get("search")
        if search is not None and hidden[name]:
            for key in ("text", "facets", "sortable"):
                for field in texts_of(search, key):
                    _check(field, hidden[name], f"{key} of search", findings)
        for relation in items_of(entity, "relations"):
            field_of, target = text_of(relation, "field"), text_of(relation, "target")
            if field_of is None or not isinstance(relation.value, dict):
                continue
            _check(field_of, hidden[name], "the relation", findings)
            many = relation.value.get("many")
            if target is not None and many is not None and many.value is True:
                _check(field_of, hidden.get(target.value, set()), "the relation", findings)
        crdt = entity.value.get("crdt")
        if crdt is not None and crdt.value is True and hidden[name]:
            findings.warning(
                "MANIFEST_KEY_WITHOUT_EFFECT",
                f'the key "crdt" of the entity "{name}" has no effect here', crdt.at,
                "a document has all fields of its row, and this entity has hidden ones: "
                f"{', '.join(sorted(hidden[name]))}",
            )


def _hidden_fields(name: str, entity: Node, names: ProtectedNames) -> set[str]:
    found: set[str] = set()
    for field in items_of(entity, "fields"):
        called = text_of(field, "name")
        if called is None or not isinstance(field.value, dict):
            continue
        server_only = field.value.get("serverOnly")
        is_marked = server_only is not None and server_only.value is True
        if is_marked or names.is_secret(name, called.value):
            found.add(called.value)
    return found


def _check(field: Node, hidden: set[str], noun: str, findings: Findings) -> None:
    if field.value in hidden:
        findings.error(
            "FIELD_HIDDEN", f'{noun} names the field "{field.value}", which no client may see',
            field.at, "use another field, or remove serverOnly",
        )
