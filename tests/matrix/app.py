"""The app of the matrix: one entity for each shape of policy, and rooms.

All entities have the same fields, so that a row of one is a row of each. `SHAPES` has the policies
as an app writes them; `tests.matrix.model` says independently what they mean.
"""

from __future__ import annotations

from typing import Any, Final

from tests.support.manifests import field

MARK: Final = "SECRET-"  # every value of a hidden field begins with it
HIDDEN: Final = "Profile"  # the entity with a hidden field
BOARD: Final = "Board"  # the entity to which all other rows belong, for graphs

_MEMBER: Final = "exists(OrgMember, orgId == data.orgId, userId == auth.userId)"
_TENANT: Final = "data.orgId == auth.tenantId"
SHAPES: Final[dict[str, list[dict[str, str]]]] = {
    BOARD: [{"allow": "true"}],
    "Note": [{"allow": "data.ownerId == auth.userId"}],
    "Invoice": [{"allow": _TENANT}],
    "Task": [{"allow": _MEMBER}],
    "Post": [{"allowRead": "auth.hasAnyRole('member', 'admin')",
              "allowWrite": "auth.hasRole('admin')"}],
    "Ledger": [{"allow": _TENANT}, {"allowRead": "true", "allowWrite": "auth.hasRole('admin')"}],
    "Price": [{"allowRead": "true"}],
    "Letter": [{"allow": "auth.userId != null && !auth.isGuest"}],
    HIDDEN: [{"allow": "true"}],
    "Closed": [{"allowWrite": "true"}],
}
ENTITIES: Final = tuple(SHAPES)
ROOMS: Final[list[dict[str, str]]] = [
    {"room": "lobby", "allowJoin": "true"},
    {"room": "staff", "allowJoin": "auth.hasRole('admin')"},
    {"room": "org:*", "allowJoin": "exists(OrgMember, orgId == room.id, userId == auth.userId)",
     "allowBroadcast":
         "exists(OrgMember, orgId == room.id, userId == auth.userId, role == 'admin')"},
]


def relation_of(entity: str) -> str:
    """Return the relation of `BOARD` that has the rows of an entity."""
    return f"all{entity}"


def matrix_app() -> dict[str, Any]:
    """Return the manifest."""
    others = [name for name in ENTITIES if name != BOARD]
    return {
        "manifest_version": 1, "name": "matrix", "version": "1",
        "entities": [
            {"name": "User", "crdt": False, "indexes": [], "fields": [
                field("email", "string", unique=True), field("name", "string", optional=True),
            ]},
            *(_entity(name, others if name == BOARD else []) for name in ENTITIES),
        ],
        "policies": [
            {"name": "users", "entity": "User", "allowRead": "auth.userId == data.id"},
            *({"name": f"{name}{number}", "entity": name, **rules}
              for name, policies in SHAPES.items() for number, rules in enumerate(policies)),
            *({"name": f"room{number}", **rules} for number, rules in enumerate(ROOMS)),
        ],
        "auth": {"user": {"entity": "User"}, "org": {}},
    }


def _entity(name: str, many: list[str]) -> dict[str, Any]:
    fields = [
        field("title", "string"), field("note", "string", optional=True),
        field("ownerId", "string"), field("orgId", "string"),
        field("boardId", f"id({BOARD})", optional=True),
    ]
    if name == HIDDEN:
        fields.append({**field("secret", "string", optional=True), "serverOnly": True})
    return {
        "name": name, "fields": fields,
        "indexes": [
            {"name": "by_board", "fields": ["boardId", "title"], "unique": False},
            {"name": "by_owner", "fields": ["ownerId"], "unique": False},
            {"name": "by_org", "fields": ["orgId"], "unique": False},
        ],
        "relations": [
            {"name": relation_of(other), "target": other, "field": "boardId", "many": True}
            for other in many
        ],
        "search": {"text": ["title"], "facets": [], "sortable": []},
    }
