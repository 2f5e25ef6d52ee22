"""Entities of organisations: added to a manifest that asks for organisations and lacks them.

A manifest asks with ``"auth": {"org": {}}``. Organisations, their members and their invites are
rows of three entities, so policies can ask for memberships, and clients get them by sync. An app
may declare any of the three itself, with further fields; `OrgEntities` tells whether all have the
fields that the routes of organisations write.

The added entities have indexes and policies: members read their organisation and its members, its
owners and admins read its invites, and nobody writes. An app that declares the entity of members
writes the policies of all three itself, since they ask that entity. Clients write none of the
entities by other routes, added or not (`pylon.manifest.protected`, `Entity.is_managed`).

`add_org_entities` works on the document, before the checks, so policies of the app may name the
added entities. Called by `pylon.manifest_loader` and by the flows of organisations.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from pylon.manifest.document import Node
from pylon.manifest.findings import items_of, text_of
from pylon.manifest.model import AuthConfig, Entity, FieldType, Manifest

OWNER: Final = "owner"
ADMIN: Final = "admin"
MEMBER: Final = "member"
ROLES: Final = (OWNER, ADMIN, MEMBER)  # of every app; `auth.org_roles` has more

_TEXTS: Final = frozenset({FieldType.STRING, FieldType.RICHTEXT, FieldType.ID, FieldType.ENUM})
_TIMES: Final = frozenset({FieldType.DATETIME, FieldType.STRING, FieldType.INT, FieldType.FLOAT})
_FIELDS: Final = {
    "org": {"name": _TEXTS, "createdAt": _TIMES, "createdBy": _TEXTS},
    "member": {"orgId": _TEXTS, "userId": _TEXTS, "role": _TEXTS, "joinedAt": _TIMES},
    "invite": {
        "orgId": _TEXTS, "email": _TEXTS, "role": _TEXTS, "tokenPrefix": _TEXTS,
        "tokenHash": _TEXTS, "invitedBy": _TEXTS, "createdAt": _TIMES, "expiresAt": _TIMES,
        "acceptedAt": _TIMES,
    },
}


class OrgEntities(msgspec.Struct, frozen=True):
    """The three entities of a manifest with organisations."""

    org: Entity
    member: Entity
    invite: Entity


def org_entities(manifest: Manifest) -> OrgEntities | None:
    """Return the entities of organisations; None if the app has none, or if one that it declares
    lacks a field."""
    config = manifest.auth.org
    if config is None:
        return None
    found = [
        manifest.by_name.get(name)
        for name in (config.entity, config.member_entity, config.invite_entity)
    ]
    for entity, wanted in zip(found, _FIELDS.values(), strict=True):
        if entity is None or any(
            name not in entity.by_name or entity.by_name[name].type not in types
            for name, types in wanted.items()
        ):
            return None
    org, member, invite = found
    assert org is not None and member is not None and invite is not None
    return OrgEntities(org, member, invite)


def add_org_entities(root: Node) -> None:
    """Add the entities of organisations, and their policies, that a document lacks.

    Does nothing without ``auth.org``, or if it is disabled. Their nodes have the place of
    ``auth.org``.

    Args:
        root: a document whose shape is right.
    """
    auth = root.value.get("auth")
    asked = auth.value.get("org") if auth is not None and auth.value is not None else None
    if asked is None or asked.value is None:
        return
    source = asked.plain()
    if source.get("disabled"):
        return
    default = AuthConfig()
    user = auth.value.get("user")
    user_source = {} if user is None or user.value is None else user.plain()
    names = (
        source.get("entity") or "Org", source.get("member_entity") or "OrgMember",
        source.get("invite_entity") or "OrgInvite",
    )
    declared = {
        name.value for entity in items_of(root, "entities")
        if (name := text_of(entity, "name")) is not None
    }
    user_entity = user_source.get("entity") or default.user_entity
    user_type = f"id({user_entity})" if user_entity in declared else "string"
    for entity, policy in zip(_entities(*names, user_type), _policies(*names), strict=True):
        if entity["name"] not in declared:
            _append(root, "entities", entity, asked)
            if names[1] not in declared:
                _append(root, "policies", policy, asked)


def _append(root: Node, key: str, item: dict[str, Any], place: Node) -> None:
    present = root.value.get(key)
    if present is None or present.value is None:
        present = root.value[key] = Node([], place.at, place.end)
    present.value.append(_node(item, place))


def _node(value: Any, place: Node) -> Node:
    if isinstance(value, dict):
        value = {key: _node(inner, place) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [_node(inner, place) for inner in value]
    return Node(value, place.at, place.end)


def _field(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


def _entities(org: str, member: str, invite: str, user_type: str) -> list[dict[str, Any]]:
    of_org = {"references": "check", "onDelete": "cascade"}
    of_user = of_org if user_type != "string" else {}
    return [
        {
            "name": org, "crdt": False,
            "fields": [
                _field("name", "string"), _field("createdAt", "datetime"),
                _field("createdBy", "string"),
            ],
        },
        {
            "name": member, "crdt": False,
            "fields": [
                _field("orgId", f"id({org})", **of_org), _field("userId", user_type, **of_user),
                _field("role", "string"), _field("joinedAt", "datetime"),
            ],
            "indexes": [
                {"name": "by_user", "fields": ["userId", "orgId"], "unique": True},
                {"name": "by_org", "fields": ["orgId", "userId"]},
            ],
            "relations": [{"name": "org", "target": org, "field": "orgId"}],
        },
        {
            "name": invite, "crdt": False,
            "fields": [
                _field("orgId", f"id({org})", **of_org), _field("email", "string"),
                _field("role", "string"), _field("tokenPrefix", "string"),
                _field("tokenHash", "string", unique=True), _field("invitedBy", "string"),
                _field("createdAt", "datetime"), _field("expiresAt", "datetime"),
                _field("acceptedAt", "datetime", optional=True),
            ],
            "indexes": [{"name": "by_org", "fields": ["orgId", "email"]}],
        },
    ]


def _policies(org: str, member: str, invite: str) -> list[dict[str, Any]]:
    def membership(field: str, role: str = "") -> str:
        also = f", role == '{role}'" if role else ""
        return f"exists({member}, orgId == data.{field}, userId == auth.userId{also})"

    managers = f"{membership('orgId', OWNER)} || {membership('orgId', ADMIN)}"
    return [
        {"name": f"{org}_members_read", "entity": org, "allowRead": membership("id")},
        {"name": f"{member}_members_read", "entity": member, "allowRead": membership("orgId")},
        {"name": f"{invite}_managers_read", "entity": invite, "allowRead": managers},
    ]
