"""Scopes: the names that a rule may use, with the kind of each.

A rule of an entity has ``data`` and ``existing``, a rule of an action ``input``, a rule of rooms
``room``; every rule has ``auth``. Called by `check`, and by whoever compiles rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from pylon.manifest.model import Entity, Field, FieldType, Operation
from pylon.nearest_names import near_suffix
from pylon.policy import expression as e
from pylon.policy.expression import Kind, Root

AUTH_ATTRIBUTES: dict[str, e.Auth] = {
    "userId": e.Auth("user_id", Kind.STRING),
    "user_id": e.Auth("user_id", Kind.STRING),
    "isAdmin": e.Auth("is_admin", Kind.BOOL),
    "is_admin": e.Auth("is_admin", Kind.BOOL),
    "isGuest": e.Auth("is_guest", Kind.BOOL),
    "is_guest": e.Auth("is_guest", Kind.BOOL),
    "tenantId": e.Auth("tenant_id", Kind.STRING),
    "tenant_id": e.Auth("tenant_id", Kind.STRING),
    "roles": e.Auth("roles", Kind.LIST),
}
_KIND_OF_TYPE = {
    FieldType.STRING: Kind.STRING,
    FieldType.RICHTEXT: Kind.STRING,
    FieldType.DATETIME: Kind.DATETIME,
    FieldType.ID: Kind.STRING,
    FieldType.ENUM: Kind.STRING,
    FieldType.DATE: Kind.DATE,
    FieldType.DECIMAL: Kind.DECIMAL,
    FieldType.JSON: Kind.JSON,
    FieldType.INT: Kind.NUMBER,
    FieldType.FLOAT: Kind.NUMBER,
    FieldType.BOOL: Kind.BOOL,
}


class Scope(msgspec.Struct, frozen=True):
    """The names that a rule may use.

    `subject` appears in messages; `roots` maps each root to its fields; `entities` are those that
    ``exists(...)`` may ask, by name. No rule may name a hidden field: its verdict would tell
    something of the value, and rows that clients receive are judged without it.
    """

    subject: str
    roots: Mapping[Root, Mapping[str, Kind]]
    entities: Mapping[str, Entity] = msgspec.field(default_factory=dict)


def entity_scope(entity: Entity, entities: Mapping[str, Entity] | None = None) -> Scope:
    """Return the scope of an entity's rules: ``data`` and ``existing`` are rows of it."""
    columns = kinds_of_row(entity)
    roots: dict[Root, Mapping[str, Kind]] = {"data": columns, "existing": columns}
    return Scope(f'entity "{entity.name}"', roots, entities or {})


def action_scope(action: Operation, entities: Mapping[str, Entity] | None = None) -> Scope:
    """Return the scope of an action's rules: ``input``, and no row."""
    return Scope(f'action "{action.name}"', {"input": _kinds(action.input)}, entities or {})


def room_scope(entities: Mapping[str, Entity] | None = None) -> Scope:
    """Return the scope of rules of rooms: ``room``, by its name and by what ``*`` stands for."""
    names = {"id": Kind.STRING, "name": Kind.STRING}
    return Scope("a room pattern", {"room": names}, entities or {})


def row_scope(
    row: Mapping[str, object], entities: Mapping[str, Entity] | None = None
) -> Scope:
    """Return the scope of rules about rows of no known entity, with the kinds of a row's values.

    A null counts as a text.
    """
    kinds = {name: _kind_of_value(value) for name, value in row.items()}
    return Scope("the row", {"data": kinds, "existing": kinds}, entities or {})


def _kind_of_value(value: object) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOL
    if isinstance(value, int | float):
        return Kind.NUMBER
    return Kind.STRING if value is None or isinstance(value, str) else Kind.JSON


def _kinds(fields: Iterable[Field]) -> dict[str, Kind]:
    return {field.name: _KIND_OF_TYPE[field.type] for field in fields}


def kinds_of_row(entity: Entity) -> dict[str, Kind]:
    return {"id": Kind.STRING, **_kinds(entity.public_fields)}


def list_names(names: Iterable[str], wanted: str | None = None) -> str:
    """Return the names as a list; with the one that resembles `wanted`."""
    known = list(names)
    return (", ".join(known) or "none") + near_suffix(wanted, known)
