"""The document as a whole: ``GET /api/openapi.json``.

Each entity and action has paths of its own, so that each has its own exact schemas. A segment
keeps its braces only where it may have any value.

Called by `pylon.api.admin.openapi`, on the first request of each process.
"""

from __future__ import annotations

from typing import Any, Final

from pylon import limits
from pylon.auth.cookies import session_cookie
from pylon.config import Config
from pylon.manifest.model import Manifest
from pylon.openapi.documents import document_paths
from pylon.openapi.files import file_paths, file_schemas
from pylon.openapi.filters import filter_schemas
from pylon.openapi.identity import identity_paths, identity_schemas
from pylon.openapi.identity_routes import forwarded_paths
from pylon.openapi.parts import Schema, header, obj
from pylon.openapi.rooms import room_paths, room_schemas
from pylon.openapi.rows import entity_paths, graph_paths
from pylon.openapi.server import server_paths
from pylon.openapi.sessions import session_paths
from pylon.openapi.shards import shard_paths, shard_schemas
from pylon.openapi.sync import sync_paths, sync_schemas
from pylon.openapi.values import entity_schemas
from pylon.openapi.writes import write_paths, write_schemas

_VERSION: Final = "3.1.0"
_ABOUT: Final = (
    "Bodies are JSON in UTF-8 whatever their content type says; at most {body} bytes. Every "
    "error has the same envelope and a code that `pylonctl explain CODE` explains. Rows that "
    "the caller may not read are treated as rows that do not exist. HEAD is like GET "
    "without the body; OPTIONS has status 204 with the CORS headers on any path."
)
_HEADERS: Final[dict[str, Schema]] = {
    "X-Request-Id": {
        "description": "The request's own, if that is 1 to 128 letters, digits and ._-, "
        "else a new one",
        "required": True, "schema": {"type": "string"},
    },
    "X-Pylon-Change-Seq": {
        "description": "The seq of the change that the write made",
        "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "ETag": {
        "description": "The row's version: the seq of its last change, in quotes",
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
    "Idempotency-Replayed": {
        "description": "true: an earlier request with the same key or op_ids did it",
        "schema": {"const": "true"},
    },
    "X-Pylon-Missing-Workers": {
        "description": "Shards workers that did not answer, separated by commas: \"b/1, b/2\"",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds; on errors that may pass by themselves",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
}
_TAGS_PATTERN: Final = r'^("[0-9]{1,18}"(, "[0-9]{1,18}"){0,9}|\*)$'
_PARAMETERS: Final[dict[str, Schema]] = {
    "IdempotencyKey": header(
        "Idempotency-Key",
        {"type": "string", "pattern": f"^[!-~]{{1,{limits.OP_ID_CHARS}}}$"},
        "A repetition with the same key gets the response of the first time; nothing is done again",
    ),
    "IfMatch": header(
        "If-Match", {"type": "string", "pattern": _TAGS_PATTERN},
        "Write only if the row still has one of these ETags",
    ),
    "IfNoneMatch": header(
        "If-None-Match", {"type": "string", "pattern": _TAGS_PATTERN},
        "Answer only if the row has none of these ETags",
    ),
}
_ERROR: Final = obj({
    "error": {
        **obj(
            {
                "code": {"type": "string"}, "message": {"type": "string"},
                "hint": {"type": "string"},
            },
            ("code", "message"), is_open=True,
        ),
        "description": "Some errors have further members, such as entity, field and value",
    }
})


def openapi_document(manifest: Manifest, config: Config) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an app."""
    schemas: dict[str, Schema] = {
        "Error": _ERROR, **identity_schemas(), **sync_schemas(manifest),
        **write_schemas(manifest), **room_schemas(), **shard_schemas(), **file_schemas(),
    }
    paths = {
        **server_paths(), **identity_paths(), **forwarded_paths(), **session_paths(),
        **sync_paths(), **graph_paths(manifest),
        **write_paths(manifest), **document_paths(manifest), **room_paths(),
        **shard_paths(), **file_paths(),
    }
    for entity in manifest.entities:
        schemas |= entity_schemas(entity) | filter_schemas(entity, config)
        paths |= entity_paths(entity, config)
    return {
        "openapi": _VERSION,
        "info": {
            "title": manifest.name,
            "version": manifest.version,
            "description": _ABOUT.format(body=limits.BODY_BYTES),
        },
        "servers": [{"url": config.public_url or "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": _HEADERS,
            "parameters": _PARAMETERS,
            "securitySchemes": {
                "BearerAuth": {
                    "type": "http", "scheme": "bearer",
                    "description": "A session token, or PYLON_ADMIN_TOKEN",
                },
                "CookieAuth": {
                    "type": "apiKey", "in": "cookie",
                    "name": session_cookie(config, manifest).name,
                },
            },
        },
    }
