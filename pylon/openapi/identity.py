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
    answer,
    listed,
    nullable,
    obj,
    operation,
    ref,
)

_TEXT: Final[Schema] = {"type": "string"}
_TOKEN: Final[Schema] = {"type": "string", "description": "Send as Authorization: Bearer"}
_UNIX_S: Final[Schema] = {"type": "integer", "description": "Unix seconds; 0: never"}


def identity_schemas() -> dict[str, Schema]:
    """Who a request is from."""
    members: dict[str, Any] = {
        "user_id": nullable(_TEXT),
        "is_admin": {"type": "boolean"},
        "roles": listed(_TEXT),
        "is_guest": {"type": "boolean"},
        "tenant_id": _TEXT,
    }
    always = ("user_id", "is_admin", "roles")
    return {
        "Me": obj({**members, "avatar_url": nullable(_TEXT)}, (*always, "avatar_url")),
        "SessionContext": obj(members, always),
    }


def identity_paths() -> Paths:
    """The paths under /api/auth."""
    return {
        "/api/auth/guest": operation(
            "post", "guest", "auth", "A session of a new guest",
            {201: answer(
                "The session; its cookie too, if the request has an Origin",
                obj({"guest": {"const": True}, "token": _TOKEN, "user_id": _TEXT}),
            )},
            fails=(*WRITE_ERRORS, errors.RateLimited),
        ),
        "/api/auth/anonymous": operation(
            "post", "anonymous", "auth", "The same, with another answer",
            {200: answer("The session", obj({
                "token": _TOKEN, "user_id": _TEXT, "is_guest": {"const": True},
                "expires_at": _UNIX_S,
            }))},
            fails=(*WRITE_ERRORS, errors.RateLimited),
        ),
        "/api/auth/me": operation(
            "get", "me", "auth", "Who the caller is; also of nobody",
            {200: answer("The auth context", ref("Me"))}, fails=STORE_ERRORS,
        ),
        "/api/auth/session": {
            **operation(
                "get", "session", "auth", "The caller's session and user row",
                {200: answer("The session", obj({
                    "avatar_url": nullable(_TEXT),
                    "session": ref("SessionContext"),
                    "user": nullable({"type": "object"}),
                }))},
                fails=STORE_ERRORS,
            ),
            **operation(
                "post", "mintSession", "auth",
                "A session of any user; outside dev mode for admins only",
                {201: answer("The session", obj({"token": _TOKEN, "user_id": _TEXT}))},
                fails=(*WRITE_ERRORS, errors.Forbidden, errors.MissingUserId),
                body=body_schema(MintSessionBody),
            ),
            **operation(
                "delete", "logOut", "auth", "End the session and its cookie",
                {200: answer("Done", obj({"revoked": {"const": True}}))},
                fails=WRITE_ERRORS,
            ),
        },
        "/api/auth/refresh": operation(
            "post", "refresh", "auth", "A new token for the old one, which stops working",
            {200: answer(
                "The session",
                obj({"token": _TOKEN, "user_id": _TEXT, "expires_at": _UNIX_S}),
            )},
            fails=(*WRITE_ERRORS, errors.AuthRequired, errors.SessionExpired),
        ),
        "/api/auth/providers": operation(
            "get", "providers", "auth", "Sign-in providers, of which there are none",
            {200: answer("An empty list", listed({"type": "object"}, maxItems=0))},
        ),
    }
