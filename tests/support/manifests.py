"""The apps that the process tests serve."""

from __future__ import annotations

from typing import Any


def field(name: str, type_: str, optional: bool = False, unique: bool = False) -> dict[str, Any]:
    return {"name": name, "type": type_, "optional": optional, "unique": unique}


def notes_app() -> dict[str, Any]:
    """Notes with an owner and a `shared` flag: views are gained and lost by updates."""
    return {
        "manifest_version": 1,
        "name": "notes",
        "version": "0.1.0",
        "entities": [
            {
                "name": "Note",
                "fields": [
                    field("title", "string"),
                    field("ownerId", "string"),
                    field("shared", "bool"),
                    field("rank", "int", optional=True),
                    field("slug", "string", optional=True, unique=True),
                ],
                "indexes": [{"name": "by_owner", "fields": ["ownerId"], "unique": False}],
            },
            {
                "name": "Tick",
                "fields": [field("n", "int"), field("sender", "string")],
                "indexes": [],
                "crdt": False,
            },
        ],
        "routes": [],
        "policies": [
            {
                "name": "notes",
                "entity": "Note",
                "allowRead": "data.shared || auth.userId == data.ownerId",
                "allowInsert": "auth.userId == data.ownerId",
                "allowUpdate": "auth.userId == existing.ownerId",
                "allowDelete": "auth.userId == data.ownerId",
            },
            {
                "name": "ticks",
                "entity": "Tick",
                "allowRead": "true",
                "allowInsert": "true",
                "allowUpdate": "true",
                "allowDelete": "true",
            },
        ],
    }


def sign_in_app() -> dict[str, Any]:
    """People who sign in, and todos of theirs: the app of the tests of identity."""
    own = "auth.userId == data.authorId"
    return {
        "manifest_version": 1,
        "name": "members",
        "version": "0.1.0",
        "entities": [
            {
                "name": "User",
                "fields": [
                    field("email", "string", unique=True),
                    field("displayName", "string", optional=True),
                    field("avatarColor", "string", optional=True),
                    field("avatarUrl", "string", optional=True),
                    field("emailVerified", "datetime", optional=True),
                    field("passwordHash", "string", optional=True),
                    field("role", "string", optional=True),
                    field("createdAt", "datetime", optional=True),
                ],
                "indexes": [],
                "crdt": False,
            },
            {
                "name": "Todo",
                "fields": [field("title", "string"), field("authorId", "id(User)")],
                "indexes": [],
                "crdt": False,
            },
        ],
        "routes": [],
        "auth": {"user": {"entity": "User"}},
        "policies": [
            {
                "name": "users", "entity": "User", "allowRead": "auth.userId == data.id",
                "allowInsert": "true", "allowUpdate": "auth.userId == data.id",
                "allowDelete": "false",
            },
            {
                "name": "todos", "entity": "Todo", "allowRead": own, "allowInsert": own,
                "allowUpdate": own, "allowDelete": own,
            },
        ],
    }


def windows_app() -> dict[str, Any]:
    """Return a manifest whose entities differ in who may read rows, with an order by index."""
    fields = [
        {"name": name, "type": kind, "optional": True, "unique": False}
        for name, kind in (
            ("text", "string"), ("rank", "int"), ("ownerId", "string"), ("shared", "bool"),
            ("at", "datetime"),
        )
    ]
    rules = {
        "Public": "true",  # everyone
        "Mine": "auth.userId == data.ownerId",  # keyed
        "Note": "data.shared || auth.userId == data.ownerId",  # general
        "Chat": "exists(Member, text == data.text, ownerId == auth.userId)",
        "Open": "!exists(Member, text == data.text, ownerId == auth.userId)",
        "Member": "true",
    }
    return {
        "manifest_version": 1, "name": "windows", "version": "0.1.0", "routes": [],
        "entities": [
            {"name": name, "fields": fields, "crdt": False, "indexes": [
                {"name": "by_text", "fields": ["text", "rank"], "unique": False},
                {"name": "by_rank", "fields": ["rank"], "unique": False},
                {"name": "by_time", "fields": ["shared", "at"], "unique": False},
                *([{"name": "by_owner", "fields": ["ownerId", "text"], "unique": False}]
                  if name == "Member" else []),
            ]} for name in rules
        ],
        "policies": [
            {"name": name, "entity": name, "allowRead": rule, "allowWrite": "true"}
            for name, rule in rules.items()
        ],
    }


def private_rooms_app() -> dict[str, Any]:
    """An app whose rooms `room:<id>` are for the members of that id; hosts broadcast."""
    member = "roomId == room.id, userId == auth.userId"
    return {
        "name": "rooms",
        "entities": [{
            "name": "Member",
            "fields": [
                field("roomId", "string"), field("userId", "string"),
                field("role", "string", optional=True),
            ],
            "indexes": [{"name": "by_user", "fields": ["userId", "roomId"]}],
        }],
        "policies": [{
            "name": "members_only", "room": "room:*",
            "allowJoin": f"exists(Member, {member})",
            "allowBroadcast": f"exists(Member, {member}, role == 'host')",
        }],
    }
