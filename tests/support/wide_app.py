"""An app with something of everything: all types, relations, search, actions, several policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.manifests import field

SMALL = {  # settings of a server that is soon up
    "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "0", "PYLON_SSE_WORKERS": "0",
    "PYLON_SHARD_WORKERS": "1", "PYLON_APP": str(Path(__file__).parent / "shards_app.py"),
}


def wide_app() -> dict[str, Any]:
    """`Item` has every type and is open to all; `Tag` is of one; `Secret` is by owner."""
    return {
        "manifest_version": 1,
        "name": "wide",
        "version": "1.2.3",
        "entities": [
            {
                "name": "Item",
                "fields": [
                    field("title", "string"),
                    field("body", "richtext", optional=True),
                    field("count", "int"),
                    field("weight", "float", optional=True),
                    field("done", "bool"),
                    field("dueAt", "datetime", optional=True),
                    field("code", "string", optional=True, unique=True),
                    field("parent", "id(Item)", optional=True),
                ],
                "indexes": [{"name": "by_count", "fields": ["count"], "unique": False}],
                "relations": [
                    {"name": "up", "target": "Item", "field": "parent", "many": False},
                    {"name": "children", "target": "Item", "field": "parent", "many": True},
                ],
                "search": {
                    "text": ["title", "body"], "facets": ["count", "done"],
                    "sortable": ["count", "title"],
                },
                "crdt": False,
            },
            {
                "name": "Tag",
                "fields": [field("name", "string"), field("item", "id(Item)", optional=True)],
                "indexes": [],
                "relations": [{"name": "of", "target": "Item", "field": "item", "many": False}],
                "crdt": False,
            },
            {
                "name": "Secret",
                "fields": [field("ownerId", "string"), field("note", "string", optional=True)],
                "indexes": [],
                "crdt": False,
            },
        ],
        "routes": [],
        "queries": [],
        "actions": [
            {"name": "close", "input": [field("id", "string"), field("why", "string", True)]}
        ],
        "policies": [
            *(
                {
                    "name": f"open_{entity}", "entity": entity,
                    "allowRead": "true", "allowInsert": "true", "allowUpdate": "true",
                    "allowDelete": "true",
                }
                for entity in ("Item", "Tag")
            ),
            {
                "name": "own", "entity": "Secret",
                "allowRead": "auth.userId == data.ownerId",
                "allowInsert": "auth.userId == data.ownerId",
                "allowUpdate": "auth.userId == existing.ownerId",
                "allowDelete": "auth.userId == data.ownerId",
            },
            {"name": "may_close", "action": "close", "allow": "auth.userId != null"},
        ],
    }
