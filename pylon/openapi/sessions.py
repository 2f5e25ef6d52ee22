"""Operations of sessions: refresh, list, end (spec/identity.md §1.1)."""

from __future__ import annotations

from typing import Any, Final

from pylon import errors
from pylon.api.identity.bodies import PurgeSessionsBody
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    ADMIN_ONLY,
    STORE_ERRORS,
    WRITE_ERRORS,
    Paths,
    Schema,
    listed,
    nullable,
    obj,
    operation,
    path,
    query,
    response,
)

_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_TOKEN: Final[Schema] = {"type": "string", "description": "Send as Authorization: Bearer"}
_UNIX_S: Final[Schema] = {"type": "integer", "description": "Unix seconds"}
_END: Final[Schema] = {"type": "integer", "description": "Unix seconds; 0: never"}
_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{16}$"}


def session_paths() -> Paths:
    """Return the paths of sessions."""
    return {
        "/api/auth/refresh": operation(
            "post", "refresh", "auth",
            "Replace the token. The old one counts for 30 s more; a refresh with it afterwards "
            "ends the session",
            {200: response(
                "The session",
                obj({"token": _TOKEN, "user_id": _TEXT, "expires_at": _END}),
            )},
            raises=(
                *WRITE_ERRORS, errors.AuthRequired, errors.SessionExpired, errors.Unavailable,
            ),
        ),
        "/api/auth/sessions": {
            **operation(
                "get", "listSessions", "auth", "The caller's sessions, the newest first",
                {200: response("The sessions", listed(_session(current={"type": "boolean"})))},
                raises=(*STORE_ERRORS, errors.AuthRequired),
            ),
            **operation(
                "delete", "endSessions", "auth", "End all sessions of the caller",
                {200: response("Done", obj({"revoked_count": _COUNT}))},
                raises=(*WRITE_ERRORS, errors.AuthRequired, errors.InvalidQuery),
                parameters=[query("others", {"type": "boolean"}, "true: the current one stays")],
            ),
        },
        "/api/auth/sessions/{session_id}": operation(
            "delete", "endSession", "auth", "End one session of the caller",
            {200: response("Done", obj({"revoked": {"const": True}}))},
            raises=(*WRITE_ERRORS, errors.AuthRequired, errors.NotFound),
            parameters=[path("session_id", "`id` of the list")],
        ),
        "/api/admin/auth/sessions": operation(
            "get", "adminSessions", "admin", "The newest sessions of a user, or of all",
            {200: response("The sessions", listed(_session()))},
            raises=(*STORE_ERRORS, errors.Forbidden), security=ADMIN_ONLY,
            parameters=[query("user_id", _TEXT, "the sessions of this user only")],
        ),
        "/api/admin/auth/sessions/{session_id}": operation(
            "delete", "adminEndSession", "admin", "End the session of any user",
            {200: response("Done", obj({"revoked": {"const": True}}))},
            raises=(*WRITE_ERRORS, errors.Forbidden, errors.NotFound), security=ADMIN_ONLY,
            parameters=[path("session_id", "`id` of the list")],
        ),
        "/api/admin/sessions/purge": operation(
            "post", "purgeSessions", "admin", "End the sessions of a user, old ones, or all",
            {200: response("Done", obj({"revoked": _COUNT}))},
            raises=(*WRITE_ERRORS, errors.Forbidden), security=ADMIN_ONLY,
            body=body_schema(PurgeSessionsBody),
        ),
    }


def _session(**more: Any) -> Schema:
    return obj({
        "id": _ID, "token_prefix": _TEXT, "user_id": _TEXT, "device": nullable(_TEXT),
        "created_at": _UNIX_S, "expires_at": _END, "last_seen_at": _UNIX_S,
        "methods": listed(_TEXT), **more,
    })
