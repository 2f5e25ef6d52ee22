"""The app that the tests of the Python client use, and its rows as classes."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

SIGNED_IN: Final = "auth.userId != null"

MANIFEST: Final[dict[str, Any]] = {
    "name": "client-tests",
    "version": "1.0.0",
    "entities": [
        {"name": "User", "fields": [
            {"name": "email", "type": "string", "unique": True},
            {"name": "displayName", "type": "string", "optional": True},
        ], "crdt": False},
        {"name": "Task", "fields": [
            {"name": "title", "type": "string"},
            {"name": "list", "type": "string", "default": "inbox"},
            {"name": "rank", "type": "int", "default": 0},
            {"name": "done", "type": "bool", "default": False},
            {"name": "code", "type": "string", "unique": True, "optional": True},
            {"name": "due", "type": "datetime", "optional": True},
            {"name": "owner", "type": "string", "default": {"$auth": "userId"}, "fixed": True},
        ], "indexes": [
            {"name": "by_list_rank", "fields": ["list", "rank"]},
        ], "crdt": False},
        {"name": "Step", "fields": [
            {"name": "task", "type": "id(Task)", "onDelete": "cascade"},
            {"name": "text", "type": "string"},
        ], "crdt": False},
        {"name": "Secret", "fields": [{"name": "text", "type": "string"}], "crdt": False},
    ],
    "policies": [
        {"name": "users", "entity": "User", "allowRead": "auth.userId == data.id"},
        {"name": "tasks", "entity": "Task", "allowRead": SIGNED_IN, "allowInsert": SIGNED_IN,
         "allowUpdate": "existing.owner == auth.userId",
         "allowDelete": "data.owner == auth.userId"},
        {"name": "steps", "entity": "Step", "allowRead": SIGNED_IN, "allowInsert": SIGNED_IN,
         "allowUpdate": SIGNED_IN, "allowDelete": SIGNED_IN},
        {"name": "secrets", "entity": "Secret", "allowRead": "false", "allowInsert": SIGNED_IN},
        {"name": "rooms", "room": "open:*", "allowJoin": SIGNED_IN, "allowBroadcast": SIGNED_IN},
    ],
}


class Task(msgspec.Struct):
    """A row of Task."""

    id: str
    title: str
    list: str
    rank: int
    done: bool
    owner: str
    code: str | None = None
    due: datetime | None = None


class Step(msgspec.Struct):
    """A row of Step."""

    id: str
    task: str
    text: str
