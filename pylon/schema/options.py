"""Migration options: the operator's renames, removals and defaults for a schema change.

A manifest cannot distinguish a rename from a removal and an addition. It neither permits the
removal of data that it no longer names, nor has values for existing rows. The options do. Names
are compared without ASCII case, as in SQLite.

`pylonctl schema` builds them from its flags; a backend's schema code reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pylon.errors import InvalidData
from pylon.manifest.model import Manifest

FieldKey = tuple[str, str]  # entity and field, in lower case


@dataclass(frozen=True, slots=True)
class MigrationOptions:
    """Keys and names in sets are in lower case; new names and defaults keep their spelling."""

    rename_entities: Mapping[str, str] = field(default_factory=dict)  # old to new
    rename_fields: Mapping[FieldKey, str] = field(default_factory=dict)  # (new entity, old) to new
    drop_entities: frozenset[str] = frozenset()
    drop_fields: frozenset[FieldKey] = frozenset()
    drop_indexes: frozenset[str] = frozenset()
    defaults: Mapping[FieldKey, str] = field(default_factory=dict)  # as typed on the command line
    adopts: bool = False  # types of another server become Pylon's, where no value is lost

    def entity_now(self, old: str) -> str:
        """Return the name of a table after the renames."""
        return self.rename_entities.get(old.lower(), old)


NONE = MigrationOptions()


def read_options(
    manifest: Manifest,
    *,
    rename_entities: tuple[str, ...] = (),
    rename_fields: tuple[str, ...] = (),
    drop_entities: tuple[str, ...] = (),
    drop_fields: tuple[str, ...] = (),
    drop_indexes: tuple[str, ...] = (),
    defaults: tuple[str, ...] = (),
) -> MigrationOptions:
    """Parse the flags. Entities have their names of the new manifest.

    The forms are, in order of the arguments: ``OLD:NEW``, ``Entity.OLD:NEW``, ``Entity``,
    ``Entity.field``, ``name`` and ``Entity.field=value``.

    Raises:
        InvalidData: a flag is malformed, or contradicts the manifest.
    """
    fields = {e.name.lower(): {f.name.lower() for f in e.fields} for e in manifest.entities}
    entities: dict[str, str] = {}
    for text in rename_entities:
        old, new = _pair("--rename-entity", text, ":", "OLD:NEW")
        if new.lower() not in fields:
            raise InvalidData(f"--rename-entity {text}: the manifest has no entity {new}")
        if old.lower() in fields:
            raise InvalidData(f"--rename-entity {text}: the manifest still has an entity {old}")
        entities[old.lower()] = new
    renamed: dict[FieldKey, str] = {}
    for text in rename_fields:
        place, new = _pair("--rename-field", text, ":", "Entity.OLD:NEW")
        entity, old = _pair("--rename-field", place, ".", "Entity.OLD:NEW")
        known = _fields_of(fields, entity, f"--rename-field {text}")
        if new.lower() not in known:
            raise InvalidData(f"--rename-field {text}: the manifest has no field {entity}.{new}")
        if old.lower() in known or old.lower() == "id":
            raise InvalidData(f"--rename-field {text}: the manifest still has {entity}.{old}")
        renamed[entity.lower(), old.lower()] = new
    for name in drop_entities:
        if name.lower() in fields:
            raise InvalidData(f"--drop-entity {name}: the manifest still has it")
        if name.lower().startswith(("sqlite_", "_pylon_")):
            raise InvalidData(f"--drop-entity {name}: this table is not an entity's")
    dropped: set[FieldKey] = set()
    for text in drop_fields:
        entity, name = _pair("--drop-field", text, ".", "Entity.field")
        known = _fields_of(fields, entity, f"--drop-field {text}")
        if name.lower() in known or name.lower() in ("id", "_json", "_seq"):
            raise InvalidData(f"--drop-field {text}: the manifest still has it")
        dropped.add((entity.lower(), name.lower()))
    values: dict[FieldKey, str] = {}
    for text in defaults:
        place, value = _pair("--default", text, "=", "Entity.field=value")
        entity, name = _pair("--default", place, ".", "Entity.field=value")
        if name.lower() not in _fields_of(fields, entity, f"--default {text}"):
            raise InvalidData(f"--default {text}: the manifest has no field {entity}.{name}")
        values[entity.lower(), name.lower()] = value
    return MigrationOptions(
        entities, renamed, frozenset(n.lower() for n in drop_entities), frozenset(dropped),
        frozenset(n.lower() for n in drop_indexes), values,
    )


def _pair(flag: str, text: str, mark: str, form: str) -> tuple[str, str]:
    first, found, second = text.partition(mark)
    if not first or not found or (not second and mark != "="):
        raise InvalidData(f"{flag} {text}: expected {form}")
    return first, second


def _fields_of(fields: Mapping[str, set[str]], entity: str, flag: str) -> set[str]:
    known = fields.get(entity.lower())
    if known is None:
        raise InvalidData(f"{flag}: the manifest has no entity {entity}")
    return known
