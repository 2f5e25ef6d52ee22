"""Operations of identity and sessions (spec/http.md §3.11.1)."""

from __future__ import annotations

from typing import Any, Final

from pylon import errors
from pylon.api.identity.bodies import MintSessionBody
from pylon.openapi.bodies import body_schema
from pylon.openapi.parts import (
    STORE_ERRORS,
    WRITE_ERRORS,
    Paths,
    Schema,
    listed,
    nullable,
    obj,
    operation,
    ref,
    response,
)

_TEXT: Final[Schema] = {"type": "string"}
_TOKEN: Final[Schema] = {"type": "string", "description": "Send as Authorization: Bearer"}
_UNIX_S: Final[Schema] = {"type": "integer", "description": "Unix seconds; 0: never"}


def identity_schemas() -> dict[str, Schema]:
    """Return the schemas of the caller."""
    members: dict[str, Any] = {
        "user_id": nullable(_TEXT),
        "is_admin": {"type": "boolean"},
        "roles": listed(_TEXT),
        "is_guest": {"type": "boolean"},
        "is_trusted_device": {"type": "boolean"},
        "tenant_id": _TEXT,
        "api_key_id": _TEXT,
        "api_key_scopes": nullable(_TEXT),
        "readonly": {"type": "boolean"},
        "totp_setup_required": {"type": "boolean"},
    }
    always = ("user_id", "is_admin", "roles")
    return {
        "Me": obj({**members, "avatar_url": nullable(_TEXT)}, (*always, "avatar_url")),
        "SessionContext": obj(members, always),
    }


def identity_paths() -> Paths:
    """Return the paths under /api/auth."""
    return {
        "/api/auth/guest": operation(
            "post", "guest", "auth", "A session of a new guest",
            {201: response(
                "The session; its cookie too, if the request has an Origin",
                obj({"guest": {"const": True}, "token": _TOKEN, "user_id": _TEXT}),
            )},
            raises=(*WRITE_ERRORS, errors.RateLimited),
        ),
        "/api/auth/anonymous": operation(
            "post", "anonymous", "auth", "Like /api/auth/guest, with another response",
            {200: response("The session", obj({
                "token": _TOKEN, "user_id": _TEXT, "is_guest": {"const": True},
                "expires_at": _UNIX_S,
            }))},
            raises=(*WRITE_ERRORS, errors.RateLimited),
        ),
        "/api/auth/me": operation(
            "get", "me", "auth", "The caller, also an anonymous one",
            {200: response("The auth context", ref("Me"))}, raises=STORE_ERRORS,
        ),
        "/api/auth/session": {
            **operation(
                "get", "session", "auth", "The caller's session and user row",
                {200: response("The session", obj({
                    "avatar_url": nullable(_TEXT),
                    "session": ref("SessionContext"),
                    "user": nullable({"type": "object"}),
                }))},
                raises=STORE_ERRORS,
            ),
            **operation(
                "post", "mintSession", "auth",
                "A session of any user; outside dev mode for admins only",
                {201: response("The session", obj({"token": _TOKEN, "user_id": _TEXT}))},
                raises=(
                    *WRITE_ERRORS, errors.AccountLocked, errors.Forbidden, errors.MissingUserId,
                ),
                body=body_schema(MintSessionBody),
            ),
            **operation(
                "delete", "logOut", "auth", "End the session and its cookie",
                {200: response("Done", obj({"revoked": {"const": True}}))},
                raises=WRITE_ERRORS,
            ),
        },
    }
