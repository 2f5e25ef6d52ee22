"""Bodies and answers of JWTs (spec/identity.md §1.8).

Called by `pylon.api.identity.routes` and the flows of the identity process.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from pylon.body_types import BodyType, Refusal
from pylon.errors import InvalidData, MissingUserId

_USER_ID_CHARS: Final = 200


class MintJwtBody(msgspec.Struct, frozen=True, kw_only=True):
    """The rights and the life of the JWT to make."""

    scopes: Annotated[Any, Meta(
        description="As those of an API key; null: all that its user may do",
        extra_json_schema={"anyOf": [
            {"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"},
        ]},
    )] = None
    readonly: bool = False
    expires_in: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Seconds, at most PYLON_JWT_LIFETIME_SECS; null: these"),
        Refusal(InvalidData, expected="a number of seconds from 1 on, or null"),
    ] = None


class AdminJwtBody(MintJwtBody, frozen=True, kw_only=True):
    """The JWT that an administrator makes for a user."""

    user_id: Annotated[
        str, Meta(min_length=1, max_length=_USER_ID_CHARS), Refusal(MissingUserId, InvalidData)
    ]


class JwtAnswer(msgspec.Struct, frozen=True):
    """A JWT. `expires_at`: Unix seconds."""

    token: str
    expires_at: int


MINT_JWT: Final = BodyType(MintJwtBody, '{"readonly": true, "expires_in": 600}')
ADMIN_JWT: Final = BodyType(AdminJwtBody, '{"user_id": "...", "readonly": true}')
